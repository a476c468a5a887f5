"""DBOS: a library in the process that serves HTTP, as its documentation has it. Two such processes share the port.

Workflows run in the process that started them, on its event loop; no queue lies between. A run's end is told by the handle
where the run is in this process, else asked of the database every 10 ms (the default is a second).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import bodies
from dbos import DBOS, DBOSConfig, SetWorkflowID
from front import begin, serve

ORDER = begin()
POLL_S = 0.01
WAIT_LIMIT_S = 600.0

first = DBOS.step()(bodies.first)
add_one = DBOS.step()(bodies.add_one)
echo = DBOS.step()(bodies.echo)
prepare = DBOS.step()(bodies.prepare)
publish = DBOS.step()(bodies.publish)
step = DBOS.step()(bodies.step)


@DBOS.workflow()
async def three(_given: dict[str, Any]) -> int:
    return await add_one(await add_one(await first()))


@DBOS.workflow()
async def chain(given: dict[str, Any]) -> int:
    for number in range(given["count"]):
        await echo(number)
    return given["count"]


@DBOS.workflow()
async def gate(_given: dict[str, Any]) -> str:
    await prepare()
    await DBOS.recv_async("ok", timeout_seconds=WAIT_LIMIT_S)
    return await publish()


@DBOS.workflow()
async def steps(given: dict[str, Any]) -> int:
    for number in range(given["count"]):
        await step(DBOS.workflow_id, number, given)
    return given["count"]


WORKFLOWS = {"three": three, "chain": chain, "gate": gate, "steps": steps}


class Here:
    """The runs of this process."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def start(self, workflow: str, run_id: str, given: Any) -> None:
        with SetWorkflowID(run_id):
            self._handles[run_id] = await DBOS.start_workflow_async(WORKFLOWS[workflow], given)

    async def end(self, _workflow: str, run_id: str) -> Any:
        handle = self._handles.pop(run_id, None) or await DBOS.retrieve_workflow_async(run_id)
        return await handle.get_result(polling_interval_sec=POLL_S)

    async def approve(self, run_id: str) -> None:
        await DBOS.send_async(run_id, "yes", "ok")


@asynccontextmanager
async def opening() -> AsyncIterator[Here]:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": ORDER["dsn"].replace("postgresql://", "postgresql+psycopg://"),
        "log_level": "ERROR",
        "application_version": "1",
        "executor_id": ORDER["name"],
        "sys_db_pool_size": 20,
    }
    DBOS(config=config)
    DBOS.launch()
    yield Here()


serve(ORDER["port"], opening, is_shared=True)
