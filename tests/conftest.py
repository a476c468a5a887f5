"""What every test may ask for: `database`, the DSN of a fresh migrated database."""

from collections.abc import AsyncIterator, Iterator

import pytest

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
