"""What a pool's parent passes on: to whom, and without ever waiting for one who does not hear."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from worker.loads import GONE, Loads
from worker.relay import MAX_BYTES, Relay, listen_to_parent

PATIENCE_S = 60.0
FRESH_S = 3_600.0  # however long a test takes


class Family:
    """A parent's relay and its children's ears, in one process."""

    def __init__(self, *counts: int) -> None:
        self.loads = Loads(list(counts), [time.monotonic()] * len(counts))
        self.relay = Relay(self.loads)
        self.ears = [self.relay.open_ear(slot) for slot in range(len(counts))]
        self.heard: dict[int, list[frozenset[str] | str | None]] = {}
        self.moved = asyncio.Event()

    def listen(self, *slots: int) -> None:
        for slot in slots:
            heard = self.heard[slot] = []

            def note(what: frozenset[str] | str | None, heard=heard) -> None:
                heard.append(what)
                self.moved.set()

            listen_to_parent(
                self.ears[slot], self.loads, slot, on_due=partial(note, "due"), on_news=note
            )

    async def until(self, heard: dict[int, list[frozenset[str] | str | None]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.heard != heard:
                self.moved.clear()
                await self.moved.wait()

    async def until_looked_after(self) -> None:
        """Wait until the relay has seen whether what it told was heard."""
        async with asyncio.timeout(PATIENCE_S):
            while self.relay._told_at:
                await asyncio.sleep(0.005)

    def close(self) -> None:
        for slot, ear in enumerate(self.ears):
            if slot in self.relay._mouths:
                self.relay.close_mouth(slot)
            if ear.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(ear.fileno())
            ear.close()


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Family]]:
    monkeypatch.setattr("worker.loads.FRESH_S", FRESH_S)
    made: list[Family] = []
    yield made
    for family in made:
        family.close()


@pytest.fixture
def family(made):
    def make(*counts: int) -> Family:
        made.append(Family(*counts))
        return made[-1]

    return make


async def test_what_is_due_is_told_to_the_child_with_the_fewest_runs_and_to_those_apart(family):
    three = family(2, 1, 1, GONE)
    three.listen(0, 1, 2, 3)
    three.relay.pass_due()
    await three.until({0: [], 1: ["due"], 2: [], 3: ["due"]})
    await three.until_looked_after()
    assert three.heard == {0: [], 1: ["due"], 2: [], 3: ["due"]}


async def test_where_no_child_is_known_to_live_all_are_told(family):
    two = family(0, 0)
    two.loads.beats[:] = [time.monotonic() - 2 * FRESH_S, 0.0]
    two.listen(0, 1)
    two.relay.pass_due()
    await two.until({0: ["due"], 1: ["due"]})


async def test_news_are_told_to_those_that_hold_runs(family):
    three = family(1, 0, GONE)
    three.listen(0, 1, 2)
    three.relay.pass_news(frozenset({"a", "ü"}))
    three.relay.pass_news(None)
    told = [frozenset({"a", "ü"}), None]
    await three.until({0: told, 1: [], 2: told})


async def test_what_is_too_long_to_pass_on_becomes_anything(family):
    one = family(1)
    one.listen(0)
    longest = frozenset({"r" * (MAX_BYTES - len("smithers_news "))})
    one.relay.pass_news(longest)
    one.relay.pass_news(frozenset({*longest, "s"}))
    await one.until({0: [longest, None]})


async def test_a_child_that_reads_nothing_holds_up_neither_its_parent_nor_its_sibling(family):
    two = family(1, 1)
    two.listen(1)
    for _ in range(5_000):  # far more than a socket holds
        two.relay.pass_news(frozenset({"r"}))
        await asyncio.sleep(0)
    await two.until({1: [frozenset({"r"})] * 5_000})
    with pytest.raises(BlockingIOError):
        two.relay._mouths[0].send(b"full")


async def test_where_a_child_does_not_hear_that_something_is_due_its_siblings_look(family):
    three = family(0, 0, 3)
    three.listen(1, 2)
    three.relay.pass_due()
    assert three.heard == {1: [], 2: []}
    await three.until({1: ["due"], 2: ["due"]})


async def test_where_a_child_goes_while_it_is_told_its_siblings_look(family):
    two = family(0, 0)
    two.listen(0, 1)
    two.relay.pass_due()
    two.loads.tell(0, GONE)
    await two.until({0: ["due", "due"], 1: ["due"]})


async def test_a_child_that_heard_one_hint_and_not_the_next_is_not_trusted(family):
    two = family(0, 9)
    two.listen(0, 1)
    two.relay.pass_due()
    await two.until({0: ["due"], 1: []})
    asyncio.get_running_loop().remove_reader(two.ears[0].fileno())
    two.relay.pass_due()
    await two.until({0: ["due"], 1: ["due"]})


async def test_an_end_on_either_side_is_no_error(family):
    two = family(0, 0)
    two.listen(1)
    two.ears[0].close()
    two.relay.pass_due()
    two.relay.close_mouth(1)
    two.relay.pass_due_to_all()
    for _ in range(3):
        await asyncio.sleep(0)
    assert two.ears[1].recv(1, socket.MSG_DONTWAIT) == b""
    assert not asyncio.get_running_loop().remove_reader(two.ears[1].fileno())
    assert two.heard == {1: []}
