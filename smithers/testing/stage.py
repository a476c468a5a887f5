"""The environment of a rehearsal: a worker's executors in this process, a database whose clock is moved by hand."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext, suppress
from contextvars import Context as Variables
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from smithers.defaults import DEFAULT_QUEUE
from smithers.engine.children import next_run_id
from smithers.events import Envelope, EventType, event_parts
from smithers.ids import NodeId, RunId, SourceHash, WorkerId
from smithers.outputs import encode_output
from smithers.source.loading import find_workflow
from smithers.store import node_reads, outside, rehearsals, starts
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.connections import Pool, open_connection, open_pool
from smithers.store.forms import Answer, answer_form, check_form, read_form
from smithers.store.owners import register_worker
from smithers.store.refusals import NodeNotWaiting, RunExists, RunNotFound
from smithers.store.tails import Cursor, read_tails
from smithers.store.worker_store import WorkerStore, open_worker_store
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet
from smithers.workflow import Workflow
from worker.bodies import Bodies
from worker.claimer import Claimer
from worker.clock import DatabaseClock
from worker.executor import Shared
from worker.loads import Loads
from worker.meters import ChildMeters
from worker.processes import identify
from worker.settings import PoolSettings
from worker.toolboxes import open_workshop

LOOK_EVERY_S: Final = 0.005
MAX_LISTED: Final = 10_000
MAX_LISTED_BYTES: Final = 1 << 30

# An answer to a question: yes or no, {"selected": …} or {"ranked": […]}, or the value of a form.
Saying = Any
People = Mapping[str, Saying | Callable[["Question"], Saying]]


class Person(NamedTuple):
    """Who answers a question, and with which scopes; None: anybody, on a server without tokens."""

    name: str | None = None
    scopes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a run asks a person."""

    node_id: str
    iteration: int
    mode: str  # approve, select, rank or form
    title: str | None
    summary: str | None
    options: Sequence[str] | None
    schema: Mapping[str, Any] | None


class RehearsalTimeout(AssertionError):
    """A run did not settle in time."""


class Given:
    """The workflows that tests pass: none is loaded from a file."""

    def __init__(self) -> None:
        self._given: dict[tuple[SourceHash, str | None], Workflow[Any]] = {}

    def take(self, workflow: Workflow[Any]) -> SourceHash:
        """Register a workflow as a version of its own of its module: a test may define several of one name."""
        source_hash = SourceHash(f"{workflow.builder.__module__}#{len(self._given)}")
        self._given[source_hash, workflow.name] = workflow
        return source_hash

    def using(self, _source_hash: SourceHash) -> AbstractContextManager[None]:
        """Do nothing: none is unloaded."""
        return nullcontext()

    async def get(self, source_hash: SourceHash, export: str | None) -> Workflow[Any]:
        """Return a registered workflow, or another one of the same module."""
        found = self._given.get((source_hash, export))
        return found or find_workflow(sys.modules[source_hash.partition("#")[0]], export)

    def find_export(self, source_hash: SourceHash, workflow: Workflow[Any]) -> str:
        """Register a workflow that a test's own starts, by its name."""
        self._given[source_hash, workflow.name] = workflow
        return workflow.name


