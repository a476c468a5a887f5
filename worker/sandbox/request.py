"""What a child tells its jailer: once what all commands may touch and take, and then each command.

Named tuples and not dataclasses: what that module imports would make each fork of the jailer dearer.
"""

import json
from typing import NamedTuple, Self


class JailLimits(NamedTuple):
    """How much a command, with all that it starts, may take."""

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
    """What all commands of one jailer may touch, and how much they may take."""

    root: str
    read_only: tuple[str, ...] = ()  # beside the system: where the interpreter lives
    closed: tuple[str, ...] = ()  # below the root, and not to be written to: the server's own code
    is_jailed: bool = True
    allow_network: bool = False
    limits: JailLimits = JailLimits()

    def to_json(self) -> bytes:
        """Return the policy as it goes through the socket, before any request."""
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
    """One command; its descriptors travel beside it."""

    argv: tuple[str, ...]  # none: look around in the jail instead, and tell
    cwd: str  # below the root; absolute, as inside

    def to_json(self) -> bytes:
        """Return the request as it goes through the socket."""
        return json.dumps([self.argv, self.cwd]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what to_json wrote."""
        argv, cwd = json.loads(text)
        return cls(argv=tuple(argv), cwd=cwd)
