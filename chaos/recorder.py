"""Write down what clients asked, what they were answered and what they saw, as JSON lines.

A line has `at` (seconds since 1970, this host's clock), `who` and `what`; an operation has two lines of the same `op`, its
`begin` and its `end`: `ok` (answered 2xx), `refused` (a definite no), or `unknown` (nobody knows: no answer, or a 5xx).
An operation without an end is unknown too: whoever wrote was killed.
"""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


class Recorder:
    """The one writer of a history."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()

    def write(self, who: str, what: str, **fields: Any) -> None:
        """Write one line."""
        line = {"at": time.time(), "who": who, "what": what, **fields}
        self._file.write(json.dumps(line) + "\n")

    @contextmanager
    def operation(self, who: str, what: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Write an operation's begin, and with its end what the block has put into the mapping."""
        number = next(self._numbers)
        self.write(who, what, op=number, phase="begin", **fields)
        end: dict[str, Any] = {"phase": "unknown"}
        try:
            yield end
        finally:
            self.write(who, what, op=number, **fields, **end)
