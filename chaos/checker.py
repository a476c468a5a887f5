"""Judge a history afterwards: what clients were told and saw against what the rows say in the end, and what bodies did.

Pure: three values in, violations out, each with the promise that it breaks (G1 to G13 of docs/reliability.md). An operation
whose outcome is unknown may have happened or not; everything else is held to its word.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

TERMINAL_EVENTS: Final = {
    "RunFinished": "finished",
    "RunFailed": "failed",
    "RunCancelled": "cancelled",
}
DECISIONS: Final = {"ApprovalGranted": "approved", "ApprovalDenied": "denied"}
VERDICTS: Final = {"approve": "approved", "deny": "denied"}
CLOCK_S: Final = (
    0.05  # event times are cut to milliseconds, and taken before the commit is on the disk
)
DRAIN_S: Final = 60.0
GOES_ON_S: Final = 40.0  # after the last fault was healed

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    promise: str
    run: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise} {self.run}: {self.text}"


@dataclass(frozen=True)
class Operation:
    """What a client asked for, and what became of it."""

    what: str
    run: str
    began_at: float
    ended_at: float
    phase: str  # ok, refused, unknown
    fields: Line

    @property
    def is_ok(self) -> bool:
        """The server said that it was done."""
        return self.phase == "ok"


@dataclass(frozen=True)
class History:
    """What the recorder wrote."""

    lines: list[Line]

    @classmethod
    def read(cls, path: Path) -> "History":
        """Read a recorder's file."""
        with path.open(encoding="utf-8") as file:
            return cls([json.loads(line) for line in file])

    @cached_property
    def operations(self) -> list[Operation]:
        """Every operation; one without an end is unknown."""
        begun: dict[int, Line] = {}
        ended: dict[int, Line] = {}
        for line in self.lines:
            if "op" in line:
                (begun if line["phase"] == "begin" else ended)[line["op"]] = line
        return [
            Operation(
                begin["what"],
                begin["run"],
                begin["at"],
                ended[number]["at"] if number in ended else float("inf"),
                ended[number]["phase"] if number in ended else "unknown",
                {**begin, **ended.get(number, {})},
            )
            for number, begin in begun.items()
        ]

    def of(self, what: str) -> list[Operation]:
        """Return the operations of a kind."""
        return [operation for operation in self.operations if operation.what == what]

    @cached_property
    def last_answers(self) -> dict[str, float]:
        """When each run's clients were last answered."""
        last: dict[str, float] = {}
        for operation in self.operations:
            if operation.phase != "unknown":
                last[operation.run] = max(last.get(operation.run, 0.0), operation.ended_at)
        return last

    @cached_property
    def streams(self) -> list[Line]:
        """What each stream delivered, in the order of their ends."""
        return [line for line in self.lines if line["what"] == "stream"]

    @cached_property
    def faults(self) -> list[Line]:
        """What the nemesis did."""
        return [line for line in self.lines if line["who"] == "nemesis"]

    @cached_property
    def frozen_pids(self) -> set[int]:
        """Processes that were stopped for a while: of these it is promised only that they write nothing."""
        return {pid for fault in self.faults for pid in fault.get("frozen", ())}


@dataclass(frozen=True)
class Event:
    """An event as it is stored."""

    seq: int
    epoch: int
    sha: str
    body: Line

    @property
    def type(self) -> str:
        """Its name."""
        return str(self.body["type"])

    @property
    def node(self) -> tuple[str, int]:
        """Which node of the run it is about."""
        return self.body["nodeId"], self.body["iteration"]


@dataclass
class StoredRun:
    """A run as its rows say in the end."""

    status: str
    era: int
    has_request: bool
    events: list[Event] = field(default_factory=list)
    approvals: dict[tuple[str, int], Line] = field(default_factory=dict)
    signals: list[Line] = field(default_factory=list)
    outputs: dict[tuple[str, int], Any] = field(default_factory=dict)

    def eras(self) -> list[list[Event]]:
        """Return the events of each era: a resume of an ended run opens one."""
        eras: list[list[Event]] = [[]]
        has_ended = False
        for event in self.events:
            if has_ended and event.type == "RunStatusChanged":
                eras.append([])
                has_ended = False
            eras[-1].append(event)
            has_ended = has_ended or event.type in TERMINAL_EVENTS
        return eras


