"""The settings of a server and of an operating command, as frozen values with their defaults; the table documents them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from smithers.defaults import (
    DEFAULT_QUEUE,
    DRAIN_TIMEOUT_S,
    HEADERS_TIMEOUT_S,
    HOST,
    MAX_BODY_BYTES,
    PORT,
    REQUEST_TIMEOUT_S,
)
from smithers.settings.limits import Limits

DEFAULT_URL: Final = f"http://{HOST}:{PORT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """A server's settings: where it listens, what it serves, where its data are, and its limits."""

    root_dir: Path = field(default_factory=Path.cwd)
    host: str = HOST
    port: int = PORT  # 0: any free one
    database_url: str | None = field(default=None, repr=False)  # None: an embedded Postgres
    database_direct_url: str | None = field(default=None, repr=False)
    no_database: bool = False  # nothing is kept after the process ends
    workflow_databases: Mapping[str, str] = field(default_factory=dict, repr=False)  # URLs, by name
    data_dir: Path | None = None  # of the embedded Postgres; None: in the user's state directory
    migrate: bool = False
    auth_token: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    insecure: bool = False
    max_body_bytes: int = MAX_BODY_BYTES
    headers_timeout_s: float = HEADERS_TIMEOUT_S
    request_timeout_s: float = REQUEST_TIMEOUT_S
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    http_workers: int = 1
    limits: Limits = Limits()  # noqa: RUF009 - a frozen value
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    runs_per_worker: int = 256
    worker_memory_mib: int | None = None  # None: no limit
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    own_queue: str | None = None  # the queue of all runs started here, and the only one claimed
    allow_network: bool = False
    unsafe_tools: bool = False
    pass_env: tuple[str, ...] = ()
    retention: timedelta | None = timedelta(days=30)  # after a run's end; None: runs are kept
    metrics_port: int = 9464  # of a process without a gateway; 0: any free one
    otel: bool = False  # traces; the OTEL_* variables say where to
    log_format: str = "json"
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """An operating command's settings: which server, and with which token."""

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)
