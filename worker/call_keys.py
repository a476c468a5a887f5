"""Idempotency keys of tool calls: the same for the same call, whichever attempt makes it."""

import json
from hashlib import sha256
from typing import Final

from smithers.current import current_task
from smithers.outputs import decode_output

DIGEST_CHARS: Final = 32  # 128 bits
_write: Final = json.JSONEncoder(sort_keys=True).encode


class CallKeys:
    """Counts the calls of one attempt, those that it recalls included, by the name of the tool and the input."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def take(self, tool_name: str, given: str | None) -> str:
        """Return the key of the next call with this name and input, which is JSON text.

        It is `<the task's key>/<tool>/<digest of the input>/<ordinal, from 1>`; the order of an object's keys does
        not matter.
        """
        written = _write(decode_output(given or "null"))
        digest = sha256(written.encode()).hexdigest()[:DIGEST_CHARS]
        call = f"{tool_name}/{digest}"
        self._counts[call] = self._counts.get(call, 0) + 1
        return f"{current_task().idempotency_key}/{call}/{self._counts[call]}"
