"""The short form of `make chaos`: a little of each fault under random load, and then the checker's verdict.

A failure prints the command that repeats it, and leaves history, rows, ledger and log in a directory that it names.
"""

import os
import random
from pathlib import Path

import aiohttp
import pytest

from chaos.load import Clients, Life, Script
from chaos.nemesis import FAULT_NAMES
from chaos.recorder import Recorder
from chaos.trial import Options, run_trial

# What needs longer than the gate has: to drain, or to be silent for as long as it takes to be given up for dead.
LONG = {"drain-gateway", "drain-pool", "freeze-pool-past-its-lease", "stall-database-long"}
SEED = int(os.environ.get("SMITHERS_TEST_SEED", "20261122"))


@pytest.mark.timeout(300)
async def test_a_quarter_of_a_minute_of_everything_breaks_no_promise() -> None:
    faults = [name for name in FAULT_NAMES if name not in LONG]
    options = Options(seconds=15, seed=SEED, lanes=6, pause_s=0.3, faults=faults)
    verdict = await run_trial(options)
    assert verdict.is_sound, f"\n{verdict}"
    assert verdict.figures["faults"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_minutes_of_everything_break_no_promise() -> None:
    options = Options(seconds=120, seed=SEED, lanes=10, pause_s=0.5, faults=list(FAULT_NAMES))
    verdict = await run_trial(options)
    assert verdict.is_sound, f"\n{verdict}"


@pytest.mark.parametrize(
    ("answers", "goes_on"),
    [(["ok"], True), (["refused"], False), (["unknown", "refused"], True)],
    ids=["done", "refused", "perhaps done, and then refused"],
)
async def test_a_client_gives_a_run_up_only_where_it_was_surely_not_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[str], goes_on: bool
) -> None:
    left = iter(answers)

    async def answer(*_args: object, **_fields: object) -> str:
        return next(left)

    monkeypatch.setattr(Life, "_ask", answer)
    with Recorder(tmp_path / "history") as recorder:
        async with aiohttp.ClientSession() as http:
            clients = Clients(http=http, urls=["http://nowhere"], recorder=recorder)
            life = Life("r", Script(given={}, max_resumes=1), random.Random(1), clients)
            assert await life._resume() is goes_on