Runs = dict[str, StoredRun]


def check(history: History, runs: Runs, ledger: list[Line]) -> list[Violation]:
    """Return everything that is wrong, the first of each promise first."""
    found = [
        *check_acceptance(history, runs),
        *check_sequences(runs),
        *check_streams(history, runs),
        *check_eras(runs),
        *check_nodes(runs),
        *check_ledger(history, runs, ledger),
        *check_decisions(history, runs),
        *check_signals(history, runs),
        *check_cancels(history, runs),
        *check_ends(history, runs),
    ]
    return sorted(found, key=lambda violation: (int(violation.promise[1:]), violation.run))


def check_acceptance(history: History, runs: Runs) -> Iterator[Violation]:
    """G1, G3: what was accepted is there, what was refused is not, and one start of each name won."""
    by_run: dict[str, list[Operation]] = defaultdict(list)
    for start in history.of("start"):
        by_run[start.run].append(start)
    for run, starts in by_run.items():
        phases = Counter(start.phase for start in starts)
        if phases["ok"] and run not in runs:
            yield Violation("G1", run, "was answered 200 and is not there")
        if phases["ok"] > 1:
            yield Violation("G3", run, f"was accepted {phases['ok']} times")
        if set(phases) == {"refused"} and run in runs:
            yield Violation("G1", run, "was refused and is there")
    for run, stored in runs.items():
        if run not in by_run:
            yield Violation("G1", run, "is there, and nobody asked for it")
        if not stored.has_request or not stored.events or stored.events[0].type != "RunStarted":
            yield Violation("G1", run, "is half a run")


def check_sequences(runs: Runs) -> Iterator[Violation]:
    """G2, G4: seq counts from 0 without a gap, and the epoch never falls along it."""
    for run, stored in runs.items():
        seqs = [event.seq for event in stored.events]
        if seqs != list(range(len(seqs))):
            yield Violation("G4", run, f"seq has gaps or repeats: {seqs[:20]}")
        epochs = [event.epoch for event in stored.events]
        if epochs != sorted(epochs):
            yield Violation("G2", run, f"the epoch falls: {epochs}")


def check_streams(history: History, runs: Runs) -> Iterator[Violation]:
    """G4, G5: a stream gives each event after its cursor once and in order, and ends cleanly after a terminal one only."""
    drains = [
        (fault["part"], fault["began_at"]) for fault in history.faults if "drain" in fault["what"]
    ]
    for stream in history.streams:
        run, stored = stream["run"], runs.get(stream["run"])
        events = stored.events if stored else []
        seqs = stream["seqs"]
        first = stream["after"] + 1
        if seqs != list(range(first, first + len(seqs))):
            yield Violation("G5", run, f"after {first - 1} a stream gave {seqs[:20]}")
            continue
        for seq, sha in zip(seqs, stream["shas"], strict=True):
            if seq >= len(events) or events[seq].sha != sha:
                yield Violation("G4", run, f"event {seq} was read and is not what is stored")
        last = first + len(seqs) - 1
        is_drained = any(
            part == f"gateway-{stream['gateway']}"
            and began_at <= stream["at"] <= began_at + DRAIN_S
            for part, began_at in drains
        )
        if stream["end"] in {"clean", "nothing-left"} and not is_drained:
            is_ended = 0 <= last < len(events) and events[last].type in TERMINAL_EVENTS
            if not is_ended:
                yield Violation("G5", run, f"a stream ended after {last}, before the run had")


