"""What attempts called whose process died: taken for an attempt's own calls, as long as it goes the same way.

Calls are known by their numbers, kind, name and input. From the first that is another one on, what those attempts did is
forgotten, but for calls whose effects must not be had twice: the first call of the same tool is not made, and told of them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

import orjson

from smithers.states import ToolCallState
from smithers.store.tool_calls import ToolCallRow
from smithers.tools.errors import CallLost
from smithers.tools.toolbox import CallStart

LOST_CALL: Final = (
    "{name} was called before, and the process died before it answered: nobody knows whether it was done. Find out before "
    "calling it again."
)
FORGOTTEN_CALLS: Final = (
    "This call was not made, because {name} was called before, by an attempt whose process died:\n{calls}\nThose effects "
    "stand. Call it again only if that is not what you are about to do."
)
MAX_FORGOTTEN: Final = 5  # the newest of a tool, told in an error's text
MAX_FORGOTTEN_CHARS: Final = 300  # of a call's input, and of its output


class Recalled(NamedTuple):
    """A call that is not to be made, and how it ended; `loss`: or why that is not known."""

    row: ToolCallRow
    loss: CallLost | None = None


class Recall:
    """The calls of a node's attempts that died, in the order in which this attempt asks for them."""

    def __init__(self, rows: Iterable[ToolCallRow]) -> None:
        """Take the calls of all attempts, oldest first."""
        self._made: dict[int, ToolCallRow] = {}
        self._forgotten: list[ToolCallRow] = []
        for row in rows:
            if row.is_recallable:
                self._learn(row)

    def take(self, start: CallStart, *, after: int) -> Recalled | None:
        """Return what came of a call, `after` being the number of the one before it; None: it is to be made."""
        made = self._made.get(after + 1)
        while made is not None and not _is_same(made, start) and made.kind == "tool":
            made = self._made.get(made.call_no + 1)  # that one was made by the tool before it
        if made is None or not _is_same(made, start):
            self._forget(after + 1)
            return self._take_forgotten(start, after + 1)
        if made.state == ToolCallState.STARTED:
            if is_repeatable(start):
                return None
            return Recalled(made, CallLost(LOST_CALL.format(name=start.tool_name)))
        return None if self._is_asked_again(made) else Recalled(made)

    def _learn(self, row: ToolCallRow) -> None:
        """Keep a call as the newest attempt has it; where that went another way, forget what others did from there on."""
        known = self._made.get(row.call_no, row)
        if (known.kind, known.tool_name, known.input) != (row.kind, row.tool_name, row.input):
            self._forget(row.call_no)
        self._made[row.call_no] = row

    def _forget(self, first: int) -> None:
        gone = [self._made.pop(number) for number in sorted(self._made) if number >= first]
        self._forgotten += [
            row
            for row in gone
            if row.kind == "tool" and row.is_side_effect and not row.is_idempotent
        ]

    def _take_forgotten(self, start: CallStart, number: int) -> Recalled | None:
        same = [row for row in self._forgotten if row.tool_name == start.tool_name]
        if not same or start.kind != "tool" or is_repeatable(start):
            return None
        self._forgotten = [row for row in self._forgotten if row.tool_name != start.tool_name]
        calls = "\n".join(map(_describe, same[-MAX_FORGOTTEN:]))
        loss = CallLost(FORGOTTEN_CALLS.format(name=start.tool_name, calls=calls))
        return Recalled(replace(same[-1], call_no=number, input=start.input), loss)

    def _is_asked_again(self, made: ToolCallRow) -> bool:
        """Say whether a question that failed is put again: not where the agents went on from its failure.

        One that was cancelled has not failed: what is raised from it would be no cancellation.
        """
        if made.kind != "model" or made.state != ToolCallState.FAILED:
            return False
        is_last = all(number <= made.call_no for number in self._made)
        return is_last or orjson.loads(made.error or "{}").get("name") == "CancelledError"


def is_repeatable(start: CallStart) -> bool:
    """Say whether a call may be made twice."""
    return start.is_idempotent or not start.is_side_effect


def _is_same(made: ToolCallRow, start: CallStart) -> bool:
    return (made.kind, made.tool_name, made.input) == (start.kind, start.tool_name, start.input)


def _describe(row: ToolCallRow) -> str:
    came_to = row.output or row.error or "nobody knows what it came to"
    given = (row.input or "…")[:MAX_FORGOTTEN_CHARS]
    return f"- {given}: {row.state}, {came_to[:MAX_FORGOTTEN_CHARS]}"
