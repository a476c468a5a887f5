"""What every test may ask for: `database`, the DSN of a fresh migrated one; `own_logs`, to run commands in this process."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from tests.support.postgres import fresh_database, make_template, open_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with open_server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def database_template(postgres_server: str) -> str:
    return make_template(postgres_server)


@pytest.fixture
async def database(postgres_server: str, database_template: str) -> AsyncIterator[str]:
    async with fresh_database(postgres_server, database_template) as dsn:
        yield dsn


@pytest.fixture
def own_logs() -> Iterator[None]:
    """Have logs be afterwards as they were, whatever a command has made of them."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
