"""What the gateway is told at its start: one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from smithers.defaults import LOOPBACK_NAMES
from smithers.errors import SmithersError
from smithers.settings import Limits


class InsecureSettings(SmithersError):
    """The gateway would be open to whoever reaches the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Where the gateway listens, what it serves, and its limits."""

    dsn: str = field(repr=False)  # what may hold a secret is in no log
    direct_dsn: str = field(repr=False)  # not through a pooler in transaction mode: for LISTEN
    root_dir: Path | None  # None: no source is read here
    host: str = "127.0.0.1"
    port: int = 7331  # 0: any free one
    auth_token: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    max_body_bytes: int = 1_048_576
    headers_timeout_s: float = 30
    request_timeout_s: float = 60
    drain_timeout_s: float = 30
    limits: Limits = Limits()  # noqa: RUF009 - a frozen value
    insecure: bool = False
    sandbox: str | None = None  # how tools run commands on this host; None: no workers here
    database_warning: str | None = None  # what is lost on the way to the database
    is_kept: bool = True  # false: the database ends with the server, and nothing is listed
    own_databases: Mapping[str, str] = field(default_factory=dict, repr=False)  # URLs, by name
    migrate: bool = False  # bring the schema of those up to date
    queue_override: str | None = None  # every start goes there, whatever its workflow says

    @property
    def has_tokens(self) -> bool:
        """Whether anybody has to prove anything."""
        return bool(self.auth_token) or self.tokens_file is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect."""
        return self.host in LOOPBACK_NAMES

    def check(self) -> None:
        """Raise InsecureSettings for an open door."""
        if not (self.has_tokens or self.is_loopback or self.insecure):
            raise InsecureSettings(
                f"host {self.host} is reachable from outside, and no token is set: set SMITHERS_API_KEY, "
                "or say --insecure"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProcessSettings:
    """What one of several HTTP processes is told; its descriptors are inherited, under their numbers."""

    gateway: GatewaySettings
    listener_fd: int
    sheet_fd: int  # where the server's processes count
    otel: dict[str, str] | None
    log_format: str
    log_level: str

    def to_json(self) -> bytes:
        """Return the settings as they go through the pipe: one line."""
        return TypeAdapter(HttpProcessSettings).dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what to_json wrote."""
        return TypeAdapter(cls).validate_json(text)
