"""A process that is kept: who stops it stops its successor as well, however far that one has come."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from smithers.kept_process import KeptProcess, Program

# The first of them dies; the next one serves until its stdin ends.
MORTAL = """
import os, sys
from pathlib import Path
sys.stdin.readline()
try:
    Path("was-here").touch(exist_ok=False)
except FileExistsError:
    sys.stdin.read()
else:
    os._exit(1)
"""


@pytest.mark.parametrize("stop", [KeptProcess.drain, KeptProcess.kill])
async def test_one_that_is_being_started_when_it_is_stopped_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[KeptProcess], None]
) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    kept = KeptProcess(Program(module="mortal", environment=environment, cwd=tmp_path))
    start_process = asyncio.create_subprocess_exec
    is_starting, may_start = asyncio.Event(), asyncio.Event()

    async def start_held(*args: str, **options: object) -> asyncio.subprocess.Process:
        is_starting.set()
        await may_start.wait()
        return await start_process(*args, **options)

    await kept.load()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_held)
    try:
        async with asyncio.timeout(20):
            await kept.start(b"")
            await is_starting.wait()
            stop(kept)
            may_start.set()
            await kept.until_ended()
    finally:
        await kept.end()
