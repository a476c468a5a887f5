"""Claim due runs from the queues and give each an executor, while there is room.

Sleeps until a hint says that a run is due, until the earliest due time, and at most a second, which is the cost of a
lost hint.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError
from smithers.ids import RunId
from smithers.store.claims import ClaimedRun, ClaimKind
from worker.executor import Executor, Shared
from worker.loads import APART, GONE, Loads

MAX_CLAIM: Final = 16  # then the child with the fewest runs continues
# Runs tried together: a poisonous one takes so many down with it, which are then tried one by one.
MAX_SUSPECTS: Final = 32
MIN_SLEEP_S: Final = 0.001
MAX_SLEEP_S: Final = 1.0
MAX_FRUITLESS_S: Final = 0.128  # between claims while a run is due that cannot be claimed: another may hold its row for long
TRIAL_SLEEP_S: Final = 0.25  # an acquittal sends no hint, and makes room for the next
NEWS_EVERY_S: Final = 1.0

LOG: Final = structlog.get_logger(__name__)


class Claimer:
    """A child's claimer and its claimed runs."""

    def __init__(
        self,
        shared: Shared,
        *,
        queues: tuple[str, ...],
        limit: int,
        kind: ClaimKind,
        loads: Loads,
        slot: int,
        on_broken: Callable[[str], None],
    ) -> None:
        """`kind`: what it claims while it has nothing, MANY, ISOLATED or SUSPECT; `slot` is ours in `loads`.

        `on_broken`: called if a run is held that cannot be executed until this child ends.
        """
        self._shared = shared
        self._queues = queues
        self._limit = limit
        self._kind = kind
        self._is_apart = kind is not ClaimKind.MANY
        self._loads = loads
        self._slot = slot
        self._on_broken = on_broken
        self._executors: dict[RunId, tuple[Executor, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._complaint = Complaint()
        self._loop = asyncio.get_running_loop()
        # When the next run that was parked here is due, by the loop's clock.
        self._known_due_at = 0.0
        self._fruitless_s = MIN_SLEEP_S  # doubled from one claim that finds nothing to the next
        self._sleep: asyncio.Timeout | None = None
        self._is_draining = False
        self._is_stopped = False

    @property
    def active_count(self) -> int:
        """How many runs this child holds."""
        return len(self._executors)

    def hear_due(self) -> None:
        """Handle a hint that there may be runs to claim."""
        self._woken.set()

    def hear_news(self, run_ids: frozenset[str] | None) -> None:
        """Handle a hint that there is news for these runs; None: for any."""
        for run_id, (executor, _) in self._executors.items():
            if run_ids is None or run_id in run_ids:
                executor.hear_news()

    def drain(self) -> None:
        """Claim no more."""
        self._is_draining = True
        if not self._is_apart:
            self._loads.tell(self._slot, GONE)
        self._woken.set()

    async def run(self) -> None:
        """Claim until drained; then wait until the last run has ended or been parked."""
        async with asyncio.TaskGroup() as group:
            news = group.create_task(self._look_for_news(), name="news")
            async with asyncio.TaskGroup() as runs:
                while not self._is_draining:
                    await self._claim_and_sleep(runs)
            news.cancel()

    async def release_all(self) -> None:
        """Stop every executor at once and release the runs."""
        if stopped := await self.stop_all():
            await self._shared.store.release(stopped)

    async def stop_all(self) -> list[RunId]:
        """Stop every executor at once, for good; return the runs, which this child still owns."""
        self._is_stopped = True
        held = dict(self._executors)
        for _, task in held.values():
            task.cancel()
        if held:
            await asyncio.wait([task for _, task in held.values()])
        return list(held)

    async def _claim_and_sleep(self, group: asyncio.TaskGroup) -> None:
        self._woken.clear()
        try:
            is_more = await (self._claim_apart(group) if self._is_apart else self._claim(group))
            if is_more and self.active_count < self._limit:
                if self._is_apart or self._loads.is_next(self._slot):
                    return
                await self._shared.store.tell_due(self._queues)
            wake_at = await self._find_wake_time()
        except StoreError as error:
            if self._complaint.may_be_said():
                LOG.warning("claim_failed", error=str(error))
            wake_at = self._loop.time() + MAX_SLEEP_S
        with suppress(TimeoutError):
            async with asyncio.timeout_at(wake_at) as self._sleep:
                await self._woken.wait()
        self._sleep = None

    async def _claim(self, group: asyncio.TaskGroup) -> bool:
        """Claim from each queue; say whether one delivered a full batch."""
        is_more = False
        for queue in self._queues:
            room = min(self._limit - self.active_count, MAX_CLAIM)
            if room <= 0:
                return False
            claimed = await self._shared.store.claim(queue, room, ClaimKind.MANY)
            for claim in claimed:
                self._begin(group, claim)
            if claimed:
                self._put_last(queue)
                self._fruitless_s = MIN_SLEEP_S
            is_more = is_more or len(claimed) == room
        return is_more

    async def _claim_apart(self, group: asyncio.TaskGroup) -> bool:
        """Claim suspects, or one isolated run; drain if none is held or found. Say whether one was."""
        kind, room = self._choose_apart()
        for queue in self._queues if room > 0 else ():
            claimed = await self._shared.store.claim(queue, room, kind)
            for claim in claimed:
                self._begin(group, claim)
                if claim.is_solo:
                    self.drain()
            if claimed:
                self._put_last(queue)
                return True
        if not self._executors:
            self.drain()
        return False

    def _put_last(self, queue: str) -> None:
        """Let the other queues go first next time: one that always has due runs would take all the room."""
        self._queues = (*(one for one in self._queues if one != queue), queue)

    def _choose_apart(self) -> tuple[ClaimKind, int]:
        """Choose which runs may be claimed beside those held, and how many; one with two dead owners is tried alone."""
        if not self._executors:
            return self._kind, 1
        suspects = self._find_suspects()
        if not suspects:
            return ClaimKind.SUSPECT, 1
        if any(claim.crash_count > 1 for claim in suspects):
            return ClaimKind.FIRST_TIME, 0
        room = min(MAX_SUSPECTS - len(suspects), self._limit - self.active_count, MAX_CLAIM)
        return ClaimKind.FIRST_TIME, room

    def _find_suspects(self) -> list[ClaimedRun]:
        return [one.claim for one, _ in self._executors.values() if one.is_suspect]

    def _begin(self, group: asyncio.TaskGroup, claim: ClaimedRun) -> None:
        if self._is_stopped:  # the claim was under way: the burial hands it back
            return
        executor = Executor(claim, self._shared)
        _, before = self._executors.get(claim.run_id, (None, None))
        task = group.create_task(
            self._execute(executor, before),
            name=f"run-{claim.run_id}",
            context=self._shared.variables_of(claim),
        )
        self._executors[claim.run_id] = (executor, task)
        self._tell_load()

    async def _execute(self, executor: Executor, before: asyncio.Task[None] | None) -> None:
        """Execute a claimed run; `before`: the task that ran it here before and has not ended yet."""
        run_id = executor.claim.run_id
        try:
            if before is not None:
                await before  # not asyncio.wait, which would not stop it with us
            due_ms = await executor.execute()
            if due_ms is not None:
                self._expect(due_ms)
        except Exception:  # last resort: one run never takes the others down
            LOG.exception("run_broke", run_id=run_id)
            # We still own it, but cannot execute it: this child ends, and its burial hands the run back.
            self._on_broken(f"run {run_id} broke its executor")
        finally:
            if executor in self._executors.get(run_id, ()):  # else it has been claimed again
                del self._executors[run_id]
            self._shared.store.forget(run_id, executor.claim.epoch)
            self._tell_load()
            if self._is_apart or self._is_draining or self.active_count == self._limit - 1:
                self._woken.set()  # there is room again; otherwise nobody waited for it

    def _tell_load(self) -> None:
        if self._is_apart:
            self._loads.tell(self._slot, APART)
        elif not self._is_draining:
            self._loads.tell(self._slot, self.active_count)

    def _expect(self, due_ms: int) -> None:
        """Wake up when a run that was parked here is due; other children find it by polling once a second."""
        due_at = self._loop.time() + (due_ms - self._shared.clock.now_ms()) / 1000
        self._known_due_at = min(self._known_due_at, due_at)
        sleep = self._sleep
        if sleep is not None and not sleep.expired() and (sleep.when() or due_at) > due_at:
            sleep.reschedule(due_at)

    async def _find_wake_time(self) -> float:
        """Return when to claim again, by the loop's clock: when the next run is due, in a second at the latest."""
        now = self._loop.time()
        if self._is_apart or self.active_count >= self._limit:
            return now + (TRIAL_SLEEP_S if self._find_suspects() else MAX_SLEEP_S)
        if now >= self._known_due_at:
            due = [await self._shared.store.find_next_due_ms(queue) for queue in self._queues]
            soonest_s = min((ms / 1000 for ms in due if ms is not None), default=MAX_SLEEP_S)
            if soonest_s <= 0:
                soonest_s = self._fruitless_s
                self._fruitless_s = min(2 * self._fruitless_s, MAX_FRUITLESS_S)
            self._known_due_at = self._loop.time() + min(max(soonest_s, MIN_SLEEP_S), MAX_SLEEP_S)
        return self._known_due_at

    async def _look_for_news(self) -> None:
        """The fallback for lost hints: one query a second for all runs of this child."""
        complaint = Complaint()
        while True:
            await asyncio.sleep(NEWS_EVERY_S)
            executors = [executor for executor, _ in self._executors.values()]
            self._shared.meters.active.set(sum(one.attempt_count for one in executors))
            cursors = {
                run_id: executor.last_seq for run_id, (executor, _) in self._executors.items()
            }
            if not cursors:
                continue
            try:
                found = await self._shared.store.find_news(cursors)
            except StoreError as error:
                if complaint.may_be_said():
                    LOG.warning("news_failed", error=str(error))
                continue
            for run_id, (executor, _) in self._executors.items():
                # Most have committed since they were asked about.
                if run_id in found and (found[run_id] or math.inf) > executor.last_seq:
                    executor.hear_news()
