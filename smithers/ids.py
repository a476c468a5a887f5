"""Ids of runs, nodes and workers, and how new ones are made."""

import os
import re
import time
from typing import Final, NewType
from uuid import UUID

RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)  # with its loops' path: "draft@@outer=0"
LoopId = NewType("LoopId", str)
TryId = NewType("TryId", str)  # of a Try or a Saga, with its loops' path
Epoch = NewType("Epoch", int)  # grows at each claim; fences everything that its holder writes
Seq = NewType("Seq", int)  # an event's number in its run: 0, 1, 2, no gaps
WorkerId = NewType("WorkerId", UUID)
SourceHash = NewType("SourceHash", str)

RUN_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@+-]{0,254}")
SERVERS_OWN: Final = "system:"  # users whose names begin so are the server itself
NODE_ID_PATTERN: Final = re.compile(r"[^\s/\x00-\x1f]{1,200}")
SIGNAL_NAME_RULE: Final = (
    "1 to 200 printable characters, not all blank, not . or .., without encoded ones such as %20"
)
MAX_CORRELATION_CHARS: Final = 500
MAX_WORKFLOW_NAME_CHARS: Final = 300  # far below the 2,700 bytes that an index entry may have
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def is_run_id(text: str) -> bool:
    """Say whether a caller may use this as a run's id."""
    return RUN_ID_PATTERN.fullmatch(text) is not None


def means_itself(text: str) -> bool:
    """Say whether a name keeps its meaning in a URL's path, which removes `.` and `..` and decodes `%20`."""
    return text not in {".", ".."} and _ENCODED.search(text) is None


def is_signal_name(text: str) -> bool:
    """Say whether this may be a signal's name, by SIGNAL_NAME_RULE."""
    is_sized = 0 < len(text) <= 200
    return is_sized and text.isprintable() and not text.isspace() and means_itself(text)


def new_run_id() -> RunId:
    """Make a UUIDv7 (RFC 9562, section 5.7): sorts by the millisecond of its creation."""
    stamp = (time.time_ns() // 1_000_000) & ((1 << 48) - 1)
    noise = int.from_bytes(os.urandom(10))
    value = (
        (stamp << 80)
        | (0x7 << 76)
        | ((noise >> 68) << 64)
        | (0b10 << 62)
        | (noise & ((1 << 62) - 1))
    )
    return RunId(str(UUID(int=value)))
