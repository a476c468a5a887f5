"""The history checker itself: a sound history passes, and each planted anomaly is found, by the promise that it breaks."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.checker import Event, History, Runs, StoredRun, check

T0 = 1_000.0
Line = dict[str, Any]


class Told:
    """A history under construction; every line comes a second after the one before."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.ledger: list[Line] = []
        self.now = T0

    def ask(self, what: str, run: str, phase: str = "ok", **fields: Any) -> None:
        number = len(self.lines)
        for part in ("begin", phase):
            self.line("client-0", what, op=number, run=run, phase=part, **fields)

    def line(self, who: str, what: str, **fields: Any) -> None:
        self.now += 1
        self.lines.append({"at": self.now, "who": who, "what": what, **fields})

    def stream(self, run: str, after: int, events: list[Event], end: str = "clean") -> None:
        self.line(
            "main",
            "stream",
            run=run,
            gateway=0,
            after=after,
            end=end,
            seqs=[event.seq for event in events],
            shas=[event.sha for event in events],
        )

    def body(self, run: str, node: str, at: float, what: str = "begin", attempt: int = 1) -> None:
        line = {"at": at, "what": what, "run": run, "node": node, "iteration": 0, "pid": 7}
        self.ledger.append(line | {"attempt": attempt})


def event(seq: int, kind: str, at: float, /, epoch: int = 1, **fields: Any) -> Event:
    body = {"type": kind, "timestampMs": round(at * 1000), "iteration": 0, **fields}
    return Event(seq, epoch, f"sha-{seq}-{kind}", body)


def histories(*events: tuple[str, dict[str, Any]]) -> list[Event]:
    return [
        event(seq, kind, T0 + seq, **{"epoch": 0 if seq == 0 else 1, **fields})
        for seq, (kind, fields) in enumerate(events)
    ]


Case = tuple[Told, Runs]


def sound() -> Case:
    """Three runs: one with a node, an approval and two signals; one that was cancelled and resumed; one that failed."""
    told, node = Told(), {"nodeId": "a", "attempt": 1}
    whole = StoredRun("finished", 0, has_request=True)
    whole.events = histories(
        ("RunStarted", {}),
        ("NodeStarted", node),
        ("NodeFinished", node),
        ("ApprovalRequested", {"nodeId": "ok"}),
        ("ApprovalGranted", {"nodeId": "ok", "decidedBy": "ann"}),
        ("SignalReceived", {"seq": 0}),
        ("SignalReceived", {"seq": 1}),
        ("RunFinished", {}),
    )
    whole.approvals["ok", 0] = {"status": "approved", "decided_by": "ann"}
    whole.signals = [
        {"seq": n, "signal_id": f"s{n}", "data": n, "consumed_by": "l", "consumed_iteration": n}
        for n in range(2)
    ]
    whole.outputs = {("l", 0): 0, ("l", 1): 1}
    resumed = StoredRun("finished", 1, has_request=True)
    resumed.events = histories(
        ("RunStarted", {}),
        ("NodeStarted", node),
        ("NodeCancelled", node),
        ("RunCancelled", {}),
        ("RunStatusChanged", {"status": "queued"}),
        ("NodeStarted", {**node, "attempt": 2}),
        ("NodeFinished", {**node, "attempt": 2}),
        ("RunFinished", {}),
    )
    failed = StoredRun("failed", 0, has_request=True)
    failed.events = histories(
        ("RunStarted", {}),
        ("ApprovalRequested", {"nodeId": "ok"}),
        ("ApprovalDenied", {"nodeId": "ok", "decidedBy": "bob"}),
        ("RunFailed", {}),
    )
    failed.approvals["ok", 0] = {"status": "denied", "decided_by": "bob"}
    for run in ("whole", "resumed", "failed"):
        told.ask("start", run)
    told.ask("start", "whole", "refused")
    told.ask("start", "never", "refused")
    told.ask("start", "perhaps", "unknown")
    told.ask("signal", "whole", signal="s0", answer={"seq": 0})
    told.ask("signal", "whole", signal="s1", answer={"seq": 1})
    told.ask("signal", "whole", signal="s0", answer={"seq": 0})
    told.ask("signal", "whole", "refused", signal="s9")
    decision: dict[str, Any] = {"node": "ok", "iteration": 0}
    told.ask("decide", "whole", verdict="approve", person="ann", **decision)
    told.ask("decide", "whole", "refused", verdict="deny", person="bob", **decision)
    told.ask("decide", "failed", verdict="deny", person="bob", **decision)
    told.ask("cancel", "resumed")
    told.ask("read", "whole", answer={"status": "finished"})
    told.stream("whole", -1, whole.events[:3], "cut")
    told.stream("whole", 2, whole.events[3:])
    told.line("nemesis", "kill-child", killed=[9])
    told.line("nemesis", "healed")
    told.body("whole", "a", T0 + 1)
    told.body("whole", "a", T0 + 2, "end")
    told.body("resumed", "a", T0 + 1)
    told.body("resumed", "a", T0 + 5, attempt=2)
    return told, {"whole": whole, "resumed": resumed, "failed": failed}


