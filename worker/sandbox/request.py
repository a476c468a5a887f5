"""The messages of a child to its jailer: once the policy for all commands, then each command.

Named tuples and not dataclasses: that module's imports would make each fork of the jailer more expensive.
"""

import json
from typing import NamedTuple, Self


class JailLimits(NamedTuple):
    """The limits of a command and its processes."""

    processes: int = 512
    memory_bytes: int = 4 << 30  # in all, where there are cgroups; else of each process
    cpus: int = 4  # of their time; only where there are cgroups
    file_bytes: int = 1 << 30  # of each file
    tmp_bytes: int = 256 << 20  # of the private /tmp and /dev/shm each
    open_files: int = 256  # of each process: what the kernel counts for an account, others have too
    # A command ends where the root's filesystem has less than this left.
    free_bytes: int = 256 << 20
    free_files: int = 10_000  # or fewer files to be made than this


class JailPolicy(NamedTuple):
    """What all commands of one jailer may touch, and their limits."""

    root: str
    read_only: tuple[str, ...] = ()  # in addition to the system: the interpreter's location
    closed: tuple[str, ...] = ()  # below the root, read-only: the server's own code
    is_jailed: bool = True
    allow_network: bool = False
    limits: JailLimits = JailLimits()

    def to_json(self) -> bytes:
        """Return the policy as sent through the socket, before any request."""
        return json.dumps({**self._asdict(), "limits": self.limits._asdict()}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what to_json wrote."""
        fields = json.loads(text)
        fields["read_only"] = tuple(fields["read_only"])
        fields["closed"] = tuple(fields["closed"])
        fields["limits"] = JailLimits(**fields["limits"])
        return cls(**fields)


class JailRequest(NamedTuple):
    """One command; its descriptors are sent with it."""

    argv: tuple[str, ...]  # none: inspect the jail instead, and report
    cwd: str  # below the root; absolute, as inside

    def to_json(self) -> bytes:
        """Return the request as sent through the socket."""
        return json.dumps([self.argv, self.cwd]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what to_json wrote."""
        argv, cwd = json.loads(text)
        return cls(argv=tuple(argv), cwd=cwd)
