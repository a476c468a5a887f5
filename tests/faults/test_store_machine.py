"""The store under any order of what owners, clients and undertakers do, with a clock that is moved by hand.

Two owners keep what they once claimed, as frozen ones do, and try to commit on it later. After each step every run's rows and
history must fit together; what a step was answered must be what the rows allowed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from asyncpg import PostgresError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from smithers.engine.facts import NodeFact
from smithers.engine.turn import ApprovalChange, Turn
from smithers.ids import RunId, WorkerId
from smithers.states import NodeState, RunStatus
from smithers.store import claims, commits, owners
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.commits import Committed, Outcome, TurnCommit
from tests.support.postgres import fresh_database
from tests.support.turns import (
    IDENTITY,
    OVER,
    Ground,
    a_turn,
    as_pool,
    change,
    ended,
    key_of,
    parked,
    said,
)

TERMINAL = {"RunFinished": "finished", "RunFailed": "failed", "RunCancelled": "cancelled"}
DECIDE = """SELECT (smithers.decide_approval_v5(
    ROW($1, 'ok', 0, $2::boolean, NULL, $3, NULL, NULL, NULL, false)::smithers.decision_v1)).outcome"""
SIGNAL = "SELECT outcome, seq FROM smithers.send_signal_v2($1, 'letter', NULL, '1', NULL, $2)"
RESUME = "SELECT outcome FROM smithers.resume_run_v3($1, NULL, NULL, NULL, NULL, NULL)"
MOVABLE_CLOCK = """
    CREATE TABLE public.clock (at timestamptz NOT NULL);
    INSERT INTO public.clock VALUES ('2026-11-22 12:00+00');
    CREATE OR REPLACE FUNCTION smithers.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT at FROM public.clock $$;