def judge(told: Told, runs: Runs) -> list[str]:
    found = check(History(told.lines), runs, told.ledger)
    return [violation.promise for violation in found]


def test_a_sound_history_passes() -> None:
    assert judge(*sound()) == []


def put(run: StoredRun, seq: int, /, **fields: Any) -> None:
    """Change an event's own columns."""
    run.events[seq] = replace(run.events[seq], **fields)


def append(run: StoredRun, kind: str, **fields: Any) -> Event:
    """Add an event at the end; return it."""
    seq = len(run.events)
    run.events.append(event(seq, kind, T0 + seq, **fields))
    return run.events[-1]


def operation(told: Told, what: str, number: int = 0) -> Line:
    """Return the end of an operation."""
    ends = [line for line in told.lines if line["what"] == what and line["phase"] != "begin"]
    return ends[number]


def stream(told: Told, number: int) -> Line:
    return [line for line in told.lines if line["what"] == "stream"][number]


def swap_numbers(told: Told, runs: Runs) -> None:
    """Number two signals against the order of their answers, everywhere alike."""
    rows = runs["whole"].signals
    rows[0]["signal_id"], rows[1]["signal_id"] = "s1", "s0"
    for number, seq in ((0, 1), (1, 0), (2, 1)):
        operation(told, "signal", number)["answer"] = {"seq": seq}


def end_at(run: StoredRun, at: float) -> None:
    last = run.events[-1]
    put(run, last.seq, body=last.body | {"timestampMs": round(at * 1000)})


