"""What a test of a fresh database stands on: a world with its root and pools, or rows alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.gateway import Rows, make_root
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
