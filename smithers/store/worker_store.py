"""The database for one child: its connections and calls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import asyncpg

from smithers.engine.questions import TIMEOUT_USER
from smithers.errors import StoreError, StoreUnavailable
from smithers.ids import Epoch, NodeId, RunId, SourceHash, WorkerId
from smithers.store import cached_outputs, claims, descriptions, run_facts, tool_calls
from smithers.store.commits import Committed, Committer, Outcome, TurnCommit
from smithers.store.connections import PLANS_MADE_ONCE, connect_hot, open_pool
from smithers.store.hints import Channel, notify
from smithers.store.lanes import Meter
from smithers.store.outside import Decision, OutsideLane, decide, open_outside_lane
from smithers.store.refusals import Refused
from smithers.store.untold import Untold

AWAY_PAUSE_S: Final = 0.2
PREVIOUS_CALLS: Final = 1_000  # read at once
PREVIOUS_CALL_BYTES: Final = 1 << 20

Answer = TypeVar("Answer")


class WorkerStore:
    """A child's database calls.

    Calls of an executor wait while the database is away: a running run goes on when it is back.
    """

    def __init__(
        self,
        *,
        dsn: str,
        worker_id: WorkerId,
        pool: asyncpg.Pool,
        committer: Committer,
        untold: Untold,
        loader: run_facts.Loader,
        decisions: OutsideLane,
    ) -> None:
        self.worker_id = worker_id
        self._dsn = dsn
        self._pool = pool
        self._committer = committer
        self._untold = untold
        self._loader = loader
        self._decisions = decisions
        self._claiming: asyncpg.Connection | None = None
        self._is_claim_lost = False
        self._uncommitted: dict[RunId, Epoch] = {}  # claimed here, and nothing committed yet

    def watch(self, meter: Meter) -> None:
        """Report the lanes' batches from now on."""
        lanes = (self._committer.lane, self._committer.patient_lane)
        for lane in (*lanes, self._loader.lane, self._decisions):
            lane.meter = meter

    async def claim(
        self, queue: str, limit: int, kind: claims.ClaimKind
    ) -> list[claims.ClaimedRun]:
        """Claim up to `limit` due runs; one call at a time.

        A claim whose answer was lost may have taken runs: the next one releases them first.
        """
        async with self._claim_connection() as connection:
            if self._is_claim_lost:
                await claims.release_unknown(connection, self.worker_id, self._uncommitted)
            self._is_claim_lost = True
            claimed = await claims.claim_runs(
                connection, worker_id=self.worker_id, queue=queue, limit=limit, kind=kind
            )
        self._is_claim_lost = False
        self._uncommitted.update((claim.run_id, claim.epoch) for claim in claimed)
        return claimed

    def forget(self, run_id: RunId, epoch: Epoch) -> None:
        """Handle that a claim has been committed to, or is no longer executed here."""
        # A park's answer may come after this child has claimed the run again.
        if self._uncommitted.get(run_id) == epoch:
            del self._uncommitted[run_id]

    async def tell_due(self, queues: Iterable[str]) -> None:
        """Hint at these queues: of each pool, the child with the fewest runs is woken."""
        async with self._claim_connection() as connection:
            await notify(connection, {Channel.DUE: queues})

    async def acquit(self, run_id: RunId, epoch: Epoch) -> None:
        """Acquit a run of killing its owners."""
        await _patiently(lambda: claims.acquit_run(self._pool, self.worker_id, run_id, epoch))

    async def find_next_due_ms(self, queue: str) -> int | None:
        """Say in how many milliseconds the queue's next run is due."""
        async with self._claim_connection() as connection:
            return await claims.find_next_due_ms(connection, queue)

    async def commit(self, change: TurnCommit) -> Committed:
        """Commit one run's turn; raises LeaseLost, StoreError."""
        run_id, epoch = change.claim.run_id, change.claim.epoch
        try:
            answer = await self._committer.commit(change)
        except asyncio.CancelledError:
            self._untold.add(run_id)  # it may stand, and nobody awaits the answer
            raise
        if answer.outcome is Outcome.COMMITTED:
            self.forget(run_id, epoch)
            note = self._untold.discard if change.is_told else self._untold.add
            note(run_id)
        return answer

    async def load_run(self, run_id: RunId) -> run_facts.LoadedRun:
        """Read the facts of a run that is taken up again; raises LeaseLost, AnswerTooLarge."""
        return await self._loader.load(run_id)

    async def load_news(
        self, run_id: RunId, *, after_seq: int, after_signal: int
    ) -> run_facts.News | None:
        """Read a run's news from outside: after an event, and the signals after the one with that seq."""
        return await _patiently(
            lambda: run_facts.load_news(
                self._pool, run_id, after_seq=after_seq, after_signal=after_signal
            )
        )

    async def find_cached(self, cache_key: str, ttl_s: float | None) -> str | None:
        """Read a cached output of an earlier execution that is younger than this; None: of any age."""
        return await _patiently(lambda: cached_outputs.find_cached(self._pool, cache_key, ttl_s))

    async def list_previous_calls(
        self, run_id: RunId, node_id: NodeId, iteration: int
    ) -> list[tool_calls.ToolCallRow]:
        """List the calls of a node's attempts, oldest first: all recallable ones, and the newest thousand others.

        Which others, and so an agent's prompt, does not depend on how many are recallable. Recallable ones before the
        newest thousand are brief: see find_call_output.
        """
        newest = page = await self._list_calls(run_id, node_id, iteration, tool_calls.END)
        if len(newest) < PREVIOUS_CALLS or not newest[-1].is_recallable:
            return newest
        recallable = [row for row in newest if row.is_recallable]
        while len(page) == PREVIOUS_CALLS and page[0].is_recallable:
            before = tool_calls.CallPlace(page[0].attempt, page[0].call_no)
            page = await self._list_calls(run_id, node_id, iteration, before, is_brief=True)
            recallable = [row for row in page if row.is_recallable] + recallable
        first = tool_calls.CallPlace(recallable[0].attempt, 0)
        return await self._list_calls(run_id, node_id, iteration, first) + recallable

    async def find_call_output(
        self, run_id: RunId, node_id: NodeId, iteration: int, place: tool_calls.CallPlace
    ) -> str | None:
        """Read the output of one call of a node, as JSON text."""
        return await _patiently(
            lambda: tool_calls.find_call_output(self._pool, run_id, node_id, iteration, place)
        )

    async def find_news(self, cursors: dict[RunId, int]) -> dict[RunId, int | None]:
        """Say which of these runs others have written to: see claims.find_news."""
        return await claims.find_news(self._pool, self.worker_id, cursors)

    async def release(self, run_ids: list[RunId]) -> None:
        """Release runs, due at once, and notify claimers."""
        await self._hint_due(await claims.release_runs(self._pool, self.worker_id, run_ids))

    async def pass_on(self, run_id: RunId) -> None:
        """Release a run that another child should continue."""
        await self._hint_due(
            await _patiently(lambda: claims.release_runs(self._pool, self.worker_id, [run_id]))
        )

    async def deny_for_timeout(self, run_id: RunId, node_id: NodeId, iteration: int) -> None:
        """Time an approval out: a time-out is one more decision, and the first decision wins."""
        decision = Decision(
            run_id=run_id,
            node_id=node_id,
            iteration=iteration,
            is_approved=False,
            note=None,
            decided_by=TIMEOUT_USER,
            decision=None,
            user=None,
            scopes=None,
            is_timeout=True,
        )
        with suppress(Refused):  # decided meanwhile: that is the outcome, and it is among the news
            await _patiently(lambda: decide(self._decisions, decision))

    async def find_source(self, source_hash: SourceHash) -> str | None:
        """Read a version's bundle."""
        return await _patiently(lambda: descriptions.find_source(self._pool, source_hash))

    async def _hint_due(self, queues: list[str]) -> None:
        if queues:
            with suppress(StoreError):  # only a hint: polling finds them, too
                await notify(self._pool, {Channel.DUE: queues})

    async def _list_calls(
        self,
        run_id: RunId,
        node_id: NodeId,
        iteration: int,
        before: tool_calls.CallPlace,
        *,
        is_brief: bool = False,
    ) -> list[tool_calls.ToolCallRow]:
        return await _patiently(
            lambda: tool_calls.list_tool_calls(
                self._pool,
                run_id,
                node_id,
                iteration,
                limit=PREVIOUS_CALLS,
                max_bytes=PREVIOUS_CALL_BYTES,
                is_brief=is_brief,
                before=before,
            )
        )

    @asynccontextmanager
    async def _claim_connection(self) -> AsyncIterator[asyncpg.Connection]:
        if self._claiming is None or self._claiming.is_closed():
            self._claiming = await connect_hot(self._dsn, role="claim")
        try:
            yield self._claiming
        except StoreUnavailable:
            self._claiming.terminate()  # it may only be stalled: the next call has a new one
            raise

    def close_claiming(self) -> None:
        """Drop the claiming connection."""
        if self._claiming is not None:
            self._claiming.terminate()