def check_eras(runs: Runs) -> Iterator[Violation]:
    """G10, G11: an era has one end, nothing comes after it, and the row says the same."""
    for run, stored in runs.items():
        eras = stored.eras()
        for era in eras:
            ends = [number for number, event in enumerate(era) if event.type in TERMINAL_EVENTS]
            for event in era[ends[0] + 1 :] if ends else ():
                is_cancelled = era[ends[0]].type == "RunCancelled"
                promise = "G10" if is_cancelled and event.type == "NodeStarted" else "G11"
                yield Violation(promise, run, f"{event.type} after {era[ends[0]].type}")
        last = eras[-1][-1].type if eras[-1] else ""
        if stored.status in TERMINAL_EVENTS.values() and TERMINAL_EVENTS.get(last) != stored.status:
            yield Violation("G11", run, f"is {stored.status}, and its last event is {last}")
        if last in TERMINAL_EVENTS and TERMINAL_EVENTS[last] != stored.status:
            yield Violation("G11", run, f"has ended with {last} and is {stored.status}")
        if stored.era != len(eras) - 1:
            yield Violation("G11", run, f"is in era {stored.era}, its events know {len(eras) - 1}")


def check_nodes(runs: Runs) -> Iterator[Violation]:
    """G6: a node finishes once, and nothing of it starts after that; a timer fires once, when it is due."""
    for run, stored in runs.items():
        yield from _check_timers(run, stored)
        finished: set[tuple[str, int]] = set()
        started: set[tuple[tuple[str, int], int]] = set()
        for event in stored.events:
            if event.type == "NodeStarted":
                attempt = (event.node, event.body["attempt"])
                if attempt in started:
                    yield Violation("G6", run, f"attempt {attempt} started twice")
                if event.node in finished:
                    yield Violation("G6", run, f"{event.node} started after it had finished")
                started.add(attempt)
            elif event.type == "NodeFinished":
                if event.node in finished:
                    yield Violation("G6", run, f"{event.node} finished twice")
                finished.add(event.node)


def _check_timers(run: str, stored: StoredRun) -> Iterator[Violation]:
    fired = [event for event in stored.events if event.type == "TimerFired"]
    for node, count in Counter(event.node for event in fired).items():
        if count > 1:
            yield Violation("G6", run, f"{node} fired {count} times")
    for event in fired:
        if event.body["timestampMs"] < event.body["firesAtMs"]:
            yield Violation("G6", run, f"{event.node} fired before it was due")


def check_ledger(history: History, runs: Runs, ledger: list[Line]) -> Iterator[Violation]:
    """G6, G7, G10, by what bodies wrote: none begins after its node's end, beside its other attempt, or unheard of."""
    frozen = history.frozen_pids
    begun: dict[tuple[str, str, int], list[Line]] = defaultdict(list)
    for line in ledger:
        key = (line["run"], line["node"], line["iteration"])
        if line["what"] == "begin":
            begun[key].append(line)
            continue
        for other in begun[key]:
            if other["attempt"] > line["attempt"] and line["pid"] not in frozen:
                text = f"{key[1:]}: attempt {line['attempt']} ended while {other['attempt']} was running"
                yield Violation("G7", line["run"], text)
    for (run, node_id, iteration), lines in begun.items():
        stored = runs.get(run)
        if stored is None:
            yield Violation("G1", run, "ran, and is not there")
            continue
        yield from _check_begun(run, stored, (node_id, iteration), lines, frozen)


def _check_begun(
    run: str, stored: StoredRun, node: tuple[str, int], lines: list[Line], frozen: set[int]
) -> Iterator[Violation]:
    repeated = [
        number for number, count in Counter(line["attempt"] for line in lines).items() if count > 1
    ]
    if repeated:
        yield Violation("G6", run, f"attempts {repeated} of {node} ran twice")
    known = {
        event.body["attempt"]
        for event in stored.events
        if event.type == "NodeStarted" and event.node == node
    }
    ends = [event for event in stored.events if event.type == "NodeFinished" and event.node == node]
    for line in lines:
        if line["attempt"] not in known:
            yield Violation("G6", run, f"attempt {line['attempt']} of {node} is in no event")
        if line["pid"] in frozen:
            continue
        for event in ends:
            if line["at"] > event.body["timestampMs"] / 1000 + CLOCK_S:
                yield Violation("G6", run, f"{node} ran again after it had finished")
        if _is_cancelled_at(stored, line["at"]):
            yield Violation("G10", run, f"{node} began after the run was cancelled")


