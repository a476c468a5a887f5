"""Calls of attempts whose process died: recalled by a later attempt as long as it takes the same path.

A call is identified by the call within which it is made (its parent; most have none), its kind, name and input, and its
position: sequential calls of one parent are recalled in their order. Concurrent calls have no defined
order: those, from the first to the last that was made beside another, are recalled in any
order. A call's inner calls are recalled together with it.

An attempt takes another path when it makes a call that is not the next of its parent. With concurrent calls it
does so only if none of them has been recalled yet, or all have been: while some are left, a new call only runs ahead of them.
From there on the earlier calls are abandoned. For those without a parent whose effects must not happen twice, the first
call of the same tool is not made, and its result lists them.

Numbers record this for later attempts: calls on another path are numbered on from the recalled ones, and so reuse the
numbers of abandoned calls; calls on the same path never have the number of a call that may still be recalled.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from operator import attrgetter
from typing import Final, NamedTuple

import orjson

from smithers.states import ToolCallState
from smithers.store.tool_calls import HEAD_CHARS, ToolCallRow, digest_of
from smithers.tools.errors import CallLost, ToolError
from smithers.tools.toolbox import CallStart

LOST_CALL: Final = (
    "{name} was called before, and was cut off before it answered: nobody knows whether it was done. Find out before "
    "calling it again."
)
FORGOTTEN_CALLS: Final = (
    "This call was not made, because {name} was called before, by an attempt whose process died:\n{calls}\nThose effects "
    "stand. Call it again only if that is not what you are about to do."
)
MAX_FORGOTTEN: Final = 5  # the newest of a tool, listed in an error's text
NO_PARENT: Final = 0


class NotMade(ToolError):
    """The recorded end of a call that was stopped before anything was done."""

    code = "TOOL_CALL_NOT_MADE"


class Recalled(NamedTuple):
    """A call that is not made, and how it ended; `loss`: or why that is unknown."""

    row: ToolCallRow
    inner: tuple[ToolCallRow, ...] = ()  # its inner calls, at any depth
    loss: CallLost | None = None

    @property
    def is_refused(self) -> bool:
        """Say whether it was refused, by this attempt or by an earlier one."""
        return self.loss is not None or _code_of(self.row) == CallLost.code


class Recall:
    """The calls of a node's attempts that died, in the order in which this attempt asks for them; and its numbers."""

    def __init__(self, rows: Sequence[ToolCallRow]) -> None:
        """Load the calls of all attempts, oldest first."""
        self._places: dict[int, _Place] = {}
        self._forgotten: list[ToolCallRow] = []
        self._last_no = 0  # the highest that this attempt has made or recalled
        if rows:  # most attempts are the first
            self._learn(row for row in rows if row.is_recallable)

    def take(self, start: CallStart, *, parent: int) -> Recalled | None:
        """Return a call's recorded end; None: make it, under the number that `number` returns."""
        made = self._find(start, parent)
        if made is None:
            return self._take_forgotten(start)
        if self._is_made_again(made, start, parent):
            return None
        self._places[parent].pop(made)
        inner = tuple(self._pop_all(made.call_no))
        self._last_no = max(self._last_no, made.call_no, *(row.call_no for row in inner))
        loss = CallLost(LOST_CALL.format(name=start.tool_name)) if _is_cut_off(made) else None
        return Recalled(made, inner, loss)

    def number(self, start: CallStart, *, parent: int) -> int:
        """Return the number for a call: its earlier one if it is made again."""
        made = self._find(start, parent)
        if made is None:
            return self._next_number()
        self._places[parent].pop(made)
        self._last_no = max(self._last_no, made.call_no)
        return made.call_no

    def leave(self, call_no: int) -> None:
        """Record that a call has ended: its earlier inner calls that it did not repeat are discarded."""
        self._pop_all(call_no)

    def _learn(self, rows: Iterable[ToolCallRow]) -> None:
        history = _History()
        for _, attempt in groupby(rows, key=attrgetter("attempt")):
            history.learn(attempt)
        self._places, self._forgotten = history.lay_out(), history.forgotten

    def _find(self, start: CallStart, parent: int) -> ToolCallRow | None:
        """Return a call's earlier record; if there is none, and this is another path, abandon the calls ahead."""
        place = self._places.get(parent)
        if place is None:
            return None
        made = place.find(start)
        if made is None and place.is_left:
            self._forgotten += filter(_is_told, self._pop_all(parent))
        return made

    def _pop_all(self, parent: int) -> list[ToolCallRow]:
        """Remove the rest of a call's inner calls, at any depth."""
        place = self._places.pop(parent, None)
        rows = [] if place is None else list(place.rows.values())
        return rows + [inner for row in rows for inner in self._pop_all(row.call_no)]

    def _next_number(self) -> int:
        ahead = (place.last_ahead for place in self._places.values())
        self._last_no = max(self._last_no, *ahead, 0) + 1
        return self._last_no

    def _take_forgotten(self, start: CallStart) -> Recalled | None:
        same = [row for row in self._forgotten if row.tool_name == start.tool_name]
        if not same or start.kind != "tool" or is_repeatable(start):
            return None
        self._forgotten = [row for row in self._forgotten if row.tool_name != start.tool_name]
        calls = "\n".join(map(_describe, same[-MAX_FORGOTTEN:]))
        loss = CallLost(FORGOTTEN_CALLS.format(name=start.tool_name, calls=calls))
        row = replace(same[-1], call_no=self._next_number(), input=start.input)
        return Recalled(row, loss=loss)

    def _is_made_again(self, made: ToolCallRow, start: CallStart, parent: int) -> bool:
        """Say whether a recorded call is made again.

        A failed question is asked again, unless the agents went on after its failure.
        """
        if is_not_made(made):
            return True
        if _is_cut_off(made):
            return is_repeatable(start)
        is_failed_question = made.kind == "model" and made.state == ToolCallState.FAILED
        return is_failed_question and self._places[parent].last_no == made.call_no


