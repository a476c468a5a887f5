"""What a throwaway process says of a version, whatever becomes of the process."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smithers.ids import SourceHash
from smithers.processes import find_process
from smithers.source.beneath import RootDirectory
from smithers.source.closure import SourceReader
from smithers.source.description import Description
from smithers.store.connections import open_pool
from smithers.store.descriptions import find_description, keep_source, want_description
from smithers.store.pool_store import open_pool_store
from worker import describing
from worker.describing import Describer, describe_in_process
from worker.fork_server import ForkServer, open_fork_server

WORKFLOW = """
from smithers import Sequence, workflow

@workflow
def named(ctx):
    return Sequence()
"""


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = open_fork_server()
    yield server
    server.close()


def read_bundle(root: Path, source: str) -> str:
    (root / "flow.py").write_text(source + WORKFLOW, encoding="utf-8")
    with RootDirectory(root) as directory:
        return SourceReader(directory).read("flow.py").to_json()


async def describe(fork_server: ForkServer, root: Path, source: str) -> Description:
    bundle = read_bundle(root, source)
    return Description.from_json(
        await describe_in_process(fork_server, bundle, "", root_dir=str(root))
    )


async def test_what_the_source_says_is_a_fact(fork_server: ForkServer, tmp_path: Path) -> None:
    found = await describe(fork_server, tmp_path, "")
    assert (found.workflow_name, found.error, found.is_accident) == ("named", None, False)
    found = await describe(fork_server, tmp_path, "raise ValueError('wrong')\n")
    assert "ValueError: wrong" in (found.error or "")
    assert not found.is_accident


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n", "exit code -9"),
        ("import threading; threading.Event().wait()\n", "took longer than 0.5 s"),
    ],
)
async def test_what_befalls_the_process_is_an_accident(
    fork_server: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    error: str,
) -> None:
    if "took" in error:
        monkeypatch.setattr(describing, "TIMEOUT_S", 0.5)
    found = await describe(fork_server, tmp_path, source)
    assert error in (found.error or "")
    assert found.is_accident


async def test_an_import_that_closes_its_descriptors_holds_up_nobody(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "EXIT_S", 0.2)
    began = time.monotonic()
    found = await describe(
        fork_server, tmp_path, "import os, time; os.closerange(3, 256); time.sleep(300)\n"
    )
    assert time.monotonic() - began < 60
    assert "closed the pipe" in (found.error or "")
    assert found.is_accident


async def test_what_an_import_has_started_ends_with_it(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    found = await describe(
        fork_server,
        tmp_path,
        """
import os, subprocess
started = subprocess.Popen(["sleep", "300"], start_new_session=True).pid
forked = os.fork()
if not forked:
    os.setsid()
    import time
    time.sleep(300)
with open("pids", "w") as file:
    file.write(f"{started} {forked}")
""",
    )
    assert found.error is None
    for pid in (tmp_path / "pids").read_text().split():
        async with asyncio.timeout(60):
            while find_process(int(pid)) is not None:
                await asyncio.sleep(0.01)


async def test_an_import_that_writes_into_the_pipe_is_no_description(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    for said in (r'b"\xff\n"', r'b"[1]\n"', """b'{"error": 1}\\n'""", r'b"[" * 60_000 + b"\n"'):
        found = await describe(
            fork_server,
            tmp_path,
            f"""
import os, sys
frame = sys._getframe()
while "sender" not in frame.f_locals:
    frame = frame.f_back
os.write(frame.f_locals["sender"], {said})
""",
        )
        assert "no description" in (found.error or "")


async def test_an_import_that_hangs_holds_up_no_other(
    fork_server: ForkServer, tmp_path: Path, database: str
) -> None:
    sources = ["import threading; threading.Event().wait()\n"] * 3 + ["", "import nosuchmod\n"] * 2
    async with (
        open_pool(database, role="test", max_size=1) as pool,
        open_pool_store(database, database) as store,
    ):
        for number, source in enumerate(sources):
            bundle = read_bundle(tmp_path, f"# {number}\n{source}")
            await keep_source(pool, SourceHash(str(number)), bundle)
            await want_description(pool, SourceHash(str(number)), "")
        describer = Describer(fork_server, store, root_dir=str(tmp_path))
        running = asyncio.create_task(describer.run())
        async with asyncio.timeout(60):
            while len(await store.list_wanted_descriptions()) > 3:
                await asyncio.sleep(0.01)
        found = [await find_description(pool, SourceHash(str(number)), "") for number in range(7)]
        running.cancel()
        await asyncio.wait([running])
    assert found[:3] == [None] * 3
    errors = [row.error for row in found[3:] if row is not None]
    assert [error and "nosuchmod" in error for error in errors] == [None, True, None, True]
