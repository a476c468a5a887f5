"""Read the new events of many runs at once, for streams.

A run's `seq` is handed out under its row's lock, so within a run events become visible in order and without gaps: a
cursor per run loses nothing, where a cursor over all runs would (a lower number may commit later). A run's status, its
last_seq and its events come from one snapshot: "terminal, and all sent" is decided on that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg

from smithers.ids import RunId
from smithers.states import TERMINAL_STATUSES
from smithers.store.connections import driver_errors
from smithers.store.lanes import Lane

PAGE_EVENTS: Final = 500
# An event may hold 64 KiB of output, and a reader's share of memory is about four pages.
PAGE_BYTES: Final = 256 * 1024


class Cursor(NamedTuple):  # a key: it is hashed more often than it is made
    """The last event of a run that a viewer has; -1: none."""

    run_id: RunId
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The events after a cursor, numbered from `first_seq` without a gap.

    At most PAGE_EVENTS of them and PAGE_BYTES together; a larger one comes alone.
    """

    run_id: RunId
    has_ended: bool  # the run, until it is resumed
    last_seq: int  # of the run, in the same snapshot
    now_ms: int  # the database's time when this was read
    first_seq: int  # of the payloads
    payloads: Sequence[str]  # JSON

    @property
    def end_seq(self) -> int:
        """The last of these events, or the cursor's own."""
        return self.first_seq + len(self.payloads) - 1

    @property
    def has_more(self) -> bool:
        """The run has events after these: the page ended before them."""
        return bool(self.payloads) and self.end_seq < self.last_seq

    @property
    def is_last(self) -> bool:
        """The run has ended, and nothing comes after this."""
        return self.has_ended and self.end_seq >= self.last_seq


Tails = dict[tuple[RunId, int], Tail]  # by their cursors
TailLane = Lane[tuple[Cursor, ...], Tails]

# -- name: read_tails
# LATERAL: one walk of the primary key for each cursor, ended by its LIMIT. Aggregated, because a row for each event
# would cost more than the event. The time is read once, not for each row.
# Text that is stored apart has its length beside it, so what a page ends before is not read.
# Cursors are passed as two strings: asyncpg encodes an array parameter far more slowly.
READ_TAILS: Final = """
    SELECT c.run_id, c.seq, r.status, r.last_seq, e.first_seq, e.payloads,
        (SELECT smithers.to_ms(smithers.clock())) AS now_ms
    FROM unnest(string_to_array($1, ' '), string_to_array($2, ' ')::bigint[]) AS c(run_id, seq)
    JOIN smithers.runs r ON r.run_id = c.run_id
    CROSS JOIN LATERAL (
        SELECT min(p.seq) AS first_seq, array_agg(p.payload ORDER BY p.seq) AS payloads FROM (
            SELECT w.seq, w.payload,
                   sum(octet_length(w.payload)) OVER (ORDER BY w.seq ROWS UNBOUNDED PRECEDING) AS byte_count
            FROM (
                SELECT v.seq, v.payload FROM smithers.events v
                WHERE v.run_id = c.run_id AND v.seq > c.seq ORDER BY v.seq LIMIT $3) w
        ) p
        WHERE p.byte_count <= $4 OR p.byte_count = octet_length(p.payload)
    ) e"""

# -- name: find_moved
# The net under lost hints: which of these runs have more than their viewers were sent.
FIND_MOVED: Final = """
    SELECT r.run_id FROM unnest($1::text[], $2::text[]::bigint[]) AS c(run_id, seq)
    JOIN smithers.runs r ON r.run_id = c.run_id WHERE r.last_seq > c.seq"""


def open_tail_lane(dsn: str, *, role: str) -> TailLane:
    """Open a lane of reads; submitting cursors returns their tails, beside others, where their runs exist."""
    return Lane(dsn, role=role, flush=read_tails)


async def read_tails(
    connection: asyncpg.Connection, asked: Sequence[tuple[Cursor, ...]]
) -> list[Tails]:
    """Read for all callers in one query; each gets what was read for all of them."""
    run_ids, seqs = zip(*{cursor for cursors in asked for cursor in cursors}, strict=True)
    rows = await connection.fetch(
        READ_TAILS, " ".join(run_ids), " ".join(map(str, seqs)), PAGE_EVENTS, PAGE_BYTES
    )
    found = {
        (row["run_id"], row["seq"]): Tail(
            run_id=row["run_id"],
            has_ended=row["status"] in TERMINAL_STATUSES,
            last_seq=row["last_seq"],
            now_ms=row["now_ms"],
            first_seq=row["seq"] + 1 if row["first_seq"] is None else row["first_seq"],
            payloads=row["payloads"] or (),
        )
        for row in rows
    }
    return [found] * len(asked)


async def find_moved(pool: asyncpg.Pool, cursors: Sequence[Cursor]) -> list[RunId]:
    """Return the runs with events after their cursors."""
    with driver_errors():
        rows = await pool.fetch(
            FIND_MOVED,
            [cursor.run_id for cursor in cursors],
            [str(cursor.seq) for cursor in cursors],
        )
    return [row["run_id"] for row in rows]
