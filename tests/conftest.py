"""What every test may ask for: `database`, the DSN of a fresh migrated one, `empty_database`, that of one with nothing in it,
and `own_logs`, to run commands in this process.

And what holds for all of them: Hypothesis tries the same examples each time, for as long as that takes, and no thread that
a test began outlives it.
"""

import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.support.postgres import fresh_database, make_template, name_database, open_server
from tests.support.waiting import LIMIT_S

settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault of an example's
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    """One that did would log, fail, or draw from the module `random` in the midst of another test."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    ends = time.monotonic() + LIMIT_S
    # Not joined: one that is just being started cannot be.
    while (left := left.intersection(threading.enumerate())) and time.monotonic() < ends:
        time.sleep(0.01)
    assert [thread.name for thread in left] == []


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
async def empty_database(postgres_server: str) -> AsyncIterator[str]:
    """Give the DSN of a database with nothing in it."""
    name = f"empty_{uuid4().hex}"
    beside = await asyncpg.connect(postgres_server)
    await beside.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield name_database(postgres_server, name)
    await beside.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await beside.close()


@pytest.fixture
def own_logs() -> Iterator[None]:
    """Have logs be afterwards as they were, whatever a command has made of them."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
