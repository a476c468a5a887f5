"""What a test of a fresh database stands on: a world with its root and pools, or rows alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from smithers.ids import WorkerId
from smithers.store.commits import Committer
from tests.support.gateway import Rows, make_root
from tests.support.turns import Ground
from tests.support.world import World


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with World(database, tmp_path) as world:
        yield world


@pytest.fixture
async def rows(database: str, tmp_path: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    yield Rows(connection, make_root(tmp_path))
    await connection.close()


@pytest.fixture
async def ground(database: str) -> AsyncIterator[Ground]:
    async with Ground(database) as ground:
        yield ground


@pytest.fixture
async def worker(ground: Ground) -> WorkerId:
    return await ground.add_worker()


@pytest.fixture
async def committer(ground: Ground, worker: WorkerId) -> AsyncIterator[Committer]:
    async with Committer(ground.dsn, worker_id=worker) as committer:
        yield committer