@dataclass(slots=True)
class _Place:
    """The calls within one call, or within none, that have not been recalled yet; by number, in order."""

    rows: dict[int, ToolCallRow] = field(default_factory=dict)
    at_once: range = range(0)  # the numbers of those that may be recalled in any order
    is_begun: bool = False  # one of those has been recalled
    last_no: int = 0  # the highest that was made

    def widen(self, first: int, last: int) -> None:
        """Record that the calls from here to there were concurrent."""
        low = min(self.at_once.start or first, first)
        self.at_once = range(low, max(self.at_once.stop, last + 1))

    @property
    def is_left(self) -> bool:
        """Say whether a call that is not here means another path."""
        for number in self.rows:
            return number not in self.at_once or not self.is_begun
        return False

    @property
    def last_ahead(self) -> int:
        """The highest number that may still be recalled."""
        return next(reversed(self.rows), 0)

    def find(self, start: CallStart) -> ToolCallRow | None:
        """Return the first call that matches."""
        digest = digest_of(start.input)
        for number, row in self.rows.items():
            if _is_same(row, start, digest):
                return row
            if number not in self.at_once and not _may_be_inner(row):
                return None
        return None

    def pop(self, made: ToolCallRow) -> None:
        """Remove one, with the possible inner calls of those before it."""
        self.is_begun = self.is_begun or made.call_no in self.at_once
        passed = takewhile(lambda row: row is not made, self.rows.values())
        for row in (made, *filter(_may_be_inner, passed)):
            del self.rows[row.call_no]


class _History:
    """The calls of successive attempts, each of which continued the previous one's path, or left it."""

    def __init__(self) -> None:
        self.forgotten: list[ToolCallRow] = []
        self._made: dict[int, ToolCallRow] = {}
        self._beside: list[tuple[int, int, int]] = []  # parent, first, last of concurrent calls

    def learn(self, attempt: Iterable[ToolCallRow]) -> None:
        """Add the calls of the next attempt; if it left the others' path, abandon their calls from there on."""
        beside: list[tuple[int, int, int]] = []
        for row in attempt:
            known = self._made.get(row.call_no)
            if known is not None and _key(known) != _key(row):
                self._forget(row.call_no)
            self._made[row.call_no] = row
            parent, number, other = row.parent_call_no, row.call_no, row.beside_call_no
            if parent is not None and other is not None:
                beside.append((parent, min(number, other), max(number, other)))
        self._beside += beside

    def lay_out(self) -> dict[int, _Place]:
        """Return the remaining calls by parent; one recorded without a parent counts as having none."""
        places: dict[int, _Place] = {}
        for number, row in sorted(self._made.items()):
            place = places.setdefault(row.parent_call_no or NO_PARENT, _Place())
            place.rows[number] = row
            place.last_no = number
        for parent, first, last in self._beside:
            if parent in places:
                places[parent].widen(first, last)
        return places

    def _forget(self, first: int) -> None:
        gone = [self._made.pop(number) for number in sorted(self._made) if number >= first]
        self.forgotten += filter(_is_told, gone)
        self._beside = [
            (parent, low, min(high, first - 1))
            for parent, low, high in self._beside
            if low < first - 1
        ]


def is_repeatable(start: CallStart) -> bool:
    """Say whether a call may be made twice."""
    return start.is_idempotent or not start.is_side_effect


def is_not_made(row: ToolCallRow) -> bool:
    """Say whether a call was stopped before anything was done."""
    return _code_of(row) == NotMade.code


def _key(row: ToolCallRow) -> tuple[int | None, str, str, str]:
    digest = row.input_digest or digest_of(row.input or "")
    return row.parent_call_no or NO_PARENT, row.kind, row.tool_name, digest


def _is_same(made: ToolCallRow, start: CallStart, digest: str) -> bool:
    """Say whether a call is made as another was; `digest`: of its input."""
    if (made.kind, made.tool_name) != (start.kind, start.tool_name):
        return False
    return made.input == start.input if made.input_digest is None else made.input_digest == digest


def _may_be_inner(row: ToolCallRow) -> bool:
    """Say whether a call may have been made by the tool before it: its record has no parent."""
    return row.parent_call_no is None and row.kind == "tool"


def _is_told(row: ToolCallRow) -> bool:
    """Say whether an agent on another path is told of a call: it never knew of those that a tool makes."""
    return (
        row.kind == "tool"
        and row.is_side_effect
        and not row.is_idempotent
        and (row.parent_call_no or NO_PARENT) == NO_PARENT
        and not is_not_made(row)
    )


def _is_cut_off(row: ToolCallRow) -> bool:
    """Say whether a call did not complete: its process died, or it was cancelled.

    A cancelled call has not failed: an error recalled from it would not be a cancellation, which the agent that cancelled it
    expects.
    """
    return row.state == ToolCallState.STARTED or _read_error(row).get("name") == "CancelledError"


def _code_of(row: ToolCallRow) -> str | None:
    return _read_error(row).get("code")


def _read_error(row: ToolCallRow) -> dict[str, str]:
    error: dict[str, str] = orjson.loads(row.error or "{}")
    return error


def _describe(row: ToolCallRow) -> str:
    came_to = row.output or row.error
    if came_to is None:
        size = row.output_bytes
        came_to = "nobody knows what it came to" if size is None else f"an answer of {size} bytes"
    return f"- {(row.input or '…')[:HEAD_CHARS]}: {row.state}, {came_to[:HEAD_CHARS]}"
