"""The database as one child uses it: its connections, and what is done over them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, TypeVar

import asyncpg

from smithers.engine.facts import NodeKey
from smithers.engine.questions import TIMEOUT_USER
from smithers.errors import StoreError, StoreUnavailable
from smithers.ids import Epoch, NodeId, RunId, SourceHash, WorkerId
from smithers.store import cached_outputs, claims, descriptions, run_facts, tool_calls
from smithers.store.commits import Committed, Committer, Outcome, TurnCommit
from smithers.store.connections import connect_hot, open_pool
from smithers.store.hints import Channel, notify
from smithers.store.lanes import Lane, Meter
from smithers.store.outside import Decision, OutsideLane, decide, open_outside_lane
from smithers.store.refusals import Refused

AWAY_PAUSE_S: Final = 0.2
PREVIOUS_CALLS: Final = 1_000  # read at once
PREVIOUS_CALL_BYTES: Final = 1 << 20

Answer = TypeVar("Answer")
LoadLane = Lane[RunId, run_facts.LoadedRun]


class WorkerStore:
    """What a child does with the database.

    What an executor needs waits for as long as the database is away: a run under way goes on when it is back.
    """

    def __init__(
        self,
        *,
        dsn: str,
        worker_id: WorkerId,
        pool: asyncpg.Pool,
        committer: Committer,
        loads: LoadLane,
        decisions: OutsideLane,
    ) -> None:
        self.worker_id = worker_id
        self._dsn = dsn
        self._pool = pool
        self._committer = committer
        self._loads = loads
        self._decisions = decisions
        self._claiming: asyncpg.Connection | None = None
        self._is_claim_lost = False
        self._uncommitted: dict[RunId, Epoch] = {}  # claimed here, and nothing committed yet

    def watch(self, meter: Meter) -> None:
        """Tell from now on what goes over the lanes."""
        lanes = (self._committer.lane, self._committer.patient_lane, self._loads, self._decisions)
        for lane in lanes:
            lane.meter = meter

    async def claim(
        self, queue: str, limit: int, kind: claims.ClaimKind
    ) -> list[claims.ClaimedRun]:
        """Take up to `limit` runs that are due; one call at a time.

        A claim whose answer was lost may have taken runs: the next one gives them back first.
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

    async def tell_due(self, queues: Iterable[str]) -> None:
        """Have others look at these queues: of each pool, the child that holds the fewest runs."""
        async with self._claim_connection() as connection:
            await notify(connection, {Channel.DUE: queues})

    async def acquit(self, run_id: RunId, epoch: Epoch) -> None:
        """Lift the suspicion that a run kills its owners."""
        await _patiently(lambda: claims.acquit_run(self._pool, self.worker_id, run_id, epoch))

    async def find_next_due_ms(self, queue: str) -> int | None:
        """Say in how many milliseconds the queue's next run is due."""
        async with self._claim_connection() as connection:
            return await claims.find_next_due_ms(connection, queue)

    async def commit(self, change: TurnCommit) -> Committed:
        """Commit one run's turn; raises LeaseLost, StoreError."""
        answer = await self._committer.commit(change)
        # A park's answer may come after this child has claimed the run again.
        is_known = self._uncommitted.get(change.run_id) == change.epoch
        if answer.outcome is Outcome.COMMITTED and is_known:
            del self._uncommitted[change.run_id]
        return answer

    async def load_run(self, run_id: RunId) -> run_facts.LoadedRun:
        """Read what is known of a run that is taken up again."""
        return await _patiently(lambda: self._loads.submit(run_id))

    async def load_news(
        self, run_id: RunId, waiting: Collection[NodeKey], *, after_signal: int
    ) -> run_facts.News | None:
        """Read what has come to a run from outside: for the nodes that wait, and the signals after the one of that seq."""
        return await _patiently(
            lambda: run_facts.load_news(self._pool, run_id, waiting, after_signal=after_signal)
        )

    async def find_cached(self, cache_key: str) -> str | None:
        """Read an output that an earlier execution has left."""
        return await _patiently(lambda: cached_outputs.find_cached(self._pool, cache_key))

    async def list_previous_calls(
        self, run_id: RunId, node_id: NodeId, iteration: int
    ) -> list[tool_calls.ToolCallRow]:
        """List what a node's attempts have called so far, oldest first: the newest thousand, and all that are recallable.

        Of those before the newest thousand the outputs are left out: see find_call_output.
        """
        page = rows = await self._list_calls(run_id, node_id, iteration, tool_calls.END)
        while len(page) == PREVIOUS_CALLS and page[0].is_recallable:
            before = tool_calls.CallPlace(page[0].attempt, page[0].call_no)
            page = await self._list_calls(run_id, node_id, iteration, before)
            rows = page + rows
        return rows

    async def find_call_output(
        self, run_id: RunId, node_id: NodeId, iteration: int, place: tool_calls.CallPlace
    ) -> str | None:
        """Read what one call of a node put out, as JSON text."""
        return await _patiently(
            lambda: tool_calls.find_call_output(self._pool, run_id, node_id, iteration, place)
        )

    async def find_news(self, cursors: dict[RunId, int]) -> list[RunId]:
        """Say which of these runs others have written to."""
        return await claims.find_news(self._pool, self.worker_id, cursors)

    async def release(self, run_ids: list[RunId]) -> None:
        """Give runs back, due at once, and say so."""
        queues = await claims.release_runs(self._pool, self.worker_id, run_ids)
        if queues:
            with suppress(StoreError):  # a hint: whoever looks by himself finds them too
                await notify(self._pool, {Channel.DUE: queues})

    async def deny_for_timeout(self, run_id: RunId, node_id: NodeId, iteration: int) -> None:
        """Let an approval's time run out: a time-out is one more decision, and the first decision wins."""
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

    async def _list_calls(
        self, run_id: RunId, node_id: NodeId, iteration: int, before: tool_calls.CallPlace
    ) -> list[tool_calls.ToolCallRow]:
        return await _patiently(
            lambda: tool_calls.list_tool_calls(
                self._pool,
                run_id,
                node_id,
                iteration,
                limit=PREVIOUS_CALLS,
                max_bytes=PREVIOUS_CALL_BYTES,
                with_outputs=before == tool_calls.END,
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


async def _patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask until the database answers; only for what may be asked twice."""
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await asyncio.sleep(AWAY_PAUSE_S)


@asynccontextmanager
async def open_worker_store(dsn: str, worker_id: WorkerId) -> AsyncIterator[WorkerStore]:
    """Open a child's connections: to commit, to claim, to take up, and one for the rest."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(dsn, role="child", max_size=1))
        committer = await stack.enter_async_context(Committer(dsn, worker_id=worker_id))
        loads = await stack.enter_async_context(Lane(dsn, role="load", flush=run_facts.load_runs))
        decisions = await stack.enter_async_context(open_outside_lane(dsn))
        store = WorkerStore(
            dsn=dsn,
            worker_id=worker_id,
            pool=pool,
            committer=committer,
            loads=loads,
            decisions=decisions,
        )
        stack.callback(store.close_claiming)
        yield store
