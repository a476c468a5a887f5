"""A pool's settings; passed to its children through a pipe, never through the environment."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self
from uuid import UUID

import orjson

from smithers.defaults import DEFAULT_QUEUE
from smithers.store.claims import ClaimKind

DRAIN: Final = "drain"  # tells a child to end
RETIRES: Final = "retires"  # tells the parent: no more claims, the end after its runs
# Children apart from those that share runs. Neither kind may take the places of the other: both may keep theirs for hours.
MAX_ISOLATED: Final = 4  # with a run of its own each
MAX_TRYING: Final = 4  # for suspects, several in each
# Retired children, beside those; the oldest of so many is drained.
MAX_RETIRED: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """One frozen value for the parent and all its children."""

    dsn: str = field(repr=False)
    # Not through a pooler in transaction mode: LISTEN is lost there.
    direct_dsn: str = field(repr=False)
    has_sessions: bool = True  # False: there is nothing but such a pooler
    root_dir: str
    worker_count: int
    runs_per_worker: int = 256
    worker_memory_mib: int | None = None  # of a child; None: no limit
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    keeps_queue: bool = False  # what a run starts has the run's queue, whatever its workflow says
    drain_timeout_s: float = 30.0
    embedded_data_dir: str | None = None  # the pool's own share in an embedded Postgres
    allow_network: bool = False
    unsafe_tools: bool = False
    log_format: str = "json"
    log_level: str = "INFO"
    # Inherited: the metrics sheet of the server's processes; None: a sheet of its own.
    sheet_fd: int | None = None
    otel: dict[str, str] | None = field(default=None, repr=False)  # OTEL_*; None: no traces
    mirror_name: str | None = None  # whose pool this is: the name of a workflow's own database
    mirror_dsn: str | None = field(default=None, repr=False)  # the server's database, direct

    @property
    def for_children(self) -> Self:
        """Return the settings without the address of another database."""
        return replace(self, mirror_name=None, mirror_dsn=None)

    @property
    def root(self) -> Path:
        """Where workflows and tools live."""
        return Path(self.root_dir)

    def to_json(self) -> bytes:
        """Return the settings as JSON for the pipe."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse the result of to_json."""
        fields = orjson.loads(text)
        fields["queues"] = tuple(fields["queues"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """A child's settings, sent through the pipe."""

    worker_id: UUID
    slot: int  # its place in the shared array of heartbeats
    kind: ClaimKind  # what it claims while it has nothing: MANY, ISOLATED or SUSPECT
    pool: PoolSettings
    sheet_fd: int  # the metrics sheet of the server's processes
