"""No way out of the jail is found by those that tests.support.escapes knows; it prints the table of docs/sandbox.md."""

import pytest

from tests.support.escapes import (
    ALL_WAYS,
    NETWORK_WAYS,
    READ_WAYS,
    SWAPS,
    open_place,
    socket_directory,
    try_commands,
    try_openly,
    try_tools,
)
from tests.support.jailing import USERS

# What needs the internet, or rights that a plain user does not have even outside.
NOT_FOUND_OPENLY = {"DNS", "vsock, netlink, packets", "Postgres' own socket", "hard links"}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_no_command_finds_a_way_out(user: int, postgres_server: str) -> None:
    with open_place(user, socket_directory(postgres_server)) as place:
        assert {kind.kind: kind.found for kind in place.run(ALL_WAYS) if kind.found} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_no_way_out_is_found_by_any_of_its_kind(user: int, postgres_server: str) -> None:
    with open_place(user, socket_directory(postgres_server)) as place:
        tried = [*try_commands(place), *try_tools(place, SWAPS)]
    assert {kind.kind: kind.found for kind in tried if kind.found} == {}
    assert sum(kind.tries for kind in tried) > SWAPS + 100


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_without_a_jail_the_same_ways_lead_out(user: int, postgres_server: str) -> None:
    with open_place(user, socket_directory(postgres_server)) as place:
        assert try_openly(place) >= {*READ_WAYS, *NETWORK_WAYS} - NOT_FOUND_OPENLY
