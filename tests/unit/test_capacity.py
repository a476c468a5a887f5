"""How many connections a server needs, and what becomes of one that needs too many."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smithers import capacity
from smithers.capacity import count_connections, embedded_settings
from smithers.settings import InvalidSettings, ServerOptions

ONE = ServerOptions(root_dir=Path(), workers=1, http_workers=1)


def test_each_process_counts() -> None:
    alone = count_connections(replace(ONE, workers=0))
    assert alone == capacity.GATEWAY_CONNECTIONS + capacity.RETENTION_CONNECTIONS
    assert (
        count_connections(replace(ONE, workers=0, http_workers=3))
        == alone + 2 * capacity.GATEWAY_CONNECTIONS
    )
    assert (
        count_connections(replace(ONE, workers=0, http_workers=0)) == capacity.RETENTION_CONNECTIONS
    )
    with_one = count_connections(ONE)
    pool = capacity.POOL_CONNECTIONS + capacity.OWN_DATABASES_CONNECTIONS
    # Twelve more at times.
    assert with_one == alone + pool + 13 * capacity.CHILD_CONNECTIONS
    assert count_connections(replace(ONE, workers=9)) == with_one + 8 * capacity.CHILD_CONNECTIONS
    mirrored = replace(ONE, workflow_databases={"A": "postgresql://a/a", "B": "postgresql://b/b"})
    assert count_connections(mirrored) == with_one + 3


def test_an_embedded_postgres_is_started_with_as_many_as_are_needed() -> None:
    assert embedded_settings(ONE) == {"max_connections": "200"}
    many = replace(ONE, workers=64)
    assert embedded_settings(many) == {"max_connections": str(count_connections(many) + 10)}


@pytest.mark.parametrize("asked", [{"workers": 170}, {"http_workers": 130}])
def test_more_processes_than_an_embedded_postgres_takes_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings, match=r"need up to 1,?\d{3} connections.*use fewer"):
        embedded_settings(replace(ONE, **asked))