class Stage:
    """The environment of a rehearsal; its methods are for the loop's thread."""

    def __init__(self, *, pool: Pool, connection: Any) -> None:
        self.pool = pool
        self.given = Given()
        self.clock = DatabaseClock()
        self.claimer: Claimer
        self.lane: outside.OutsideLane
        self._connection = connection
        self._offset_s = 0.0
        self._variables: dict[RunId, Variables] = {}

    def variables_of(self, claim: ClaimedRun) -> Variables:
        """Return the context variables of the start of a run; its children and continuations have the same."""
        variables = self._variables[claim.parent_run_id or claim.run_id]
        self._variables[claim.run_id] = self._variables[next_run_id(claim.run_id)] = variables
        # A copy: no other run sees what a run's code sets.
        return variables.copy()

    async def start(
        self, workflow: Workflow[Any], run_id: RunId, given: str, auth: str, variables: Variables
    ) -> None:
        """Start a run, whose code sees these context variables; raises RunExists."""
        envelope = Envelope.of(run_id, workflow.name)
        head, tail = event_parts(EventType.RUN_STARTED, envelope, {})
        start = starts.RunStart(
            run_id=run_id,
            workflow_name=workflow.name,
            workflow_path=f"{workflow.builder.__module__}.py",
            workflow_export=workflow.name,
            source_hash=self.given.take(workflow),
            input=given,
            config="{}",
            auth=auth,
            trace_context=None,
            parent_run_id=None,
            queue=DEFAULT_QUEUE,
            priority=0,
            head=head,
            tail=tail,
        )
        self._variables[run_id] = variables
        (is_new,) = await starts.start_runs(self._connection, [start])
        if isinstance(is_new, Exception):
            raise is_new
        if not is_new:
            raise RunExists
        self.claimer.hear_due()

    async def until_at_rest(self, run_id: RunId, people: People, limit_s: float) -> None:
        """Wait until a run can only be moved from outside, and the script has no answer; raises RehearsalTimeout."""
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    is_at_rest = await self._is_at_rest(run_id)
                    # While bodies run, too; and after that read, so that a settled run has asked all its questions.
                    if not await self._ask(run_id, people) and is_at_rest:
                        return
                    # The database offers no event to wait for.
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            rest = await rehearsals.find_rest(self._connection, run_id)
            raise RehearsalTimeout(f"the run is still {rest.status} after {limit_s:g} s") from None

    async def advance(self, by_s: float) -> None:
        """Move the database's clock ahead, and wake everything that depends on it."""
        self._offset_s += by_s
        await rehearsals.move_clock(self._connection, self._offset_s)
        self.clock.hear(await rehearsals.read_clock(self._connection))
        self.claimer.hear_news(None)
        self.claimer.hear_due()

    async def events(self, run_id: RunId) -> list[dict[str, Any]]:
        """Read a run's events, from the first on; raise RunNotFound if there is no such run."""
        payloads: list[str] = []
        while True:
            asked = Cursor(run_id, len(payloads) - 1)
            (found,) = await read_tails(self._connection, [(asked,)])
            if asked not in found:
                raise RunNotFound
            if not found[asked].payloads:
                return [json.loads(payload) for payload in payloads]
            payloads += found[asked].payloads

    async def questions(self, run_id: RunId) -> list[Question]:
        """List a run's questions to people."""
        rows, _ = await node_reads.list_approvals(
            self.pool, after=None, limit=MAX_LISTED, page_bytes=MAX_LISTED_BYTES
        )
        return [_question(row) for row in rows if row.run_id == run_id]

    async def say(self, run_id: RunId, node_id: NodeId, saying: Saying, by: Person) -> None:
        """Answer a question; the store's refusal is raised, FormMisfit for a value that does not fit the form."""
        asked = [one for one in await self.questions(run_id) if one.node_id == node_id]
        iteration = asked[0].iteration if asked else 0
        if asked and asked[0].mode == "form":
            filled_in = encode_output(saying, what="the form")
            await self._fill_in(run_id, node_id, iteration, filled_in, by)
        else:
            choice = saying if isinstance(saying, Mapping) else None
            decision = outside.Decision(
                run_id=run_id,
                node_id=node_id,
                iteration=iteration,
                is_approved=bool(saying),
                note=None,
                decided_by=by.name,
                decision=None if choice is None else json.dumps(dict(choice)),
                user=by.name,
                scopes=by.scopes,
            )
            await outside.decide(self.lane, decision)
        self._tell(run_id)

    async def signal(self, run_id: RunId, name: str, data: str, correlation_id: str | None) -> None:
        """Send a signal; `data` is JSON."""
        sent = outside.SignalSent(
            run_id=run_id,
            signal_name=name,
            correlation_id=correlation_id,
            data=data,
            received_by=None,
            signal_id=None,
        )
        await outside.send_signal(self.lane, sent)
        self._tell(run_id)

    async def cancel(self, run_id: RunId) -> None:
        """Cancel a run."""
        await outside.cancel_run(self.pool, run_id)
        self._tell(run_id)

    async def resume(self, run_id: RunId, variables: Variables) -> None:
        """Open a new era of a run, in which its code sees these context variables."""
        self._variables[run_id] = variables
        resume = outside.Resume(
            run_id=run_id,
            source_hash=None,
            workflow_path=None,
            workflow_export=None,
            config=None,
            changed_files=None,
        )
        await outside.resume_run(self.pool, resume)
        self._tell(run_id)

    async def _is_at_rest(self, run_id: RunId) -> bool:
        rest = await rehearsals.find_rest(self._connection, run_id)
        if rest.is_due:  # e.g. a child's end, which sends no hint here
            self.claimer.hear_due()
        return rest.is_at_rest

    async def _ask(self, run_id: RunId, people: People) -> bool:
        """Let the script answer; say whether it was asked anything."""
        is_asked = False
        for question in await self.questions(run_id) if people else ():
            if question.node_id in people:
                saying = people[question.node_id]
                answer = saying(question) if callable(saying) else saying
                with suppress(NodeNotWaiting):  # it was withdrawn meanwhile
                    await self.say(run_id, NodeId(question.node_id), answer, Person())
                    is_asked = True
        return is_asked

    async def _fill_in(
        self, run_id: RunId, node_id: NodeId, iteration: int, value: str, by: Person
    ) -> None:
        answer = Answer(
            run_id=run_id,
            node_id=node_id,
            iteration=iteration,
            value=value,
            answered_by=by.name,
            user=by.name,
            scopes=by.scopes,
        )
        request = await read_form(self.pool, answer)
        check_form(request, json.loads(value))
        await answer_form(self.pool, answer, request)

    def _tell(self, run_id: RunId) -> None:
        self.claimer.hear_news(frozenset({run_id}))
        self.claimer.hear_due()


