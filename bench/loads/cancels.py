"""Cancel and the finish meet on one run, over two gateways: who wins, and do answer, events and row agree?"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import asyncpg
import uvloop

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import ask, read_history, until_ended
from bench.report import Goal
from bench.server import FLOWS_DIR

LANES = 16
LAST_EVENT = {"finished": "RunFinished", "cancelled": "RunCancelled"}

GOALS = (
    Goal("cancels", "round_count", "rounds: a cancel comes about when the run finishes"),
    Goal("cancels", "cancelled_count", "cancel answered 200, run cancelled"),
    Goal("cancels", "finished_count", "cancel answered 409, run finished"),
    Goal("cancels", "disagreement_count", "rounds in which answer, events and row disagree", 0),
    Goal("cancels", "seed", "seed"),
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was answered and what is stored."""

    run_id: str
    answer: int
    status: str
    events: list[str]
    faults: list[str]

    def disagreements(self) -> list[str]:
        """Say what does not fit together; a history with something behind its end is among the faults."""
        is_cancelled = self.status == "cancelled"
        checks = {
            "the cancel's answer": self.answer != (200 if is_cancelled else 409),
            "the last event": self.events[-1] != LAST_EVENT.get(self.status),
        }
        return [*self.faults, *(what for what, is_seen in checks.items() if is_seen)]


class Races:
    """Rounds in lanes; each cancel is aimed at the moment at which the last runs finished."""

    def __init__(self, sql: asyncpg.Pool, seed: int) -> None:
        self.rounds: list[Round] = []
        self._sql = sql
        self._chance = random.Random(seed)
        self._took_s: deque[float] = deque([0.02], maxlen=64)

    async def run_lane(self, connections: list[Connection], numbers: Iterator[int]) -> None:
        """Play rounds for as long as there are numbers."""
        for _ in numbers:
            self.rounds.append(await self._play(*self._chance.sample(connections, 2)))

    async def _play(self, starter: Connection, canceller: Connection) -> Round:
        run_id = await start_run(starter, "three")
        began = time.perf_counter()
        await asyncio.sleep(self._chance.uniform(0, 2 * median(self._took_s)))
        answer, _ = await ask(canceller, "POST", f"/v1/runs/{run_id}/cancel", {})
        status = await until_ended(self._sql, run_id)
        history = await read_history(self._sql, run_id)
        if status == "finished":
            stamps = [event["timestampMs"] for event in history.events]
            self._took_s.append((stamps[-1] - stamps[0]) / 1000)
        else:  # it would have taken longer than until now
            self._took_s.append(max(median(self._took_s), time.perf_counter() - began))
        return Round(
            run_id=run_id,
            answer=answer,
            status=status,
            events=[event["type"] for event in history.events],
            faults=history.faults(),
        )


def cancels(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    seed = int(time.time())
    with Site(gateways=2, flows=FLOWS_DIR) as site:
        rounds = uvloop.run(_race(site, 64 if is_quick else 2_000, seed))
    wrong = [one for one in rounds if one.disagreements()]
    return {
        "round_count": len(rounds),
        "cancelled_count": sum(one.status == "cancelled" for one in rounds),
        "finished_count": sum(one.status == "finished" for one in rounds),
        "disagreement_count": len(wrong),
        "seed": seed,
        "notes": [f"{one}: {one.disagreements()}" for one in wrong[:20]],
    }


async def _race(site: Site, count: int, seed: int) -> list[Round]:
    async with AsyncExitStack() as stack:
        sql = await stack.enter_async_context(asyncpg.create_pool(site.dsn, min_size=2, max_size=8))
        numbers, races = iter(range(count)), Races(sql, seed)
        lanes = []
        for _ in range(LANES):
            connections = [await stack.enter_async_context(Connection(port)) for port in site.ports]
            lanes.append(races.run_lane(connections, numbers))
        await asyncio.gather(*lanes)
        return races.rounds