async def _tell_events(pool: asyncpg.Pool, run_ids: Collection[RunId]) -> None:
    await notify(pool, {Channel.EVENTS: run_ids})


async def _patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Retry until the database answers; only for idempotent calls."""
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await asyncio.sleep(AWAY_PAUSE_S)


@asynccontextmanager
async def open_worker_store(dsn: str, worker_id: WorkerId) -> AsyncIterator[WorkerStore]:
    """Open a child's connections: to commit, to claim, to load runs, to decide, and one for the rest."""
    async with AsyncExitStack() as stack:
        # News is read at every hint, and planning that costs three times as much as executing it.
        pool = await stack.enter_async_context(
            open_pool(dsn, role="child", max_size=1, settings=PLANS_MADE_ONCE)
        )
        committer = await stack.enter_async_context(Committer(dsn, worker_id=worker_id))
        untold = await stack.enter_async_context(Untold(partial(_tell_events, pool)))
        loader = await stack.enter_async_context(run_facts.Loader(dsn))
        decisions = await stack.enter_async_context(open_outside_lane(dsn))
        store = WorkerStore(
            dsn=dsn,
            worker_id=worker_id,
            pool=pool,
            committer=committer,
            untold=untold,
            loader=loader,
            decisions=decisions,
        )
        stack.callback(store.close_claiming)
        yield store