def _is_cancelled_at(stored: StoredRun, at: float) -> bool:
    """Say whether the newest change of era before that moment is a cancel that was clearly before it."""
    is_cancelled = False
    for event in stored.events:
        changed_at = event.body["timestampMs"] / 1000
        if event.type == "RunCancelled" and changed_at + CLOCK_S < at:
            is_cancelled = True
        elif event.type == "RunStatusChanged" and changed_at - CLOCK_S < at:
            is_cancelled = False
    return is_cancelled


def check_decisions(history: History, runs: Runs) -> Iterator[Violation]:
    """G8: a request has one outcome, and answers, events and rows agree on it."""
    made: dict[str, dict[str, list[str]]] = {}
    for run, stored in runs.items():
        made[run] = defaultdict(list)
        open_nodes: set[tuple[str, int]] = set()
        last: dict[tuple[str, int], tuple[str, str | None]] = {}
        for event in stored.events:
            if event.type == "ApprovalRequested":
                open_nodes.add(event.node)
                last.pop(event.node, None)
            elif event.type in DECISIONS:
                if event.node not in open_nodes:
                    yield Violation("G8", run, f"{event.node} was decided twice, or not asked for")
                open_nodes.discard(event.node)
                last[event.node] = (DECISIONS[event.type], event.body.get("decidedBy"))
                made[run][DECISIONS[event.type]].append(str(event.body.get("decidedBy")))
        for node, approval in stored.approvals.items():
            row = (approval["status"], approval["decided_by"])
            if approval["status"] in VERDICTS.values() and last.get(node) != row:
                yield Violation("G8", run, f"{node}: the row says {row}, events {last.get(node)}")
            if approval["status"] not in VERDICTS.values() and node in last:
                yield Violation("G8", run, f"{node}: decided {last[node]}, the row says {row}")
    yield from _check_answers(history.of("decide"), made)


def _check_answers(
    decides: Iterable[Operation], made: dict[str, dict[str, list[str]]]
) -> Iterator[Violation]:
    by_person: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for decide in decides:
        by_person[decide.run, decide.fields["person"]].append(decide)
    for (run, person), asked in by_person.items():
        outcomes = made.get(run, {})
        verdict = VERDICTS[asked[0].fields["verdict"]]
        phases = {one.phase for one in asked}
        if "ok" in phases and not outcomes.get(verdict):
            yield Violation("G8", run, f"{person} was told {verdict}, and no event says so")
        if phases == {"refused"} and person in outcomes.get(verdict, ()):
            yield Violation("G8", run, f"{person} was refused, and the event is {person}'s")


def check_signals(history: History, runs: Runs) -> Iterator[Violation]:
    """G9: what was received is kept once, taken once, in the order of its number."""
    by_run: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.of("signal"):
        by_run[operation.run].append(operation)
    for run, sent in by_run.items():
        stored = runs.get(run)
        rows = {row["signal_id"]: row for row in stored.signals} if stored else {}
        yield from _check_kept(run, sent, rows)
        yield from _check_order(run, sent)
    for run, stored in runs.items():
        yield from _check_taken(run, stored)


def _check_kept(run: str, sent: list[Operation], rows: dict[str, Line]) -> Iterator[Violation]:
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for one in sent:
        by_name[one.fields["signal"]].append(one)
    for name, asked in by_name.items():
        seqs = {one.fields["answer"]["seq"] for one in asked if one.is_ok}
        row = rows.get(name)
        if len(seqs) > 1:
            yield Violation("G9", run, f"signal {name} was given the numbers {sorted(seqs)}")
        elif seqs and row is None:
            yield Violation("G9", run, f"signal {name} was received and is lost")
        elif seqs and row is not None and row["seq"] not in seqs:
            yield Violation("G9", run, f"signal {name} was answered {seqs}, stored {row['seq']}")
        if {one.phase for one in asked} == {"refused"} and row is not None:
            yield Violation("G9", run, f"signal {name} was refused and is kept")


