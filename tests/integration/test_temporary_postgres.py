"""A Postgres that keeps nothing: its directory goes with it, by whoever is left to remove it."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from smithers.store.embedded import open_temporary_postgres
from tests.support.serving import TREE, clean_environment, until_none

HOLDER = """
import sys
from smithers.store.embedded import open_temporary_postgres
print(open_temporary_postgres().data_dir, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="smithers-tests-", dir="/tmp") as name:
        Path(name).chmod(0o755)  # the account that runs the server of root must reach it
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


async def test_it_answers_and_leaves_nothing(parent: Path) -> None:
    postgres = open_temporary_postgres()
    connection = await asyncpg.connect(postgres.dsn)
    assert await connection.fetchval("SELECT current_setting('fsync')") == "off"
    await connection.close()
    assert [postgres.data_dir] == list(parent.iterdir())
    postgres.close()
    postgres.close()
    assert list(parent.iterdir()) == []


async def test_another_that_runs_is_left_alone() -> None:
    with_users = open_temporary_postgres()
    connection = await asyncpg.connect(with_users.dsn)
    await connection.execute("CREATE TABLE kept ()")
    other = open_temporary_postgres()
    assert await connection.fetchval("SELECT count(*) FROM kept") == 0
    again = await asyncpg.connect(with_users.dsn)
    assert await again.fetchval("SELECT to_regclass('kept')") == "kept"
    await again.close()
    await connection.close()
    other.close()
    with_users.close()


def test_what_a_killed_opener_left_is_removed_by_the_next(parent: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environment(TMPDIR=str(parent)),
        cwd=TREE,
        text=True,
    )
    assert holder.stdout is not None
    left = holder.stdout.readline().strip()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    until_none(left)  # the server ends by itself
    assert Path(left).exists()
    open_temporary_postgres().close()
    assert list(parent.iterdir()) == []


def test_a_directory_that_somebody_is_about_to_use_is_left_alone(parent: Path) -> None:
    fresh = parent / "smithers-temporary-fresh"
    fresh.mkdir()
    link = parent / "smithers-temporary-link"
    link.symlink_to(fresh)
    open_temporary_postgres().close()
    assert fresh.is_dir()
    assert link.is_symlink()
