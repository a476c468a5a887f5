"""The last release beside today's code on today's schema, under load and faults: runs go from one to the other and back.

What the last release asks of the schema is held to it in the gate: tests/migrations/test_mixed_versions.py.
"""

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.trial import Options, run_trial
from tests.support.data_dirs import scratch

TREE = Path(__file__).resolve().parents[2]
RELEASED = "c20fe5cceaafdc78d05732f6d6cf42ba775da092"
SEED = int(os.environ.get("SMITHERS_TEST_SEED", "20261122"))
SECONDS = float(os.environ.get("SMITHERS_MIXED_SECONDS", "60"))

# Ends of processes are what makes runs change hands. No restarts of Postgres: the last release keeps a connection that
# one has confused.
FAULTS = [
    *("kill-gateway", "kill-child", "kill-pool-parent", "kill-pool", "freeze-child"),
    *("drain-gateway", "drain-pool", "reset-database", "lose-database-answer"),
    *("lose-clients-answer", "reset-clients"),
]
OF_RELEASE = {
    "old gateways, new pools": ("gateway-0", "gateway-1"),
    "new gateways, old pools": ("pool-0", "pool-1"),
    "both side by side": ("gateway-0", "pool-0"),
}


@pytest.fixture(scope="module")
def released() -> Iterator[Path]:
    """The tree of the last release."""
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{RELEASED}^{{commit}}"], check=False, cwd=TREE
    )
    if known.returncode:
        pytest.skip(f"a shallow clone: it has no {RELEASED[:7]}")
    with scratch() as folder:
        packed = folder / "tree.tar"
        subprocess.run(["git", "archive", "-o", packed, RELEASED], check=True, cwd=TREE)
        with tarfile.open(packed) as archive:
            archive.extractall(folder / "tree", filter="data")
        yield folder / "tree"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", OF_RELEASE.values(), ids=OF_RELEASE)
async def test_the_last_release_and_todays_code_break_no_promise_together(
    released: Path, parts: tuple[str, ...]
) -> None:
    options = Options(seconds=SECONDS, seed=SEED, lanes=8, pause_s=0.5, faults=FAULTS)
    verdict = await run_trial(options, trees=dict.fromkeys(parts, released))
    print(verdict)  # noqa: T201 - with -s: the figures
    assert verdict.is_sound, f"\n{verdict}"
    assert verdict.figures["runs claimed more than once"] > 0
