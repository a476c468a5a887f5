"""Lives from before to after an ordeal of the whole server; all that was said and seen is held to the promises."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg

from chaos.checker import History, Runs, check, read_ledger
from chaos.dump import read_runs
from chaos.load import Clients, Life, Script
from chaos.recorder import Recorder
from chaos.site import Site

LIVES = 24
WITHIN_S = 8.0  # lives begin
SEED = 7
LIMIT_S = 200
OPEN_RUNS = """
    SELECT run_id, status, owner_id IS NOT NULL AS is_owned, due_at - smithers.clock() AS due_in, crash_count, is_solo
    FROM smithers.runs WHERE finished_at IS NULL ORDER BY run_id
"""

Ordeal = Callable[[Site], Awaitable[asyncpg.Connection]]


@asynccontextmanager
async def site_on(environment: dict[str, str] | None = None, **parts: int) -> AsyncIterator[Site]:
    """Have a site of two gateways and a pool, or of other `parts`; its Postgres has this environment."""
    chosen: dict[str, Any] = {"gateways": 2, "pools": 1, **parts}
    site = Site(**chosen)
    site.postgres.environment = environment or {}
    try:
        async with site:
            yield site
    finally:
        site.remove()


async def go_through(
    site: Site, ordeal: Ordeal, *, seed: int = SEED, has_true_times: bool = True
) -> tuple[Runs, list[dict[str, Any]]]:
    """Have lives from before to after an ordeal; judge them, and return the rows and what bodies wrote.

    The ordeal answers a connection to where the rows are in the end. Without true times, where the database's clock was
    moved, nothing is held to when it happened.
    """
    history_path = site.place / "history.jsonl"
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    living: list[Life] = []
    with Recorder(history_path) as recorder:
        async with aiohttp.ClientSession(connector=connector) as http:
            clients = Clients(http=http, urls=[site.url(0), site.url(1)], recorder=recorder)

            async def live(number: int) -> None:
                chance = random.Random(f"{seed}/{number}")
                await asyncio.sleep(chance.uniform(0, WITHIN_S))
                life = Life(f"r{number}", Script.draw(chance), chance, clients)
                living.append(life)
                await life.live()
                living.remove(life)

            try:
                async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
                    for number in range(LIVES):
                        group.create_task(live(number))
                    connection = await ordeal(site)
            except TimeoutError:
                raise AssertionError(await _describe(site, living)) from None
    try:
        runs = await read_runs(connection)
    finally:
        await connection.close()
    ledger = read_ledger(site.ledger_path)
    witnessed = ledger if has_true_times else [line | {"at": 0.0} for line in ledger]
    violations = check(History.read(history_path), runs, witnessed)
    assert [str(one) for one in violations] == [], site.last_words()
    assert len(runs) >= LIVES / 2
    return runs, ledger


async def _describe(site: Site, living: list[Life]) -> str:
    """Say who has not come to an end, and what the database knows of it."""
    late = [f"{life.run_id}: {life.last_seq} {life.last_type} {life.script}" for life in living]
    connection = await asyncpg.connect(host="127.0.0.1", port=_port(site), user="postgres")
    try:
        rows = [str(dict(row)) for row in await connection.fetch(OPEN_RUNS)]
    finally:
        await connection.close()
    return "\n".join([f"not over after {LIMIT_S} s:", *late, *rows, site.last_words(20_000)])


def _port(site: Site) -> int:
    """The database that the site uses now."""
    return site.parts[0].database.target[1]
