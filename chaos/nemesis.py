"""Hurt a site, by chance and by a seed that repeats it: kill, freeze, cut and restart its parts, one fault after another.

Each fault heals what it did before it ends, and is written to the recorder with the pids that it killed or froze.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from chaos import clocks
from chaos.proxy import Proxy, Way
from chaos.recorder import Recorder
from chaos.site import Part, Site

SHORT_S: Final = (0.2, 3.0)
# Past the time that a database call may take: what waits for it has given up, and must have come to know how it ended.
LONG_S: Final = 33.0
SKEWS_S: Final = (-600, 0, 600)
LEAPS: Final = 20
BURIAL_LIMIT_S: Final = 45.0  # silence counts from the start of Postgres at the earliest

# On another host nobody can kill what is frozen here; on the same one its processes are dead before others go on.
AGE_HEARTBEATS: Final = """
    UPDATE smithers.workers SET heartbeat_at = heartbeat_at - interval '31 seconds',
        boot_id = CASE WHEN $2 THEN 'another host' ELSE boot_id END
    WHERE dead_at IS NULL AND pid = ANY ($1)
"""
COUNT_LIVING: Final = (
    "SELECT count(*) FROM smithers.workers WHERE dead_at IS NULL AND pid = ANY ($1)"
)

FAULT_NAMES: Final = (
    *("kill-gateway", "kill-child", "kill-pool-parent", "kill-pool", "kill-postgres"),
    *("restart-postgres-fast", "restart-postgres-immediate", "kill-everything"),
    *("freeze-child", "freeze-gateway", "freeze-postgres", "freeze-pool-past-its-lease"),
    *("drain-gateway", "drain-pool"),
    *("stall-database", "half-stall-database", "stall-database-long", "reset-database"),
    *("lose-database-answer", "stall-clients", "half-stall-clients", "reset-clients"),
    "lose-clients-answer",
    *(("skew-clocks", "leap-clock") if clocks.CAN_MOVE else ()),
)

Fault = Callable[[], Awaitable[dict[str, Any]]]


class Nemesis:
    """Whoever hurts a site."""

    def __init__(self, site: Site, recorder: Recorder, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.kill_count = 0  # processes
        self._site = site
        self._recorder = recorder
        self._chance = chance

    @property
    def faults(self) -> dict[str, Fault]:
        """All that it can do, by name."""
        return {
            "kill-gateway": self._kill_gateway,
            "kill-child": self._kill_child,
            "kill-pool-parent": self._kill_pool_parent,
            "kill-pool": self._kill_pool,
            "kill-postgres": lambda: self._restart_postgres("kill"),
            "restart-postgres-fast": lambda: self._restart_postgres("fast"),
            "restart-postgres-immediate": lambda: self._restart_postgres("immediate"),
            "kill-everything": self._kill_everything,
            "freeze-child": self._freeze_child,
            "freeze-gateway": self._freeze_gateway,
            "freeze-postgres": self._freeze_postgres,
            "freeze-pool-past-its-lease": self._freeze_pool_past_its_lease,
            "drain-gateway": self._drain_gateway,
            "drain-pool": self._drain_pool,
            "stall-database": lambda: self._stall(self._any_part().database, self._short()),
            "half-stall-database": self._half_stall_database,
            "stall-database-long": lambda: self._stall(self._any_part().database, LONG_S),
            "reset-database": lambda: self._reset(self._any_part().database),
            "lose-database-answer": lambda: self._lose_answer(self._any_part().database),
            "stall-clients": lambda: self._stall(self._any_door(), self._short()),
            "half-stall-clients": lambda: self._stall(self._any_door(), self._short(), Way.BACK),
            "reset-clients": lambda: self._reset(self._any_door()),
            "lose-clients-answer": lambda: self._lose_answer(self._any_door()),
            "skew-clocks": self._skew_clocks,
            "leap-clock": self._leap_clock,
        }

    async def hurt(self, names: list[str], *, pause_s: float, is_over: asyncio.Event) -> None:
        """Do one fault after another, some beside the next, until told that it is over; then heal everything."""
        faults, beside = self.faults, set[asyncio.Task[None]]()
        order: list[str] = []
        try:
            while not is_over.is_set():
                if not order:  # each once before any twice, in an order of chance
                    order = self._chance.sample(names, len(names))
                name = order.pop()
                doing = asyncio.create_task(self._do(name, faults[name]))
                # Proxies are each part's own: what they do may stand beside anything.
                if name.endswith(("-long", "-clients")):
                    beside.add(doing)
                    doing.add_done_callback(beside.discard)
                else:
                    await doing
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._chance.uniform(0, 2 * pause_s)):
                        await is_over.wait()
        finally:
            await asyncio.gather(*beside)
            self._site.heal()
            self._recorder.write("nemesis", "healed")

    async def _do(self, name: str, fault: Fault) -> None:
        began_at = time.time()
        fields = await fault()
        self.counts[name] += 1
        self.kill_count += len(fields.get("killed", ()))
        self._recorder.write("nemesis", name, began_at=began_at, **fields)

    async def _kill_gateway(self) -> dict[str, Any]:
        part = self._chance.choice(self._site.gateways)
        killed = part.kill()
        await self._pause()
        await self._site.start(part)
        return {"part": part.name, "killed": killed}

    async def _kill_child(self) -> dict[str, Any]:
        part = self._chance.choice(self._site.pools)
        children = await self._site.find_children(part)
        killed = [self._chance.choice(children)] if children else []
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return {"part": part.name, "killed": killed}

    async def _kill_pool_parent(self) -> dict[str, Any]:
        part = self._chance.choice(self._site.pools)
        parent = part.process
        assert parent is not None
        parent.kill()
        part.close()
        await self._pause()
        await self._site.start(part)
        return {"part": part.name, "killed": [parent.pid]}

    async def _kill_pool(self) -> dict[str, Any]:
        part = self._chance.choice(self._site.pools)
        killed = part.kill()
        await self._pause()
        await self._site.start(part)
        return {"part": part.name, "killed": killed}

    async def _restart_postgres(self, how: str) -> dict[str, Any]:
        postgres = self._site.postgres
        killed = postgres.pids if how == "kill" else []
        await asyncio.to_thread(postgres.kill if how == "kill" else lambda: postgres.stop(how))
        await self._pause()
        await asyncio.to_thread(postgres.start)
        return {"killed": killed}

    async def _kill_everything(self) -> dict[str, Any]:
        site = self._site
        killed = [pid for part in site.parts for pid in part.kill()] + site.postgres.pids
        await asyncio.to_thread(site.postgres.kill)
        await self._pause()
        await asyncio.to_thread(site.postgres.start)
        await asyncio.gather(*[site.start(part) for part in site.parts])
        return {"killed": killed}

    async def _freeze_child(self) -> dict[str, Any]:
        children = await self._site.find_children(self._chance.choice(self._site.pools))
        return await self._freeze([self._chance.choice(children)] if children else [])

    async def _freeze_gateway(self) -> dict[str, Any]:
        return await self._freeze(self._chance.choice(self._site.gateways).pids)

    async def _freeze(self, pids: list[int]) -> dict[str, Any]:
        _signal(pids, signal.SIGSTOP)
        await self._pause()
        _signal(pids, signal.SIGCONT)
        return {"frozen": pids}

    async def _freeze_postgres(self) -> dict[str, Any]:
        self._site.postgres.freeze()
        await self._pause()
        self._site.postgres.thaw()
        return {}

    async def _freeze_pool_past_its_lease(self) -> dict[str, Any]:
        """Stop a pool until others have given it up for dead, and let it go on: it must write nothing."""
        part = self._chance.choice(self._site.pools)
        frozen = part.signal(signal.SIGSTOP)
        connection = await self._site.connect()
        try:
            await connection.execute(AGE_HEARTBEATS, frozen, self._chance.random() < 0.5)
            with suppress(TimeoutError):  # whoever would notice may be cut off itself right now
                async with asyncio.timeout(BURIAL_LIMIT_S):
                    while await connection.fetchval(COUNT_LIVING, frozen):
                        await asyncio.sleep(0.1)
            await self._pause()
        finally:
            _signal(frozen, signal.SIGCONT)
            await connection.close()
        return {"part": part.name, "frozen": frozen}

    async def _drain_gateway(self) -> dict[str, Any]:
        return await self._drain(self._chance.choice(self._site.gateways))

    async def _drain_pool(self) -> dict[str, Any]:
        return await self._drain(self._chance.choice(self._site.pools))

    async def _drain(self, part: Part) -> dict[str, Any]:
        await self._site.drain(part)
        await self._site.start(part)
        return {"part": part.name}

    async def _stall(self, proxy: Proxy, seconds: float, *ways: Way) -> dict[str, Any]:
        proxy.stall(*ways)
        await asyncio.sleep(seconds)
        proxy.heal()
        return {"seconds": seconds}

    async def _half_stall_database(self) -> dict[str, Any]:
        way = self._chance.choice(list(Way))
        return await self._stall(self._any_part().database, self._short(), way)

    async def _reset(self, proxy: Proxy) -> dict[str, Any]:
        return {"links": proxy.reset()}

    async def _lose_answer(self, proxy: Proxy) -> dict[str, Any]:
        before = proxy.lost_count
        proxy.lose_answer()
        await self._pause()
        proxy.heal()
        return {"lost": proxy.lost_count - before}

    async def _skew_clocks(self) -> dict[str, Any]:
        """Set each host's clock ten minutes ahead, behind, or right, for all that comes after."""
        skews = {part.name: self._chance.choice(SKEWS_S) for part in self._site.parts}
        for part in self._site.parts:
            part.clock.move(skews[part.name])
        return {"skews": skews}

    async def _leap_clock(self) -> dict[str, Any]:
        """Have a host's clock leap to and fro, as a broken time service would."""
        part, seconds = self._any_part(), self._short()
        for _ in range(LEAPS):
            part.clock.move(self._chance.choice(SKEWS_S))
            await asyncio.sleep(seconds / LEAPS)
        return {"part": part.name, "seconds": seconds}

    def _any_part(self) -> Part:
        return self._chance.choice(self._site.parts)

    def _any_door(self) -> Proxy:
        door = self._chance.choice(self._site.gateways).door
        assert door is not None
        return door

    def _short(self) -> float:
        return self._chance.uniform(*SHORT_S)

    async def _pause(self) -> None:
        await asyncio.sleep(self._short())


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
