"""The gateway's settings: one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from smithers.defaults import (
    DRAIN_TIMEOUT_S,
    HEADERS_TIMEOUT_S,
    HOST,
    LOOPBACK_NAMES,
    MAX_BODY_BYTES,
    PORT,
    REQUEST_TIMEOUT_S,
)
from smithers.errors import SmithersError
from smithers.settings import Limits


class InsecureSettings(SmithersError):
    """The gateway would be open to anybody who can reach the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Where the gateway listens, what it serves, and its limits."""

    dsn: str = field(repr=False)  # values that may be secret are never logged
    direct_dsn: str = field(repr=False)  # not through a pooler in transaction mode: for LISTEN
    root_dir: Path | None  # None: no source is read here
    host: str = HOST
    port: int = PORT  # 0: any free one
    auth_token: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    headers_timeout_s: float = HEADERS_TIMEOUT_S
    request_timeout_s: float = REQUEST_TIMEOUT_S
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    limits: Limits = Limits()  # noqa: RUF009 - a frozen value
    insecure: bool = False
    sandbox: str | None = None  # how tools run commands on this host; None: no workers here
    database_warning: str | None = None  # what the database connection cannot do
    is_kept: bool = True  # false: the database ends with the server, and nothing is listed
    own_databases: Mapping[str, str] = field(default_factory=dict, repr=False)  # URLs, by name
    migrate: bool = False  # migrate their schemas
    queue_override: str | None = None  # the queue of every start, whatever its workflow says
    data_dir: Path | None = None  # of an embedded database in another place than the default
    database_variables: tuple[str, ...] = ()  # names of those that have the URLs of a given one

    @property
    def has_tokens(self) -> bool:
        """Whether callers need a token."""
        return bool(self.auth_token) or self.tokens_file is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect."""
        return self.host in LOOPBACK_NAMES

    def check(self) -> None:
        """Raise InsecureSettings for an exposed host without a token."""
        if not (self.has_tokens or self.is_loopback or self.insecure):
            raise InsecureSettings(
                f"host {self.host} is reachable from outside, and no token is set: set SMITHERS_API_KEY, "
                "or pass --insecure"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProcessSettings:
    """Settings of one of several HTTP processes; its descriptors are inherited under the same numbers."""

    gateway: GatewaySettings
    listener_fd: int
    sheet_fd: int  # the metrics sheet of the server's processes
    otel: dict[str, str] | None = field(repr=False)
    log_format: str
    log_level: str

    def to_json(self) -> bytes:
        """Return the settings as one line, for the pipe."""
        return TypeAdapter(HttpProcessSettings).dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse the result of to_json."""
        return TypeAdapter(cls).validate_json(text)
