"""The only list of flags and variables: command-line options, docs/settings.md and errors come from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from smithers.settings.limits import limits
from smithers.settings.options import DEFAULT_URL
from smithers.settings.parsing import (
    age_or_off,
    database_url,
    directory,
    file,
    named_database,
    new_directory,
    one_of,
    seconds,
    seconds_above_0,
    server_url,
    switch,
    truth,
    whole,
    word,
)

LOG_FORMATS: Final = ("json", "pretty")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: a field of an options value, and its flag and variable."""

    field: str
    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any]  # raises ValueError, whose text says what is allowed
    default: str  # for people
    env: str | None = None
    is_secret: bool = False
    is_many: bool = False  # the flag may be repeated


SETTINGS: Final = (
    Setting(
        field="root_dir",
        flag="--root-dir",
        env="SMITHERS_ROOT_DIR",
        metavar="DIR",
        read=directory,
        default="the current directory",
        help="Where workflows and tools live; nothing above it is served.",
    ),
    Setting(
        field="host",
        flag="--host",
        metavar="NAME",
        read=word,
        default="127.0.0.1",
        help="The address to listen on. One that other hosts can reach needs a token.",
    ),
    Setting(
        field="port",
        flag="--port",
        metavar="PORT",
        read=whole(0, 65_535),
        default="7331",
        help="The port to listen on; 0 takes a free one.",
    ),
    Setting(
        field="database_url",
        flag="--database-url",
        env="DATABASE_URL",
        metavar="URL",
        read=database_url,
        default="an embedded Postgres",
        is_secret=True,
        help="The Postgres that keeps everything.",
    ),
    Setting(
        field="database_direct_url",
        flag="--database-direct-url",
        env="DATABASE_DIRECT_URL",
        metavar="URL",
        read=database_url,
        default="DATABASE_URL",
        is_secret=True,
        help="The same Postgres past a pooler in transaction mode: for LISTEN and the liveness session.",
    ),
    Setting(
        field="no_database",
        flag="--no-database",
        metavar="",
        read=switch,
        default="off",
        help="Keep nothing after the process ends; runs and approvals cannot be listed.",
    ),
    Setting(
        field="workflow_databases",
        flag="--workflow-database",
        metavar="NAME=URL",
        read=named_database,
        is_many=True,
        is_secret=True,
        default="the variable NAME",
        help="The Postgres of the workflows with database=NAME; may be repeated. Other users of the host see flags: "
        "prefer the variable.",
    ),
    Setting(
        field="data_dir",
        flag="--data-dir",
        metavar="DIR",
        read=new_directory,
        default="$XDG_STATE_HOME/smithers/<hash of the root>",
        help="Where the embedded Postgres stores its data; never below the root.",
    ),
    Setting(
        field="migrate",
        flag="--migrate",
        metavar="",
        read=switch,
        default="off; an embedded database is always migrated",
        help="Bring the schema of DATABASE_URL up to date first.",
    ),
    Setting(
        field="auth_token",
        flag="--auth-token",
        env="SMITHERS_API_KEY",
        metavar="TOKEN",
        read=word,
        default="none: whoever reaches the port may do everything",
        is_secret=True,
        help="The token that requests must carry. Other users of the host see flags: prefer the variable.",
    ),
    Setting(
        field="tokens_file",
        flag="--tokens-file",
        env="SMITHERS_TOKENS_FILE",
        metavar="FILE",
        read=file,
        default="none",
        help="More tokens, each with a user and scopes: one JSON object a line. Not below the root.",
    ),
    Setting(
        field="insecure",
        flag="--insecure",
        metavar="",
        read=switch,
        default="off",
        help="Without any token, allow an address that other hosts can reach.",
    ),
    Setting(
        field="max_body_bytes",
        flag="--max-body-bytes",
        metavar="BYTES",
        read=whole(1, 1 << 30),
        default="1048576",
        help="The largest request body.",
    ),
    Setting(
        field="headers_timeout_s",
        flag="--headers-timeout",
        metavar="SECONDS",
        read=seconds_above_0,
        default="30",
        help="How long a request's headers may take.",
    ),
    Setting(
        field="request_timeout_s",
        flag="--request-timeout",
        metavar="SECONDS",
        read=seconds_above_0,
        default="60",
        help="How long a request's body may take.",
    ),
    Setting(
        field="drain_timeout_s",
        flag="--drain-timeout",
        metavar="SECONDS",
        read=seconds,
        default="30",
        help="How long a stop waits for requests and runs in progress.",
    ),
    Setting(
        field="http_workers",
        flag="--http-workers",
        metavar="N",
        read=whole(1, 256),
        default="1",
        help="How many processes serve requests, on one port.",
    ),
    Setting(
        field="limits",
        flag="--limit",
        env="SMITHERS_LIMITS",
        metavar="NAME=N",
        read=limits,
        is_many=True,
        default="docs/settings.md lists them",
        help="Limits of one HTTP process: NAME=N,…; may be repeated.",
    ),
    Setting(
        field="workers",
        flag="--workers",
        metavar="N",
        read=whole(0, 1_024),
        default="the number of CPUs",
        help="How many worker processes; 0: none here.",
    ),
    Setting(
        field="runs_per_worker",
        flag="--runs-per-worker",
        metavar="N",
        read=whole(1, 100_000),
        default="256",
        help="How many runs one worker executes at a time.",
    ),
    Setting(
        field="worker_memory_mib",
        flag="--worker-memory",
        metavar="MIB",
        read=whole(128, 1 << 24),
        default="no limit",
        help="How much memory one worker may use before it is killed and its runs continue in others; processes that it "
        "starts do not count.",
    ),
    Setting(
        field="queues",
        flag="--queue",
        metavar="NAME",
        read=word,
        is_many=True,
        default="default",
        help="A queue to claim runs from; may be repeated.",
    ),
    Setting(
        field="allow_network",
        flag="--allow-network",
        metavar="",
        read=switch,
        default="off",
        help="Let tools reach the network, and with it the host's abstract Unix sockets.",
    ),
    Setting(
        field="unsafe_tools",
        flag="--unsafe-tools",
        metavar="",
        read=switch,
        default="off",
        help="Run tools' commands without a jail: they may touch everything that workers may.",
    ),
    Setting(
        field="pass_env",
        flag="--pass-env",
        metavar="NAME",
        read=word,
        is_many=True,
        default="none",
        help="A variable that workers see although it looks like a secret; may be repeated.",
    ),
    Setting(
        field="retention",
        flag="--retention",
        env="SMITHERS_RETENTION",
        metavar="AGE",
        read=age_or_off,
        default="30d",
        help="How long a run is kept after its end: a number with s, m, h, d or w, or off to keep it for ever.",
    ),
    Setting(
        field="metrics_port",
        flag="--metrics-port",
        metavar="PORT",
        read=whole(0, 65_535),
        default="9464",
        help="The port on which `worker` serves /health, /ready and /metrics; 0 takes a free one.",
    ),
    Setting(
        field="otel",
        flag="--otel",
        env="SMITHERS_OTEL_ENABLED",
        metavar="",
        read=truth,
        default="off",
        help="Export traces over OTLP, as the OTEL_* variables say.",
    ),
    Setting(
        field="log_format",
        flag="--log-format",
        env="SMITHERS_LOG_FORMAT",
        metavar="FORMAT",
        read=one_of(LOG_FORMATS, str.lower),
        default="pretty on a terminal, else json",
        help="The format of logs: json or pretty.",
    ),
    Setting(
        field="log_level",
        flag="--log-level",
        env="SMITHERS_LOG_LEVEL",
        metavar="LEVEL",
        read=one_of(LOG_LEVELS, str.upper),
        default="INFO",
        help="The lowest level that is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    ),
)

CLIENT_SETTINGS: Final = (
    Setting(
        field="url",
        flag="--server",
        env="SMITHERS_URL",
        metavar="URL",
        read=server_url,
        default=DEFAULT_URL,
        help="The server to talk to.",
    ),
    Setting(
        field="token",
        flag="--token",
        env="SMITHERS_API_KEY",
        metavar="TOKEN",
        read=word,
        default="none",
        is_secret=True,
        help="The token to send. Other users of the host see flags: prefer the variable.",
    ),
)
