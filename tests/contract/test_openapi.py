"""A gateway answers as /openapi.json says, whatever is sent: schemathesis makes it up from the document."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from smithers.engine.frames import hash_of
from tests.support.canary import TOKEN
from tests.support.gateway import Client, Rows, make_root, running, settings_for

CONFIG = Path(__file__).with_name("schemathesis.toml")
COMMAND = Path(sys.executable).with_name("schemathesis")
RUNS = 4
LIMIT_S = 180  # far above what it takes, on a busy machine as well
pytestmark = pytest.mark.timeout(LIMIT_S + 60)
TREE = '{"children":[],"kind":"element","props":{"id":"a"},"tag":"smithers:task"}'


@pytest.fixture
async def rows(database: str, tmp_path: Path) -> AsyncIterator[Rows]:
    """One run that has ended, and some that somebody may do something to."""
    connection = await asyncpg.connect(database)
    rows = Rows(connection, make_root(tmp_path))
    await rows.describe()
    await rows.add_run("ended", status="finished", events=3)
    await rows.add_node("ended", "a", "finished", output='{"n":1}')
    await connection.execute(
        """INSERT INTO smithers.frames (run_id, frame_no, created_at, xml_hash, encoding, body)
        VALUES ('ended', 1, smithers.clock(), $1, 'keyframe', $2)""",
        hash_of(TREE),
        TREE,
    )
    for run_id in ("told", "doomed", "asking"):
        await rows.add_run(run_id)
    await rows.ask("asking", "gate")
    yield rows
    await connection.close()


async def walk(client: Client, folder: Path, *options: str) -> tuple[int | None, str]:
    """Have schemathesis try every route; answer its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        COMMAND, f"--config-file={CONFIG}", "run", f"http://localhost:{client.port}/openapi.json", *options,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(LIMIT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, said.decode()


async def test_with_a_token_every_answer_is_one_of_those_that_are_described(
    database: str, rows: Rows, tmp_path: Path
) -> None:
    async with running(settings_for(database, rows.root)) as client:
        code, said = await walk(client, tmp_path, f"--header=Authorization: Bearer {TOKEN}")
    assert code == 0, said
    # It came as far as doing something: else there were refusals alone to look at.
    assert await rows.connection.fetchval("SELECT count(*) FROM smithers.runs") > RUNS
    assert await rows.connection.fetchval("SELECT count(*) FROM smithers.signals") > 0
    doomed = "SELECT status FROM smithers.runs WHERE run_id = 'doomed'"
    assert await rows.connection.fetchval(doomed) == "cancelled"
    assert await rows.connection.fetchval("SELECT status FROM smithers.approvals") != "requested"


async def test_so_it_is_where_nobody_needs_a_token(
    database: str, rows: Rows, tmp_path: Path
) -> None:
    async with running(settings_for(database, rows.root, auth_token=None)) as client:
        code, said = await walk(
            client, tmp_path, "--phases=examples,fuzzing", "--exclude-checks=ignored_auth"
        )
    assert code == 0, said
