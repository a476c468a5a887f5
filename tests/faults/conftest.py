"""A world for each test: a fresh database, a root, and whatever pools the test starts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.world import World


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with World(database, tmp_path) as world:
        yield world
