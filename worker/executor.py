"""Execute one run: plan a turn, commit it, perform its attempts, wait for reports, and repeat.

One coroutine for each claimed run, and the only writer of its history while the lease holds. Each node starts when *it* is
ready: everything that happens during a commit goes into the next one, and no node waits for a sibling.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context as Variables
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final

import orjson
import structlog

from smithers.context import Auth
from smithers.engine import budgets, reports
from smithers.engine.facts import Facts, NodeKey, Problem
from smithers.engine.progress import DEFAULT_CONCURRENCY, Progress
from smithers.engine.rendering import Guard, Renderer, build_renderer
from smithers.engine.turn import Turn
from smithers.errors import AnswerTooLarge, InvalidInput, LeaseLost, StoreError
from smithers.events import Envelope, EventType
from smithers.states import NodeState
from smithers.store.claims import ClaimedRun
from smithers.store.commits import Committed, Outcome, TurnCommit
from smithers.store.refusals import RunExists
from smithers.store.run_facts import News
from smithers.store.worker_store import WorkerStore
from smithers.telemetry.tracing import Tracer
from smithers.texts import text_of
from smithers.tree import Task
from smithers.workflow import Workflow
from worker.attempts import Attempts, PastCalls
from worker.bodies import Bodies
from worker.caching import Caching
from worker.clock import DatabaseClock
from worker.happenings import Called, apply_report
from worker.inbox import Inbox
from worker.kin import kin_hints
from worker.meters import ChildMeters
from worker.needs import find_needs
from worker.pace import Pace
from worker.records import RunRecord
from worker.rendering import render_guard
from worker.workflows import Library, LoadFailed

SURVIVE_S: Final = 2.0  # how long a suspected run is tried, at first
MAX_DOUBLINGS: Final = 10  # of that: by each attempt cut off before those deaths

RUN_TOO_LARGE: Final = Problem(
    "RunTooLarge",
    "the outputs of this run are too large to be read together: "
    "return less, or continue in a new run earlier with ContinueAsNew",
    "RUN_TOO_LARGE",
)

LOG: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """State that a child's executors share."""

    store: WorkerStore
    workflows: Library
    bodies: Bodies
    clock: DatabaseClock
    meters: ChildMeters
    tracer: Tracer | None  # None: traces are off
    guard: Callable[[float], Guard] = render_guard  # bounds a render's time, in seconds
    # The context variables that a run's code sees; None: the child's own.
    variables_of: Callable[[ClaimedRun], Variables | None] = lambda _claim: None
    keeps_queue: bool = False  # runs started by a run get its queue, whatever their workflows say


