"""The short form of `make chaos`: a little of each fault under random load, and then the checker's verdict.

A failure prints the command that repeats it, and leaves history, rows, ledger and log in a directory that it names.
"""

import os

import pytest

from chaos.nemesis import FAULT_NAMES
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
