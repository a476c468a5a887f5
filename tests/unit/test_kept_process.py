"""A process that is kept: who stops it stops its successor as well, however far that one has come."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smithers.kept_process import KeptProcess, Program
from smithers.telemetry import names
from smithers.telemetry.exposition import merge
from smithers.telemetry.names import Role
from smithers.telemetry.sheet import Sheet

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


def mortal_program(folder: Path, sheet: Sheet) -> Program:
    (folder / "mortal.py").write_text(MORTAL)
    deaths = sheet.open_page(Role.SERVER).counter(names.PROCESSES_DIED, "mortal")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return Program(module="mortal", environment=environment, cwd=folder, deaths=deaths)


async def test_a_death_is_counted_and_an_end_that_was_asked_for_is_not(tmp_path: Path) -> None:
    def count_deaths() -> float:
        return merge(sheet.read())[names.PROCESSES_DIED.name, "mortal"][0]

    sheet = Sheet.create(1)
    kept = KeptProcess(mortal_program(tmp_path, sheet))
    assert count_deaths() == 0
    try:
        async with asyncio.timeout(60):
            await kept.start(b"")
            while not count_deaths():
                await asyncio.sleep(0.01)
            kept.drain()
            await kept.until_ended()
    finally:
        await kept.end()
    assert count_deaths() == 1


@pytest.mark.parametrize("stop", [KeptProcess.drain, KeptProcess.kill])
async def test_one_that_is_being_started_when_it_is_stopped_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[KeptProcess], None]
) -> None:
    kept = KeptProcess(mortal_program(tmp_path, Sheet.create(1)))
    start_process = asyncio.create_subprocess_exec
    is_starting, may_start = asyncio.Event(), asyncio.Event()

    async def start_held(*args: str, **options: Any) -> asyncio.subprocess.Process:
        is_starting.set()
        await may_start.wait()
        return await start_process(*args, **options)

    await kept.load()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_held)
    try:
        async with asyncio.timeout(60):
            await kept.start(b"")
            await is_starting.wait()
            stop(kept)
            may_start.set()
            await kept.until_ended()
    finally:
        await kept.end()
