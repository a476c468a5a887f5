"""Mirror a workflow's own database to the server's, so that lists show its runs.

Hints name the runs that changed; a slow walk over all runs finds those whose hint was lost, e.g. because nobody was
listening, and interrupted starts. Any number of pools may try: one of them is the mirror.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Final

import structlog

from smithers.complaints import Complaint
from smithers.errors import StoreError, StoreUnavailable
from smithers.ids import RunId
from smithers.service_loops import ServiceLoops
from smithers.store.hints import Channel, Hints
from smithers.store.mirror import Copied, MirrorStore, open_mirror
from worker.settings import PoolSettings

BATCH: Final = 32  # runs in one copy
WALK_PAGE: Final = 2_000
WALK_EVERY_S: Final = 1.0  # between two pages of the walk; no pause after one that found something
RETRY_S: Final = 1.0
REPORT_EVERY_S: Final = 10.0
# Runs whose hints are remembered for the time when this is the mirror; the walk finds the others.
MAX_REMEMBERED: Final = 20_000

LOG: Final = structlog.get_logger(__name__)


class Mirror:
    """The mirror of one database, active or standing by."""

    def __init__(self, name: str, *, own_dsn: str, own_direct_dsn: str, home_dsn: str) -> None:
        """`name`: the database's name in workflows. `home_dsn`: the server's database, direct."""
        self._name = name
        self._own_dsn = own_dsn
        self._own_direct_dsn = own_direct_dsn
        self._home_dsn = home_dsn
        # In the order in which they are copied.
        self._moved: dict[RunId, None] = {}
        self._is_active = False
        self._room = BATCH  # of the next copy: one run after a failure, then twice as many
        self._woken = asyncio.Event()
        self._walked = RunId("")  # the position of the walk
        self._report = _Report(name)

    def hear(self, run_ids: frozenset[str] | None) -> None:
        """Handle a hint that these runs have new events; None: the walk finds them."""
        heard = [RunId(run_id) for run_id in run_ids or ()]
        if self._is_active:
            self._add(heard)
        else:
            self._remember(heard)
        self._woken.set()

    async def run(self) -> None:
        """Copy until cancelled."""
        complaint = Complaint()
        async with Hints(self._own_direct_dsn, role="mirror").listen({Channel.EVENTS: self.hear}):
            while True:
                self._is_active = False
                try:
                    async with open_mirror(self._own_dsn, self._home_dsn, self._name) as store:
                        LOG.info("mirror_started", database=self._name)
                        self._is_active = True
                        await self._follow(store)
                except StoreError as error:
                    if complaint.may_be_said():
                        LOG.warning("mirror_failed", database=self._name, error=str(error))
                    await asyncio.sleep(RETRY_S)

    def _add(self, run_ids: Iterable[RunId]) -> None:
        self._moved.update(dict.fromkeys(run_ids))

    def _remember(self, run_ids: list[RunId]) -> None:
        """Keep the newest hints, to take over soon after another mirror's end."""
        for run_id in run_ids:
            self._moved.pop(run_id, None)
        self._add(run_ids)
        if len(self._moved) > MAX_REMEMBERED:
            self._moved = dict.fromkeys(list(self._moved)[-MAX_REMEMBERED // 2 :])

    async def _follow(self, store: MirrorStore) -> None:
        loop = asyncio.get_running_loop()
        walk_at = loop.time()
        while True:
            self._woken.clear()
            if loop.time() >= walk_at:
                has_found = await self._walk(store)
                walk_at = loop.time() + (0 if has_found else WALK_EVERY_S)
            batch = list(islice(self._moved, self._room))
            if batch:
                for run_id in batch:
                    del self._moved[run_id]
                await self._copy(store, batch)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout_at(walk_at):
                    await self._woken.wait()

    async def _walk(self, store: MirrorStore) -> bool:
        """Check the next page of all runs; say whether some were behind."""
        behind, last = await store.find_behind(self._walked, WALK_PAGE)
        self._add(behind)
        self._walked = last or RunId("")
        if last is None and (count := await store.finish_starts()):
            LOG.warning("starts_finished", database=self._name, run_count=count)
        return bool(behind)

    async def _copy(self, store: MirrorStore, run_ids: list[RunId]) -> None:
        """Copy a batch; if the database refuses it, run by run, and only the culprit stays behind."""
        try:
            copied = await store.copy(run_ids)
        except StoreUnavailable:
            # It may be that all of these together take too long, whenever they are tried: each will be on its own, and
            # after all others, so that one that always fails holds up nobody else.
            self._room = 1
            self._add(run_ids)
            raise
        except StoreError as error:
            if len(run_ids) > 1:
                for run_id in run_ids:
                    await self._copy(store, [run_id])
            else:  # the walk brings it back
                LOG.warning(
                    "mirror_refused", database=self._name, run_id=run_ids[0], error=str(error)
                )
            return
        self._room = min(2 * self._room, BATCH)
        self._add(copied.unfinished)
        self._report.take(copied, behind_count=len(self._moved))


@asynccontextmanager
async def mirroring(settings: PoolSettings) -> AsyncIterator[None]:
    """Mirror a pool's database until the block is left, if configured."""
    async with ServiceLoops() as loops:
        if settings.mirror_dsn is not None and settings.mirror_name is not None:
            mirror = Mirror(
                settings.mirror_name,
                own_dsn=settings.dsn,
                own_direct_dsn=settings.direct_dsn,
                home_dsn=settings.mirror_dsn,
            )
            loops.start(mirror.run, name="mirror")
        yield


class _Report:
    """Periodically logs how far the mirror is behind."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said_at = float("-inf")
        self._event_count = 0
        self._lag_ms = 0

    def take(self, copied: Copied, *, behind_count: int) -> None:
        self._event_count += copied.event_count
        self._lag_ms = max(self._lag_ms, copied.lag_ms)
        now = asyncio.get_running_loop().time()
        if not self._event_count or now - self._said_at < REPORT_EVERY_S:
            return
        LOG.info(
            "mirrored",
            database=self._name,
            event_count=self._event_count,
            max_lag_s=self._lag_ms / 1000,
            runs_behind=behind_count,
        )
        self._said_at, self._event_count, self._lag_ms = now, 0, 0
