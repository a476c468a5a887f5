"""What a child asks of its jailer: one command, what it may touch, and how much."""

import json
from dataclasses import asdict, dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class JailLimits:
    """How much a command, with all that it starts, may take."""

    processes: int = 512
    memory_bytes: int = 4 << 30  # in all, where there are cgroups; else of each process
    file_bytes: int = 1 << 30  # of each file
    tmp_bytes: int = 256 << 20  # of the private /tmp and /dev/shm each
    open_files: int = 1024
    free_bytes: int = (
        256 << 20
    )  # a command ends where the root's filesystem has less than this left


@dataclass(frozen=True, slots=True, kw_only=True)
class JailRequest:
    """One command; its descriptors travel beside it."""

    argv: tuple[str, ...]  # none: look around in the jail instead, and tell
    cwd: str  # below the root; absolute, as inside
    root: str
    read_only: tuple[str, ...] = ()  # beside the system: where the interpreter lives
    is_jailed: bool = True
    allow_network: bool = False
    limits: JailLimits = field(default_factory=JailLimits)

    def to_json(self) -> bytes:
        """Return the request as it goes through the socket."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what to_json wrote."""
        fields = json.loads(text)
        fields["argv"] = tuple(fields["argv"])
        fields["read_only"] = tuple(fields["read_only"])
        fields["limits"] = JailLimits(**fields["limits"])
        return cls(**fields)