ANOMALIES: dict[str, tuple[str, Callable[[Told, Runs], Any]]] = {
    "an accepted run is lost": ("G1", lambda _t, r: r.pop("failed")),
    "a refused run is there": ("G1", lambda _t, r: r.update(never=copy.deepcopy(r["failed"]))),
    "a run nobody asked for": ("G1", lambda _t, r: r.update(ghost=copy.deepcopy(r["failed"]))),
    "half a run": ("G1", lambda _t, r: setattr(r["failed"], "has_request", False)),
    "a run without its first event": ("G1", lambda _t, r: r["failed"].events.clear()),
    "an id accepted twice": ("G3", lambda t, _r: t.ask("start", "whole")),
    "the epoch falls": ("G2", lambda _t, r: put(r["whole"], 3, epoch=5)),
    "an event is missing": ("G4", lambda _t, r: r["whole"].events.pop(1)),
    "a number is given twice": ("G4", lambda _t, r: put(r["whole"], 2, seq=1)),
    "what was read has changed": ("G4", lambda _t, r: put(r["whole"], 4, sha="other")),
    "an event was read and is gone": ("G4", lambda t, _r: stream(t, 1)["shas"].__setitem__(0, "x")),
    "a stream leaves one out": (
        "G5",
        lambda t, _r: [stream(t, 1)[key].pop(0) for key in ("seqs", "shas")],
    ),
    "a stream gives one twice": (
        "G5",
        lambda t, _r: [stream(t, 0)[key].append(stream(t, 0)[key][-1]) for key in ("seqs", "shas")],
    ),
    "a stream ends before its run": ("G5", lambda t, _r: stream(t, 0).update(end="clean")),
    "nothing is left before the end": (
        "G5",
        lambda t, _r: stream(t, 0).update(end="nothing-left"),
    ),
    "a node finishes twice": (
        "G6",
        lambda _t, r: r["whole"].events.insert(
            3, event(3, "NodeFinished", T0 + 2, nodeId="a", attempt=1)
        ),
    ),
    "a finished node starts again": (
        "G6",
        lambda _t, r: (
            append(r["failed"], "NodeFinished", nodeId="z", attempt=1),
            append(r["failed"], "NodeStarted", nodeId="z", attempt=2),
        ),
    ),
    "an attempt starts twice": (
        "G6",
        lambda _t, r: put(r["resumed"], 5, body=r["resumed"].events[5].body | {"attempt": 1}),
    ),
    "a finished node's body runs again": ("G6", lambda t, _r: t.body("whole", "a", T0 + 9)),
    "an attempt's body runs twice": ("G6", lambda t, _r: t.body("whole", "a", T0 + 1.5)),
    "a body runs that no event knows": (
        "G6",
        lambda t, _r: t.body("whole", "b", T0 + 1),
    ),
    "a timer fires twice": (
        "G6",
        lambda _t, r: [append(r["failed"], "TimerFired", nodeId="t", firesAtMs=0) for _ in "12"],
    ),
    "a timer fires too early": (
        "G6",
        lambda _t, r: append(r["failed"], "TimerFired", nodeId="t", firesAtMs=(T0 + 99) * 1000),
    ),
    "two attempts at once": (
        "G7",
        lambda t, _r: t.body("resumed", "a", T0 + 5.5, "end", attempt=1),
    ),
    "two decisions of one request": (
        "G8",
        lambda _t, r: put(
            r["whole"],
            5,
            body=r["whole"].events[4].body | {"type": "ApprovalDenied", "decidedBy": "bob"},
        ),
    ),
    "the row is decided otherwise": (
        "G8",
        lambda _t, r: r["whole"].approvals["ok", 0].update(status="denied"),
    ),
    "the row knows another person": (
        "G8",
        lambda _t, r: r["whole"].approvals["ok", 0].update(decided_by="eve"),
    ),
    "a decision that no row has": (
        "G8",
        lambda _t, r: r["whole"].approvals["ok", 0].update(status="requested"),
    ),
    "approved by answer, by no event": (
        "G8",
        lambda t, _r: operation(t, "decide", 1).update(phase="ok"),
    ),
    "refused by answer, decided by event": (
        "G8",
        lambda t, _r: operation(t, "decide").update(phase="refused"),
    ),
    "a signal is lost": ("G9", lambda _t, r: r["whole"].signals.pop()),
    "a signal has two numbers": (
        "G9",
        lambda t, _r: operation(t, "signal", 2).update(answer={"seq": 1}),
    ),
    "a refused signal is kept": (
        "G9",
        lambda _t, r: r["whole"].signals[0].update(signal_id="s9"),
    ),
    "signals against the order of answers": ("G9", swap_numbers),
    "a signal without its event": (
        "G9",
        lambda _t, r: put(r["whole"], 6, body=r["whole"].events[6].body | {"type": "NodeOutput"}),
    ),
    "one wait takes two signals": (
        "G9",
        lambda _t, r: r["whole"].signals[1].update(consumed_iteration=0),
    ),
    "signals are taken out of order": (
        "G9",
        lambda _t, r: [
            row.update(consumed_iteration=1 - row["consumed_iteration"])
            for row in r["whole"].signals
        ],
    ),
    "a wait gives what was not sent": (
        "G9",
        lambda _t, r: r["whole"].outputs.update({("l", 1): 7}),
    ),
    "a cancel was answered and is not there": ("G10", lambda t, _r: t.ask("cancel", "whole")),
    "a cancel that nobody asked for": (
        "G10",
        lambda t, _r: operation(t, "cancel").update(phase="refused"),
    ),
    "a node starts after the cancel": (
        "G10",
        lambda _t, r: put(r["resumed"], 4, body=r["resumed"].events[5].body),
    ),
    "a body begins after the cancel": (
        "G10",
        lambda t, _r: t.body("resumed", "a", T0 + 3.5, attempt=1),
    ),
    "an era has two ends": ("G11", lambda _t, r: append(r["failed"], "RunFinished")),
    "row and history disagree": ("G11", lambda _t, r: setattr(r["failed"], "status", "cancelled")),
    "finished without its event": ("G11", lambda _t, r: r["whole"].events.pop()),
    "an era that no event opened": ("G11", lambda _t, r: setattr(r["failed"], "era", 1)),
    "finished, and then not": (
        "G11",
        lambda t, _r: t.ask("read", "failed", answer={"status": "finished"}),
    ),
    "a run stands still": ("G12", lambda _t, r: setattr(r["failed"], "status", "running")),
    "a run goes on too late": ("G13", lambda t, r: end_at(r["failed"], t.now + 60)),
}


@pytest.mark.parametrize("name", ANOMALIES)
def test_an_anomaly_is_found_by_the_promise_that_it_breaks(name: str) -> None:
    promise, plant = ANOMALIES[name]
    told, runs = sound()
    plant(told, runs)
    assert promise in judge(told, runs)


def test_an_operation_without_an_end_may_have_happened_or_not() -> None:
    told, runs = sound()
    for run in ("perhaps", "whole"):
        told.lines.append(
            {
                "at": told.now,
                "who": "client",
                "what": "start",
                "op": run,
                "run": run,
                "phase": "begin",
            }
        )
    assert judge(told, runs) == []
    runs["perhaps"] = copy.deepcopy(runs["failed"])
    runs["perhaps"].approvals.clear()
    runs["perhaps"].events = histories(("RunStarted", {}), ("RunFailed", {}))
    assert judge(told, runs) == []


def test_what_a_frozen_process_does_besides_writing_is_not_promised() -> None:
    told, runs = sound()
    told.body("whole", "a", T0 + 9)
    told.ledger[-1]["attempt"] = 2
    put(runs["whole"], 6, body=runs["whole"].events[1].body | {"attempt": 2})
    assert "G6" in judge(told, runs)
    told, runs = sound()
    told.body("resumed", "a", T0 + 5.5, "end", attempt=1)
    told.lines.insert(0, {"at": T0, "who": "nemesis", "what": "freeze-child", "frozen": [7]})
    assert judge(told, runs) == []