def _check_order(run: str, sent: list[Operation]) -> Iterator[Violation]:
    """Hold numbers to real time: what was answered before another was first sent has the lower number."""
    first_sent: dict[str, float] = {}
    for one in sent:
        name = one.fields["signal"]
        first_sent[name] = min(first_sent.get(name, one.began_at), one.began_at)
    received = [one for one in sent if one.is_ok]
    for one in received:
        for other in received:
            is_before = one.ended_at < first_sent[other.fields["signal"]]
            if is_before and one.fields["answer"]["seq"] >= other.fields["answer"]["seq"]:
                yield Violation("G9", run, "signals are not numbered in the order of answers")


def _check_taken(run: str, stored: StoredRun) -> Iterator[Violation]:
    seqs = [row["seq"] for row in stored.signals]
    if seqs != list(range(len(seqs))):
        yield Violation("G9", run, f"signals have the numbers {seqs}")
    told = [event.body["seq"] for event in stored.events if event.type == "SignalReceived"]
    if told != seqs:
        yield Violation("G9", run, f"signals {seqs} are stored, events tell of {told}")
    taken = [
        (row["consumed_by"], row["consumed_iteration"], row)
        for row in stored.signals
        if row["consumed_by"] is not None
    ]
    places = [(node, iteration) for node, iteration, _ in taken]
    if len(set(places)) < len(places):
        yield Violation("G9", run, "two signals were taken by one wait")
    if [iteration for _, iteration in places] != sorted(iteration for _, iteration in places):
        yield Violation("G9", run, f"signals were taken out of order: {places}")
    for node, iteration, row in taken:
        output = stored.outputs.get((node, iteration))
        if output is not None and output != row["data"]:
            yield Violation("G9", run, f"{node}#{iteration} took {row['data']} and gives {output}")


def check_cancels(history: History, runs: Runs) -> Iterator[Violation]:
    """G10: a cancel that was answered 200 is in the history."""
    for run in {cancel.run for cancel in history.of("cancel") if cancel.is_ok}:
        stored = runs.get(run)
        types = {event.type for event in stored.events} if stored else set()
        if "RunCancelled" not in types:
            yield Violation("G10", run, "a cancel was answered 200, and the run was not cancelled")
    asked = {cancel.run for cancel in history.of("cancel") if cancel.phase != "refused"}
    for run, stored in runs.items():
        if run not in asked and any(event.type == "RunCancelled" for event in stored.events):
            yield Violation("G10", run, "was cancelled, and nobody asked for it")


def check_ends(history: History, runs: Runs) -> Iterator[Violation]:
    """G12, G13: everything that was accepted has ended, soon after the last fault was healed; what was read stays true."""
    healed_at = max(
        (fault["at"] for fault in history.faults if fault["what"] == "healed"), default=None
    )
    for run, stored in runs.items():
        if stored.status not in TERMINAL_EVENTS.values():
            yield Violation("G12", run, f"is still {stored.status}")
        ended_at = stored.events[-1].body["timestampMs"] / 1000 if stored.events else 0
        asked_at = history.last_answers.get(run, 0.0)
        if healed_at is not None and ended_at > max(healed_at, asked_at) + GOES_ON_S:
            yield Violation("G13", run, f"ended {ended_at - healed_at:.1f} s after all was healed")
    for read in history.of("read"):
        kept = runs.get(read.run)
        seen = read.fields.get("answer", {}).get("status")
        if read.is_ok and kept is not None and seen == "finished" and kept.status != seen:
            yield Violation("G11", read.run, f"was read as finished and is {kept.status}")


def read_ledger(path: Path) -> list[Line]:
    """Read what task bodies wrote, in the order in which they did."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