class Executor:
    """The execution of one claimed run."""

    def __init__(self, claim: ClaimedRun, shared: Shared) -> None:
        self.claim = claim
        self.last_seq = claim.last_seq
        # The newest event and the newest signal up to which the run's progress has all news; -1: none.
        self._news_seq, self._newest_signal = claim.last_seq, -1
        self._shared = shared
        self._inbox = Inbox()
        self._loop = asyncio.get_running_loop()
        self._record = RunRecord(claim, shared.meters, shared.tracer)
        past_calls = PastCalls(
            list_all=partial(shared.store.list_previous_calls, claim.run_id),
            find_output=partial(shared.store.find_call_output, claim.run_id),
        )
        caching = Caching(claim.run_id, claim.workflow_name, shared.store.find_cached)
        self._attempts = Attempts(
            claim.run_id, shared.bodies, self._inbox.put, past_calls, caching, self._record.trace
        )
        self._pace = Pace()
        self._awaiting_commit: list[asyncio.Future[None]] = []  # bodies about to call a tool
        self._envelope = Envelope.of(claim.run_id, claim.workflow_name)
        self._commit_no = 0
        self._is_refused = False  # a turn was, and the run is to fail for it
        self.is_suspect = claim.crash_count > 0 and not claim.is_solo
        self._acquit_at = inf
        self._survive_s = SURVIVE_S
        self._suspects: set[NodeKey] = set()  # what was in flight when the last owner died

    @property
    def attempt_count(self) -> int:
        """The number of running attempts."""
        return self._attempts.count

    def hear_news(self) -> None:
        """Handle a hint that there is news for the run from outside."""
        self._inbox.hear_news()

    async def execute(self) -> int | None:
        """Execute the run until it ends, only waits remain, or another owner has it; return when it is due again."""
        self._record.begin()
        run: Progress | None = None
        try:
            try:
                run = await self._load_progress()
                return await self._advance(run)
            except AnswerTooLarge:
                problem = RUN_TOO_LARGE
            except (StoreError, asyncio.CancelledError):
                raise
            except Exception as error:  # a defect of ours: this run fails, the others go on
                LOG.exception("executor_broke", run_id=self.claim.run_id)
                text = f"{type(error).__name__}: {text_of(error)}"[:2000]
                problem = Problem("InternalError", text, "SERVER_ERROR")
            await self._fail_now(run or self._progress(self._idle_renderer(), Facts()), problem)
        except LeaseLost:
            LOG.warning("lease_lost", run_id=self.claim.run_id, epoch=self.claim.epoch)
            self._record.lose()
        finally:
            await self._attempts.drop()
        return None

    async def _advance(self, run: Progress) -> int | None:
        while True:
            turn = run.plan(self._shared.clock.now_ms())
            if turn.timeouts:
                await self._let_time_run_out(run, turn)
                continue
            if not turn.is_empty and not await self._commit(run, turn):
                continue
            if turn.ending is not None:
                return turn.ending.due_ms
            if self.is_suspect and not run.in_flight:
                # What was in flight at its owner's death has ended here: it continues among the others.
                await self._shared.store.release([self.claim.run_id])
                return None
            self._perform(run, turn)
            if self.is_suspect:
                self._acquit_at = min(self._acquit_at, self._loop.time() + self._survive_s)
            await self._await_reports(run)
            if self._loop.time() >= self._acquit_at:
                await self._acquit(run)

    async def _acquit(self, run: Progress) -> None:
        """Acquit a run that has been tried for a while without another crash."""
        await self._shared.store.acquit(self.claim.run_id, self.claim.epoch)
        self.is_suspect, self._acquit_at = False, inf
        run.start_only(None)

    async def _fail_now(self, run: Progress, problem: Problem) -> None:
        """Fail the run at once, without its clean-up."""
        await self._attempts.drop()
        run.refuse_turn(problem)
        for key in sorted(run.in_flight):
            reports.abort_attempt(run, key, "run-failed")
        while not await self._commit(run, run.plan(self._shared.clock.now_ms())):
            pass

    async def _load_progress(self) -> Progress:
        """Build the run's progress from its rows, and record how it came to be executed here."""
        claim, shared = self.claim, self._shared
        shared.clock.hear(claim.now_ms)
        facts, xml_hash, news = Facts(), None, None
        if not claim.is_new:
            loaded = await shared.store.load_run(claim.run_id)
            facts, xml_hash, news = loaded.facts, loaded.xml_hash, loaded.news
        renderer, problem = await self._renderer()
        run = self._progress(renderer, facts, xml_hash)
        self._say_how(run)
        if problem is not None:  # after a new era has begun: its end, not the last one's
            run.fail(problem)
        if news is not None:
            self._apply_news(run, news)
        if claim.is_cancelling:
            run.cancel()
        return run

    def _progress(self, renderer: Renderer, facts: Facts, xml_hash: str | None = None) -> Progress:
        config = orjson.loads(self.claim.config)
        return Progress(
            renderer=renderer,
            facts=facts,
            committed=facts.copy(),
            max_concurrency=config.get("maxConcurrency") or DEFAULT_CONCURRENCY,
            frame_no=self.claim.last_frame_no,
            xml_hash=xml_hash,
        )

    def _say_how(self, run: Progress) -> None:
        claim = self.claim
        if claim.lost_heartbeat_ms is not None:
            stale_ms = max(0, claim.now_ms - claim.lost_heartbeat_ms)
            run.note(
                EventType.RUN_AUTO_RESUMED,
                lastHeartbeatAtMs=claim.lost_heartbeat_ms,
                staleDurationMs=stale_ms,
            )
        for key, fact in run.facts.nodes.items():
            if fact.state is NodeState.IN_PROGRESS:
                self._suspects.add(key)
                # A run that crashes later than its trial lasts would be cleared each time and never stopped, so the trial
                # doubles.
                doublings = min(fact.attempt - fact.failures - claim.crash_count, MAX_DOUBLINGS)
                self._survive_s = max(self._survive_s, SURVIVE_S * 2**doublings)
        # By its era: its history may hold a signal that came before its first claim.
        run.take_up(claim.status_before, is_new=claim.era == 0)
        if self.is_suspect:
            run.start_only(self._suspects)

    async def _renderer(self) -> tuple[Renderer, Problem | None]:
        """Load the workflow and its input; an error of either fails the run, not the child."""
        claim = self.claim
        try:
            library = self._shared.workflows
            workflow = await library.get(claim.source_hash, claim.workflow_export)
            renderer = build_renderer(
                workflow,
                run_id=claim.run_id,
                input_json=claim.input,
                auth_json=claim.auth,
                carried_json=claim.carried,
                config_json=claim.config,
                guard=self._shared.guard(workflow.render_timeout_s),
                find_export=partial(library.find_export, claim.source_hash),
                keeps_queue=self._shared.keeps_queue,
            )
        except LoadFailed as error:
            return self._idle_renderer(), error.problem
        except InvalidInput as error:
            return self._idle_renderer(), Problem.of(error)
        return renderer, None

    def _idle_renderer(self) -> Renderer:
        """Return a renderer that renders nothing, for a run that will only fail."""
        idle: Workflow[Any] = Workflow(name=self.claim.workflow_name, builder=lambda _ctx: [])
        return Renderer(
            run_id=self.claim.run_id,
            workflow=idle,
            read_input=lambda: None,
            auth=Auth(),
            guard=self._shared.guard(idle.render_timeout_s),
        )

    async def _commit(self, run: Progress, turn: Turn) -> bool:
        """Commit a turn; False: there is news that it did not take into account, and it must be planned again."""
        claim, shared = self.claim, self._shared
        self._commit_no += 1
        change = TurnCommit(
            claim=claim,
            envelope=self._envelope,
            commit_no=self._commit_no,
            frame_no=run.frame_no,
            expected_seq=None if turn.ending is None else self.last_seq,
            is_cancelling=run.is_cancelling,
            is_cleared=self._suspects.isdisjoint(run.in_flight),
            has_cleanup=bool(run.open_tries),
            turn=turn,
            is_told=turn.ending is not None or self._pace.may_tell(),
            hints=kin_hints(claim, turn),
        )
        try:
            answer = await shared.store.commit(change)
        except LeaseLost:
            raise
        except StoreError as error:
            self._refuse(run, turn, error)
            return False
        if answer.outcome is Outcome.STALE:
            run.retract_ending()
            await self._reload_news(run)
            return False
        self._apply_commit(run, turn, answer)
        return True

    def _apply_commit(self, run: Progress, turn: Turn, answer: Committed) -> None:
        self._shared.clock.hear(answer.now_ms)
        written = len(turn.events) + (0 if turn.ending is None else len(turn.ending.events))
        if answer.last_seq != self.last_seq + written:
            self._inbox.has_news = True  # a gateway wrote in between
        elif self._news_seq == self.last_seq:
            self._news_seq = answer.last_seq
        self.last_seq = answer.last_seq
        self._record.tell(turn, run.committed.nodes, answer.now_ms)
        run.commit(answer.now_ms)
        kept, self._awaiting_commit = self._awaiting_commit, []
        for future in kept:
            if not future.done():  # its attempt was stopped
                future.set_result(None)

    def _refuse(self, run: Progress, turn: Turn, error: StoreError) -> None:
        """Fail a run whose own values the database refuses; other runs are not affected."""
        LOG.error("commit_refused", run_id=self.claim.run_id, error=str(error))
        if isinstance(error, RunExists):
            run.refuse_runs(_taken(turn, error))
            return
        if self._is_refused:
            # We still own it, but cannot execute it: this child ends, and its burial hands the run to another.
            raise StoreError(f"run {self.claim.run_id} cannot even be failed: {error}") from error
        self._is_refused = True
        kind = type(error.__cause__ or error).__name__
        text = f"the database rejected what the run produced: {kind}"
        run.refuse_turn(Problem("InvalidOutput", text, "INVALID_OUTPUT"))

    def _perform(self, run: Progress, turn: Turn) -> None:
        for start in turn.starts:
            task = start.leaf.element
            assert isinstance(task, Task)
            self._attempts.start(
                start,
                needs=find_needs(run, task),
                last_heartbeat=run.facts.nodes[start.leaf.key].heartbeat,
                is_budget_spent=partial(budgets.is_spent, run),
            )
        for abort in turn.aborts:
            self._attempts.abort(abort.key, abort.reason)

    async def _await_reports(self, run: Progress) -> None:
        """Wait for reports or news, and apply them."""
        if self._inbox.is_empty:
            due_ms, wake_at = run.next_due_ms(), self._acquit_at
            if due_ms is not None:
                wait_s = (due_ms - self._shared.clock.now_ms()) / 1000
                wake_at = min(wake_at, self._loop.time() + wait_s)
            await self._inbox.wait(wake_at)
        now_ms = self._shared.clock.now_ms()
        for happening in self._inbox.take():
            apply_report(run, happening, now_ms)
            if isinstance(happening, Called) and happening.kept is not None:
                self._awaiting_commit.append(happening.kept)
        if self._inbox.has_news:
            await self._reload_news(run)
        run.pass_time(self._shared.clock.now_ms())

    async def _reload_news(self, run: Progress) -> None:
        self._inbox.has_news = False
        news = await self._shared.store.load_news(
            self.claim.run_id, after_seq=self._news_seq, after_signal=self._newest_signal
        )
        if news is None:
            raise LeaseLost(f"run {self.claim.run_id} is gone")
        self._apply_news(run, news)

    def _apply_news(self, run: Progress, news: News) -> None:
        if news.epoch != self.claim.epoch:
            raise LeaseLost(f"run {self.claim.run_id} has another owner")
        self.last_seq = self._news_seq = news.last_seq
        self._newest_signal = news.newest_signal
        self._shared.clock.hear(news.now_ms)
        if news.is_cancelling:
            run.cancel()
        run.take_news(approvals=news.approvals, ends=news.ends, signals=news.signals)

    async def _let_time_run_out(self, run: Progress, turn: Turn) -> None:
        for key in turn.timeouts:
            await self._shared.store.deny_for_timeout(self.claim.run_id, *key)
        turn.timeouts.clear()
        await self._reload_news(run)


def _taken(turn: Turn, error: RunExists) -> Problem:
    """Describe a turn that would start runs under ids of which another run has one."""
    successor = None if turn.ending is None else turn.ending.successor
    wanted = [*turn.children, *([] if successor is None else [successor])]
    names = ", ".join(child.run_id for child in wanted)
    return Problem("RunExists", f"one of these run ids is already taken: {names}", error.code)
