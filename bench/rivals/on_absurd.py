"""Absurd: two worker processes that poll Postgres, and a front with eight connections; the schema is absurdctl's.

Workers look every 10 ms (the default is 250), take up to 32 tasks at once, and hold them for 10 s (default: 120), which
every step renews. A run's end is asked for every 10 ms (the SDK's own wait begins with 50 and grows).
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import bodies
import psycopg
import uvloop
from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from absurdctl import BUNDLED_SCHEMA_SQL
from front import begin, serve

POLL_S = 0.01
CONCURRENCY = 32
CLAIM_S = 10
CONNECTIONS = 8


def prepare(dsn: str) -> None:
    """Lay the schema, if it is not there."""
    with psycopg.connect(dsn, autocommit=True) as sql:
        if sql.execute("SELECT to_regnamespace('absurd') IS NULL").fetchone() == (True,):
            sql.execute(BUNDLED_SCHEMA_SQL)
            sql.execute("SELECT absurd.create_queue('bench')")


def register(absurd: AsyncAbsurd) -> None:
    @absurd.register_task("three")
    async def three(_given: Any, ctx: AsyncTaskContext) -> int:
        number = await ctx.step("first", bodies.first)
        number = await ctx.step("second", lambda: bodies.add_one(number))
        return await ctx.step("third", lambda: bodies.add_one(number))

    @absurd.register_task("chain")
    async def chain(given: Any, ctx: AsyncTaskContext) -> int:
        for number in range(given["count"]):
            await ctx.step(f"n{number}", lambda number=number: bodies.echo(number))
        return given["count"]

    @absurd.register_task("gate")
    async def gate(given: Any, ctx: AsyncTaskContext) -> str:
        await ctx.step("prepare", bodies.prepare)
        await ctx.await_event(f"ok:{given['run_id']}")
        return await ctx.step("publish", bodies.publish)

    @absurd.register_task("steps")
    async def steps(given: Any, ctx: AsyncTaskContext) -> int:
        for number in range(given["count"]):
            body = lambda number=number: bodies.step(given["run_id"], number, given)  # noqa: E731 - a step takes a call
            await ctx.step(f"s{number}", body)
        return given["count"]


class Front:
    """Starts, and waits by asking."""

    def __init__(self, clients: list[AsyncAbsurd]) -> None:
        self._clients = itertools.cycle(clients)
        self._task_ids: dict[str, str] = {}

    async def start(self, workflow: str, run_id: str, given: Any) -> None:
        spawned = await next(self._clients).spawn(
            workflow, {**(given or {}), "run_id": run_id}, queue="bench", idempotency_key=run_id
        )
        self._task_ids[run_id] = spawned["task_id"]

    async def end(self, workflow: str, run_id: str) -> Any:
        # Started by a front that is gone: the same key finds the same task.
        if run_id not in self._task_ids:
            await self.start(workflow, run_id, None)
        while True:
            found = await next(self._clients).fetch_task_result(self._task_ids[run_id], "bench")
            if found is not None and found.state == "completed":
                return found.result
            assert found is None or found.state not in {"failed", "cancelled"}, found
            await asyncio.sleep(POLL_S)

    async def approve(self, run_id: str) -> None:
        await next(self._clients).emit_event(f"ok:{run_id}", "yes", "bench")


@asynccontextmanager
async def opening() -> AsyncIterator[Front]:
    yield Front([AsyncAbsurd(ORDER["dsn"], queue_name="bench") for _ in range(CONNECTIONS)])


async def work() -> None:
    absurd = AsyncAbsurd(ORDER["dsn"], queue_name="bench")
    register(absurd)
    await absurd.start_worker(
        worker_id=ORDER["name"],
        claim_timeout=CLAIM_S,
        concurrency=CONCURRENCY,
        poll_interval=POLL_S,
    )


ORDER = begin()
if ORDER["name"] == "front":
    prepare(ORDER["dsn"])
    serve(ORDER["port"], opening)
else:
    uvloop.run(work())
