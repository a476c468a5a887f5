"""Hints within a pool: its parent listens for all of its children, and relays to each child what concerns it.

Postgres wakes every listening session, whatever its channel, at each notification in its database: so only one listens.
A run that has become due is for the child with the fewest runs; news are for those that hold any.

A relayed hint is a datagram, and may be lost like every hint: a child whose loop is blocked, or whose socket is full,
delays neither its parent nor its siblings. Each child polls by itself once a second.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from smithers.store.hints import Channel
from worker.loads import Loads

MAX_BYTES: Final = 16_384  # of a datagram; a payload of Postgres has less than 8,000
SECOND_LOOK_S: Final = 0.05  # for a child to receive a hint; after that its siblings poll

OnNews = Callable[[frozenset[str] | None], None]  # None: to any run


class Relay:
    """The parent's part, in its event loop; nothing here waits."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._mouths: dict[int, socket.socket] = {}  # by slot
        self._told_at: dict[int, float] = {}  # by slots whose child has not been seen to receive it

    def open_ear(self, slot: int) -> socket.socket:
        """Return the other end for the child that is about to start in this slot."""
        mouth, ear = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mouth.setblocking(False)
        self._mouths[slot] = mouth
        return ear

    def close_mouth(self, slot: int) -> None:
        """Close the socket of a child that has ended."""
        self._mouths.pop(slot).close()

    def pass_due(self) -> None:
        """Relay that a run is due: to the child whose turn it is, and to those that do not compete."""
        slot = self._loads.find_next()
        if slot is None:
            self.pass_due_to_all()
            return
        for other in self._mouths:
            if other == slot or not self._loads.is_compared(other):
                self._say(other, Channel.DUE)
        self._expect_hearing(slot)

    def pass_due_to_all(self) -> None:
        """Relay that a run may be due, to every child with room."""
        for slot in self._mouths:
            self._say(slot, Channel.DUE)

    def pass_news(self, run_ids: frozenset[str] | None) -> None:
        """Relay that there is news for these runs, or any: to the children that hold some."""
        text = " ".join([Channel.NEWS, *(run_ids or ())])
        for slot in self._mouths:
            if not self._loads.is_idle(slot):
                self._say(slot, text)

    def _say(self, slot: int, text: str) -> None:
        packet = text.encode()
        if len(packet) > MAX_BYTES:
            packet = text.partition(" ")[0].encode()  # anything
        with suppress(OSError):  # it is full, or its child has ended: they poll by themselves
            self._mouths[slot].send(packet)

    def _expect_hearing(self, slot: int) -> None:
        told_at = self._told_at.get(slot)
        if told_at is None:
            asyncio.get_running_loop().call_later(SECOND_LOOK_S, self._look_again, slot)
        if told_at is None or self._loads.has_heard(slot, told_at):
            self._told_at[slot] = time.monotonic()

    def _look_again(self, slot: int) -> None:
        """Make the others poll if a child did not receive that a run is due: its loop is blocked, or it ends."""
        told_at = self._told_at[slot]
        left_s = told_at + SECOND_LOOK_S - time.monotonic()
        if left_s > 0 and not self._loads.has_heard(slot, told_at):  # it received the previous one
            asyncio.get_running_loop().call_later(left_s, self._look_again, slot)
            return
        del self._told_at[slot]
        if not self._loads.has_heard(slot, told_at):
            self.pass_due_to_all()


def listen_to_parent(
    ear: socket.socket,
    loads: Loads,
    slot: int,
    *,
    on_due: Callable[[], None],
    on_news: OnNews,
) -> None:
    """Receive the parent's hints from now on, in a child's event loop."""
    loop = asyncio.get_running_loop()
    ear.setblocking(False)

    def hear() -> None:
        try:
            packet = ear.recv(MAX_BYTES)
        except BlockingIOError:
            return
        if not packet:  # the parent is gone
            loop.remove_reader(ear.fileno())
            return
        loads.beat(slot)  # a loop that receives is alive, which the parent checks
        channel, *names = packet.decode().split(" ")
        if channel == Channel.DUE:
            on_due()
        else:
            on_news(frozenset(names) or None)

    loop.add_reader(ear.fileno(), hear)