async def open_stage(exits: AsyncExitStack, dsn: str, root_dir: Path) -> Stage:
    """Set up a stage on a database; `exits` closes it."""
    worker_id = WorkerId(uuid4())
    pool = await exits.enter_async_context(open_pool(dsn, role="rehearsal", max_size=2))
    connection = await exits.enter_async_context(open_connection(dsn, role="rehearsal"))
    process = identify(os.getpid())
    assert process is not None
    await register_worker(
        pool, worker_id, pool_id=uuid4(), process=process, queues=(DEFAULT_QUEUE,)
    )
    store = await exits.enter_async_context(open_worker_store(dsn, worker_id))
    stage = Stage(pool=pool, connection=connection)
    stage.lane = await exits.enter_async_context(outside.open_outside_lane(dsn))
    shared = _make_shared(
        exits,
        stage,
        store,
        PoolSettings(dsn=dsn, direct_dsn=dsn, root_dir=str(root_dir), worker_count=1),
    )
    stage.claimer = _make_claimer(shared)
    running = asyncio.create_task(stage.claimer.run(), name="claimer")
    exits.push_async_callback(_end, stage.claimer, running)
    return stage


def _make_shared(
    exits: AsyncExitStack, stage: Stage, store: WorkerStore, settings: PoolSettings
) -> Shared:
    sheet = Sheet.create(page_count=1)
    exits.callback(sheet.close)
    bodies = Bodies(
        threads=ThreadPoolExecutor(thread_name_prefix="body"),
        workshop=exits.enter_context(open_workshop(settings)),
        root_dir=settings.root,
        on_abandoned=lambda _reason: None,  # it ends with the test
    )
    return Shared(
        store=store,
        workflows=stage.given,
        bodies=bodies,
        clock=stage.clock,
        meters=ChildMeters(sheet.open_page(Role.CHILD)),
        tracer=None,
        guard=lambda _timeout_s: (
            lambda build: build()
        ),  # an alarm rings in the main thread, which is the test's
        variables_of=stage.variables_of,
    )


def _make_claimer(shared: Shared) -> Claimer:
    return Claimer(
        shared,
        queues=(DEFAULT_QUEUE,),
        limit=64,
        kind=ClaimKind.MANY,
        loads=Loads([0], [0.0]),
        slot=0,
        on_broken=lambda _reason: None,  # it ends with the test
    )


async def _end(claimer: Claimer, running: "asyncio.Task[None]") -> None:
    claimer.drain()
    await claimer.release_all()
    await running


def _question(row: node_reads.ApprovalRow) -> Question:
    request = json.loads(row.request)
    return Question(
        node_id=row.node_id,
        iteration=row.iteration,
        mode=request.get("mode", "approve"),
        title=request.get("title"),
        summary=request.get("summary"),
        options=request.get("options"),
        schema=request.get("schema"),
    )