"""
NAMES = ("one", "two")
RUNS = ("a", "b", "c")
ask_which = st.sampled_from(RUNS)
ask_whom = st.sampled_from(NAMES)


@dataclass
class Owner:
    """A worker, and what it believes that it holds."""

    worker_id: WorkerId
    held: dict[str, ClaimedRun]
    numbers: dict[str, int]  # of its last commit of each run
    last: dict[str, TurnCommit]


class Bench:
    """The database, from code that does not wait."""

    def __init__(self, runner: asyncio.Runner, ground: Ground) -> None:
        self.ground = ground
        self._runner = runner
        self.round = count()

    def do(self, doing: Any) -> Any:
        return self._runner.run(doing)

    def value(self, sql: str, *given: Any) -> Any:
        return self.do(self.ground.sql.fetchval(sql, *given))

    def row(self, sql: str, *given: Any) -> Any:
        return self.do(self.ground.sql.fetchrow(sql, *given))


class Machine(RuleBasedStateMachine):
    """One example: three run names in a queue of its own."""

    bench: Bench

    @initialize()
    def begin(self) -> None:
        self.prefix = f"x{next(self.bench.round)}-"
        self.owners = {name: self.hire() for name in NAMES}
        self.people = count()
        self.started: set[str] = set()
        self.decided: dict[str, list[tuple[str, str]]] = {}
        self.signal_ids: dict[str, dict[str, int]] = {}
        self.resumes = dict.fromkeys(RUNS, 0)

    def name(self, run: str) -> str:
        return self.prefix + run

    def hire(self) -> Owner:
        worker_id = WorkerId(uuid4())
        register = owners.register_worker(
            as_pool(self.bench.ground.sql),
            worker_id,
            pool_id=worker_id,
            process=IDENTITY,
            queues=(self.prefix,),
        )
        self.bench.do(register)
        return Owner(worker_id, {}, {}, {})

    def stored(self, run: str) -> Any:
        return self.bench.row("SELECT * FROM smithers.runs WHERE run_id = $1", self.name(run))

    @rule(run=ask_which)
    def start(self, run: str) -> None:
        ground = self.bench.ground
        try:
            self.bench.do(ground.start(self.name(run), queue=self.prefix))
        except AssertionError:  # the name is taken
            assert run in self.started
        else:
            assert run not in self.started
            self.started.add(run)

    @rule(whom=ask_whom, kind=st.sampled_from([ClaimKind.MANY, ClaimKind.SUSPECT]))
    def claim(self, whom: str, kind: ClaimKind) -> None:
        owner, ground = self.owners[whom], self.bench.ground
        claimed = self.bench.do(
            claims.claim_runs(
                ground.sql, worker_id=owner.worker_id, queue=self.prefix, limit=2, kind=kind
            )
        )
        for claim in claimed:
            run = claim.run_id.removeprefix(self.prefix)
            owner.held[run] = claim
            owner.numbers[run] = 0

    def commit(self, whom: str, run: str, turn: Turn) -> None:
        """Commit a turn on what the owner believes; the answer is what the rows allow."""
        owner, before = self.owners[whom], self.stored(run)
        claim = owner.held[run]
        owner.numbers[run] += 1
        is_cancelling = before["cancel_requested_at"] is not None
        fields: dict[str, Any] = {"is_cancelling": is_cancelling}
        told = change(claim, turn, owner.numbers[run], **fields)
        answer = self.send(owner, told)
        owner.last[run] = told
        is_ours = before["epoch"] == claim.epoch and before["owner_id"] == owner.worker_id
        if not is_ours:
            # A number that was used is answered as kept, whoever asks: nothing is written again.
            assert answer.outcome in {Outcome.LOST, Outcome.COMMITTED}
            assert self.stored(run) == before
            if before["epoch"] != claim.epoch:
                assert answer.outcome is Outcome.LOST
            owner.held.pop(run)
        elif turn.ending is not None and claim.last_seq != before["last_seq"]:
            assert answer.outcome is Outcome.STALE
            assert self.stored(run) == before
            owner.held[run] = replace(claim, last_seq=before["last_seq"])  # it reloads
        else:
            assert answer.outcome is Outcome.COMMITTED
            owner.held[run] = replace(claim, last_seq=answer.last_seq)
            if turn.ending is not None:
                owner.held.pop(run)

    def send(self, owner: Owner, told: TurnCommit) -> Committed:
        call = commits._commit_group(self.bench.ground.sql, owner.worker_id, [told])
        (answer,) = self.bench.do(call)
        return answer

    def holding(self, whom: str, choose: int) -> str | None:
        held = sorted(self.owners[whom].held)
        return held[choose % len(held)] if held else None

    @rule(whom=ask_whom, choose=st.integers(0, 2))
    def say(self, whom: str, choose: int) -> None:
        if run := self.holding(whom, choose):
            self.commit(whom, run, said("something"))

    @rule(whom=ask_whom, choose=st.integers(0, 2))
    def begin_a_body(self, whom: str, choose: int) -> None:
        if run := self.holding(whom, choose):
            fact = NodeFact(state=NodeState.IN_PROGRESS, kind="task", attempt=1)
            self.commit(whom, run, a_turn(nodes={key_of("t"): fact}, events=said("begun").events))

    @rule(whom=ask_whom, choose=st.integers(0, 2), due_in_ms=st.sampled_from([None, 0, 60_000]))
    def park(self, whom: str, choose: int, due_in_ms: int | None) -> None:
        if run := self.holding(whom, choose):
            now_ms = self.bench.value("SELECT smithers.to_ms(smithers.clock())")
            due_ms = None if due_in_ms is None else now_ms + due_in_ms
            self.commit(whom, run, parked(RunStatus.WAITING_EVENT, due_ms))

    @rule(whom=ask_whom, choose=st.integers(0, 2))
    def ask(self, whom: str, choose: int) -> None:
        if run := self.holding(whom, choose):
            turn = parked(RunStatus.WAITING_APPROVAL)
            turn.approvals.append(ApprovalChange(key_of("ok"), json.dumps({"title": "?"})))
            fact = NodeFact(state=NodeState.WAITING_APPROVAL, kind="approval", attempt=1)
            turn.nodes[key_of("ok")] = fact
            self.commit(whom, run, turn)

    @rule(
        whom=ask_whom,
        choose=st.integers(0, 2),
        status=st.sampled_from([RunStatus.FINISHED, RunStatus.FAILED]),
    )
    def end(self, whom: str, choose: int, status: RunStatus) -> None:
        run = self.holding(whom, choose)
        if run is None:
            return
        # Where a cancel was asked for, its owner may make no other end.
        is_cancelling = self.stored(run)["cancel_requested_at"] is not None
        self.commit(whom, run, ended(RunStatus.CANCELLED if is_cancelling else status))

    @rule(whom=ask_whom, run=ask_which)
    def repeat(self, whom: str, run: str) -> None:
        """A copy of a commit that was stuck on the way arrives late: nothing is written again."""
        owner = self.owners[whom]
        if run in owner.last:
            before = self.stored(run)
            self.send(owner, owner.last[run])
            assert self.stored(run) == before

    @rule(whom=ask_whom)
    def release(self, whom: str) -> None:
        owner = self.owners[whom]
        names = [RunId(self.name(run)) for run in owner.held]
        self.bench.do(claims.release_runs(as_pool(self.bench.ground.sql), owner.worker_id, names))

    @rule(whom=ask_whom, death=st.sampled_from(["exit--9", "silent"]))
    def bury(self, whom: str, death: str) -> None:
        """Give an owner up for dead; it does not know, and what it holds it still tries to commit."""
        owner = self.owners[whom]
        self.bench.do(owners.bury_worker(as_pool(self.bench.ground.sql), owner.worker_id, death))
        for run in list(owner.held):
            before = self.stored(run)
            if before["owner_id"] != owner.worker_id:
                self.commit(whom, run, said("from the grave"))
        self.owners[whom] = self.hire()

    @rule(run=ask_which, is_approved=st.booleans())
    def decide(self, run: str, is_approved: bool) -> None:
        person = f"person-{next(self.people)}"
        outcome = self.bench.value(DECIDE, self.name(run), is_approved, person)
        if outcome == "decided":
            verdict = "approved" if is_approved else "denied"
            self.decided.setdefault(run, []).append((verdict, person))

    @rule(run=ask_which, signal_id=st.sampled_from(["s1", "s2", "s3"]))
    def signal(self, run: str, signal_id: str) -> None:
        outcome, seq = self.bench.row(SIGNAL, self.name(run), signal_id)
        known = self.signal_ids.setdefault(run, {})
        if outcome == "received":
            assert signal_id not in known
            assert seq == len(known)
            known[signal_id] = seq
        elif outcome == "repeated":
            assert known[signal_id] == seq

    @rule(run=ask_which)
    def cancel(self, run: str) -> None:
        before = self.stored(run)
        outcome = self.bench.value("SELECT outcome FROM smithers.cancel_run_v1($1)", self.name(run))
        if before is None:
            assert outcome == "not-found"
        elif before["status"] in TERMINAL.values():
            assert outcome == "not-active"
        elif before["owner_id"] is None:
            assert outcome == "cancelled"
        else:
            assert outcome == "requested"

    @rule(run=ask_which)
    def resume(self, run: str) -> None:
        before = self.stored(run)
        outcome = self.bench.value(RESUME, self.name(run))
        if outcome == "resumed":
            assert before["status"] in {"failed", "cancelled"}
            self.resumes[run] += 1

    @rule(seconds=st.sampled_from([-30, 1, 61]))
    def move_the_clock(self, seconds: int) -> None:
        move = "UPDATE public.clock SET at = at + make_interval(secs => $1)"
        self.bench.do(self.bench.ground.sql.execute(move, seconds))

    @invariant()
    @precondition(lambda self: hasattr(self, "started"))
    def everything_fits_together(self) -> None:
        for run in self.started:
            self.look_at(run)

    def look_at(self, run: str) -> None:
        row = self.stored(run)
        events = self.bench.do(
            self.bench.ground.sql.fetch(
                "SELECT seq, epoch, payload FROM smithers.events WHERE run_id = $1 ORDER BY seq",
                self.name(run),
            )
        )
        bodies = [json.loads(event["payload"]) for event in events]
        types = [body["type"] for body in bodies]
        assert [event["seq"] for event in events] == list(range(row["last_seq"] + 1))
        epochs = [event["epoch"] for event in events]
        assert epochs == sorted(epochs)
        assert epochs[-1] <= row["epoch"]
        eras = _eras(bodies)
        assert row["era"] == len(eras) - 1 == self.resumes[run]
        ends = [[kind for kind in era if kind in OVER] for era in eras]
        assert all(
            len(end) == 1 and era[-1] == end[0] for end, era in zip(ends[:-1], eras, strict=False)
        )
        assert ends[-1] == ([types[-1]] if row["status"] in TERMINAL.values() else [])
        if ends[-1]:
            assert TERMINAL[types[-1]] == row["status"]
            assert row["owner_id"] is None
            assert row["due_at"] is None
        assert row["owner_id"] is None or row["due_at"] is None
        said_so = [
            ("approved" if body["type"] == "ApprovalGranted" else "denied", body["decidedBy"])
            for body in bodies
            if body["type"] in {"ApprovalGranted", "ApprovalDenied"}
        ]
        assert said_so == self.decided.get(run, [])
        heard = [body["seq"] for body in bodies if body["type"] == "SignalReceived"]
        assert heard == list(range(len(self.signal_ids.get(run, {}))))


def _eras(bodies: list[dict[str, Any]]) -> list[list[str]]:
    eras: list[list[str]] = [[]]
    for body in bodies:
        if body["type"] == "RunStatusChanged" and eras[-1] and eras[-1][-1] in OVER:
            eras.append([])
        eras[-1].append(body["type"])
    return eras


@asynccontextmanager
async def opened(server: str, template: str) -> AsyncIterator[Ground]:
    async with fresh_database(server, template) as dsn, Ground(dsn) as ground:
        await ground.sql.execute(MOVABLE_CLOCK)
        yield ground


@pytest.fixture
def bench(postgres_server: str, database_template: str) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        ground = runner.run(stack.enter_async_context(opened(postgres_server, database_template)))
        try:
            yield Bench(runner, ground)
        finally:
            runner.run(stack.aclose())


@contextmanager
def machine_on(bench: Bench) -> Iterator[type[Machine]]:
    yield type("MachineHere", (Machine,), {"bench": bench})


def play(bench: Bench, examples: int, steps: int, *, is_random: bool) -> None:
    with machine_on(bench) as machine:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=not is_random,
                phases=[Phase.generate, Phase.shrink],
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize(
    ("examples", "steps", "is_random"),
    [
        pytest.param(15, 30, False, id="some"),
        pytest.param(300, 60, True, id="many", marks=(pytest.mark.slow, pytest.mark.timeout(1800))),
    ],
)
def test_the_rows_fit_together_after_any_steps(
    bench: Bench, examples: int, steps: int, is_random: bool
) -> None:
    play(bench, examples, steps, is_random=is_random)


@dataclass(frozen=True)
class Careless:
    """A line of a function of the store, what a careless author would have written there, and the steps that tell."""

    old: str
    new: str
    steps: Callable[[Machine], None]


def displace(machine: Machine) -> None:
    machine.claim("one", ClaimKind.MANY)
    machine.bury("one", "silent")  # which goes on writing


def send_again(machine: Machine) -> None:
    machine.claim("one", ClaimKind.MANY)
    machine.say("one", 0)
    machine.repeat("one", "a")


def park_on_news(machine: Machine) -> None:
    machine.claim("one", ClaimKind.MANY)
    machine.signal("a", "s1")
    machine.park("one", 0, None)


def signal_again(machine: Machine) -> None:
    machine.signal("a", "s1")
    machine.signal("a", "s1")


def cancel_again(machine: Machine) -> None:
    machine.cancel("a")
    machine.cancel("a")


CARELESS = {
    "an owner's epoch is not looked at": Careless(
        "r.epoch = c.epoch AND r.owner_id = p_worker_id AS is_ours", "true AS is_ours", displace
    ),
    "a late copy is written again": Careless(
        "r.epoch = c.epoch AND r.commit_no >= c.commit_no AS is_repeated",
        "false AS is_repeated",
        send_again,
    ),
    "what came meanwhile is not looked at": Careless(
        "ELSIF v_run.is_fresh THEN", "ELSIF true THEN", park_on_news
    ),
    "a signal is kept twice": Careless("s.signal_id = p_signal_id", "false", signal_again),
    "a cancelled run is cancelled again": Careless(
        "IF v_run.status IN ('finished', 'failed', 'cancelled', 'continued') THEN outcome := 'not-active'",
        "IF false THEN outcome := 'not-active'",
        cancel_again,
    ),
}


@pytest.mark.parametrize("what", CARELESS)
def test_a_careless_store_is_found_out(bench: Bench, what: str) -> None:
    careless = CARELESS[what]
    with machine_on(bench) as machine:
        take(machine(), careless.steps)  # the same steps fit a store that is not careless
        find = "SELECT pg_get_functiondef(oid) AS text FROM pg_proc WHERE strpos(prosrc, $1) > 0"
        sources = bench.do(bench.ground.sql.fetch(find, careless.old))
        assert sources, "the store is written otherwise by now"
        for source in sources:
            bench.do(bench.ground.sql.execute(source["text"].replace(careless.old, careless.new)))
        with pytest.raises((AssertionError, PostgresError)):
            take(machine(), careless.steps)


def take(machine: Machine, steps: Callable[[Machine], None]) -> None:
    machine.begin()
    machine.start("a")
    steps(machine)
    machine.everything_fits_together()
