"""What the loads share: to ask and take a no for an answer, to wait for a condition, to read a run's history."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from bench.client import Connection, Unexpected

LOOK_EVERY_S = 0.02
PATIENCE_S = 180.0
ENDS = ("RunFinished", "RunFailed", "RunCancelled")

Found = TypeVar("Found")


async def ask(connection: Connection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request; return its status, and its JSON where that is 200."""
    try:
        return 200, await connection.call(method, path, body)
    except Unexpected as refusal:  # its text: METHOD PATH: STATUS BODY
        return int(str(refusal).partition(": ")[2][:3]), None


async def until(
    condition: Callable[[], Awaitable[Found | None]], what: str, patience_s: float = PATIENCE_S
) -> Found:
    """Wait for a condition to be true, and return what it gave."""
    try:
        async with asyncio.timeout(patience_s):
            while not (found := await condition()):
                await asyncio.sleep(LOOK_EVERY_S)
            return found
    except TimeoutError:
        raise TimeoutError(f"in {patience_s:g} s it never came true that {what}") from None


async def until_counted(
    sql: asyncpg.Pool | asyncpg.Connection,
    wanted: int,
    query: str,
    *given: Any,
    patience_s: float = PATIENCE_S,
) -> None:
    """Wait until a query counts so many."""

    async def is_there() -> bool:
        count: int = await sql.fetchval(query, *given)
        return count >= wanted

    await until(is_there, f"{query} gives {wanted}", patience_s)


async def until_ended(sql: asyncpg.Pool, run_id: str, patience_s: float = PATIENCE_S) -> str:
    """Wait until a run has ended; return how."""

    async def find() -> str | None:
        status: str | None = await sql.fetchval(
            "SELECT status FROM smithers.runs WHERE run_id = $1 AND finished_at IS NOT NULL",
            run_id,
        )
        return status

    return await until(find, f"run {run_id} has ended", patience_s)


@dataclass(frozen=True)
class History:
    """A run's events in the order of seq."""

    seqs: list[int]
    epochs: list[int]
    events: list[dict[str, Any]]

    def of(self, *types: str) -> list[dict[str, Any]]:
        """Return the events of these types."""
        return [event for event in self.events if event["type"] in types]

    def faults(self) -> list[str]:
        """Say what no history may have: gaps, a falling epoch, a node finished twice, not one end at the end."""
        finished = Counter(
            (event["nodeId"], event["iteration"]) for event in self.of("NodeFinished")
        )
        checks = {
            "seq has gaps": self.seqs != list(range(len(self.seqs))),
            "the epoch falls": self.epochs != sorted(self.epochs),
            "a node finished twice": any(count > 1 for count in finished.values()),
            "not one end, or not the last": len(self.of(*ENDS)) != 1
            or self.events[-1]["type"] not in ENDS,
        }
        return [fault for fault, is_seen in checks.items() if is_seen]


async def read_history(sql: asyncpg.Pool, run_id: str) -> History:
    """Read a run's events."""
    rows = await sql.fetch(
        "SELECT seq, epoch, payload FROM smithers.events WHERE run_id = $1 ORDER BY seq", run_id
    )
    return History(
        [row["seq"] for row in rows],
        [row["epoch"] for row in rows],
        [json.loads(row["payload"]) for row in rows],
    )
