"""The connections that each process may open, beside what smithers.capacity says, and a Postgres that has too few."""

from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from gateway.access import read_access
from gateway.services import open_services
from smithers import capacity
from smithers.capacity import check_connections
from smithers.ids import WorkerId
from smithers.settings import InvalidSettings, ServerOptions
from smithers.store import connections
from smithers.store.claims import ClaimKind
from smithers.store.connections import Pool
from smithers.store.hints import Hints
from smithers.store.lanes import Lane
from smithers.store.mirror import open_mirror
from smithers.store.pool_store import open_liveness, open_pool_store
from smithers.store.retention import prune
from smithers.store.worker_store import open_worker_store
from tests.support.gateway import make_root, settings_for


class Opened:
    """What may be opened: of pools all that they may hold, of everything else one by name."""

    def __init__(self) -> None:
        self.pooled = 0
        self.names: set[str] = set()

    @property
    def count(self) -> int:
        return self.pooled + len(self.names)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    make_lane, make_hints, make_pool = Lane.__init__, Hints.__init__, Pool.__init__
    connect = connections.connect

    def lane(self: Lane[Any, Any], dsn: str, *, role: str, **given: Any) -> None:
        opened.names.add(role)
        make_lane(self, dsn, role=role, **given)

    def hints(self: Hints, dsn: str, *, role: str, **given: Any) -> None:
        opened.names.add(f"{role}-hints")
        make_hints(self, dsn, role=role, **given)

    def pool(self: Pool, dsn: str, *, max_size: int, **given: Any) -> None:
        opened.pooled += max_size
        make_pool(self, dsn, max_size=max_size, **given)

    async def one(dsn: str, *, role: str, **given: Any) -> Any:
        opened.names.add(role)
        return await connect(dsn, role=role, **given)

    monkeypatch.setattr(Lane, "__init__", lane)
    monkeypatch.setattr(Hints, "__init__", hints)
    monkeypatch.setattr(Pool, "__init__", pool)
    monkeypatch.setattr(connections, "connect", one)
    return opened


async def test_a_gateway_opens_as_many_as_are_counted(
    database: str, tmp_path: Path, opened: Opened
) -> None:
    async with AsyncExitStack() as stack:
        settings = settings_for(database, make_root(tmp_path))
        await open_services(settings, read_access(settings), stack)
    assert opened.count == capacity.GATEWAY_CONNECTIONS, opened.names


async def test_a_pool_opens_as_many_as_are_counted(database: str, opened: Opened) -> None:
    async with (
        open_pool_store(database, database) as store,
        store.hints,
        open_liveness(database, uuid4()),
    ):
        assert opened.count == capacity.POOL_CONNECTIONS, opened.names


async def test_a_child_opens_as_many_as_are_counted(database: str, opened: Opened) -> None:
    async with open_worker_store(database, WorkerId(uuid4())) as store:
        await store.claim("default", 1, ClaimKind.MANY)
    assert opened.count == capacity.CHILD_CONNECTIONS, opened.names


async def test_what_removes_old_runs_and_what_mirrors_open_as_many_as_are_counted(
    database: str, opened: Opened
) -> None:
    await prune(database, timedelta(days=1))
    assert opened.count == capacity.RETENTION_CONNECTIONS, opened.names
    async with open_mirror(database, database, "OWN"):
        assert opened.names == {"retention", "mirror", "mirrored"}


async def test_a_postgres_with_too_few_connections_is_warned_of_or_refused(database: str) -> None:
    few = ServerOptions(root_dir=Path(), workers=1)
    many = replace(few, workers=100)  # the tests' server allows 300
    with capture_logs() as logs:
        await check_connections(few, database, is_embedded=False)
        await check_connections(few, database, is_embedded=True)
    assert logs == []
    with capture_logs() as logs:
        await check_connections(many, database, is_embedded=False)
    (told,) = logs
    assert (told["event"], told["needed"]) == ("connections_short", 688)
    with pytest.raises(InvalidSettings, match=r"--workers 100 .* need up to 688 connections"):
        await check_connections(many, database, is_embedded=True)
