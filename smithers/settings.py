"""What the commands are told: flags over environment over defaults, read once into a frozen value.

Every bad one is reported at once, by the name under which it was given; what may hold a secret is never quoted. The table
SETTINGS is the only list of flags and variables: the command line's options, the docs and the errors come from it.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from smithers.errors import SmithersError
from smithers.store.dsn import InvalidDatabaseUrl, check_dsn

LOG_FORMATS: Final = ("json", "pretty")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_URL: Final = "http://127.0.0.1:7331"


class InvalidSettings(SmithersError):
    """Some settings are not what they must be; `problems` has a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server is told: where it listens, what it serves, where its data are, and its limits."""

    root_dir: Path = field(default_factory=Path.cwd)
    host: str = "127.0.0.1"
    port: int = 7331  # 0: any free one
    database_url: str | None = field(default=None, repr=False)  # None: an embedded Postgres
    database_direct_url: str | None = field(default=None, repr=False)
    data_dir: Path | None = None  # of the embedded Postgres; None: in the user's state directory
    migrate: bool = False
    auth_token: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    insecure: bool = False
    max_body_bytes: int = 1_048_576
    headers_timeout_s: float = 30.0
    request_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    runs_per_worker: int = 256
    queues: tuple[str, ...] = ("default",)
    own_queue: str | None = None  # all that is started here goes there, and nothing else is claimed
    allow_network: bool = False
    pass_env: tuple[str, ...] = ()
    log_format: str = "json"
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What an operating command is told: which server, and with which token."""

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: a field of an options value, and how a person gives it."""

    field: str
    flag: str
    metavar: str
    help: str
    read: Callable[[str], Any]  # raises ValueError, whose text says what would be right
    default: str  # for people
    env: str | None = None
    is_secret: bool = False
    is_many: bool = False  # the flag may be repeated
    is_switch: bool = False


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        problem = f"must be a whole number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(problem) from None
        if not low <= value <= high:
            raise ValueError(problem)
        return value

    return read


def _seconds(text: str) -> float:
    problem = "must be a number of seconds from 0 to 86400"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(problem) from None
    if not 0 <= value <= 86_400:
        raise ValueError(problem)
    return value


def _one_of(choices: Sequence[str], fold: Callable[[str], str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if fold(text) not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return fold(text)

    return read


def _word(text: str) -> str:
    if not text.isprintable() or " " in text or len(text) > 300:
        raise ValueError("must be a word without blanks")
    return text


def _directory(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError("must be a directory that exists")
    return path.resolve()


def _new_directory(text: str) -> Path:
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError("must be a directory, or not exist yet")
    return path.resolve()


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("must be a file that exists")
    return path.resolve()


def _database_url(text: str) -> str:
    try:
        return check_dsn(text)
    except (InvalidDatabaseUrl, ValueError):
        raise ValueError("must be a URL that starts with postgresql://") from None


def _server_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1)
    except ValueError:
        is_url = False
    if not is_url:
        raise ValueError(f"must be a URL like {DEFAULT_URL}")
    return text.rstrip("/")


def _switch(text: str) -> bool:
    return text == "true"


SETTINGS: Final = (
    Setting(
        field="root_dir",
        flag="--root-dir",
        env="SMITHERS_ROOT_DIR",
        metavar="DIR",
        read=_directory,
        default="the current directory",
        help="Where workflows and tools live; nothing above it is served.",
    ),
    Setting(
        field="host",
        flag="--host",
        metavar="NAME",
        read=_word,
        default="127.0.0.1",
        help="The address to listen on. One that others reach needs a token.",
    ),
    Setting(
        field="port",
        flag="--port",
        metavar="PORT",
        read=_whole(0, 65_535),
        default="7331",
        help="The port to listen on; 0 takes a free one.",
    ),
    Setting(
        field="database_url",
        flag="--database-url",
        env="DATABASE_URL",
        metavar="URL",
        read=_database_url,
        default="an embedded Postgres",
        is_secret=True,
        help="The Postgres that keeps everything.",
    ),
    Setting(
        field="database_direct_url",
        flag="--database-direct-url",
        env="DATABASE_DIRECT_URL",
        metavar="URL",
        read=_database_url,
        default="DATABASE_URL",
        is_secret=True,
        help="The same Postgres past a pooler in transaction mode: for LISTEN and the liveness session.",
    ),
    Setting(
        field="data_dir",
        flag="--data-dir",
        metavar="DIR",
        read=_new_directory,
        default="$XDG_STATE_HOME/smithers/<hash of the root>",
        help="Where the embedded Postgres keeps its data; never below the root.",
    ),
    Setting(
        field="migrate",
        flag="--migrate",
        metavar="",
        read=_switch,
        is_switch=True,
        default="off; an embedded database is always migrated",
        help="Bring the schema of DATABASE_URL up to date first.",
    ),
    Setting(
        field="auth_token",
        flag="--auth-token",
        env="SMITHERS_API_KEY",
        metavar="TOKEN",
        read=_word,
        default="none: whoever reaches the port may do everything",
        is_secret=True,
        help="The token that requests must carry. Other users of the host see flags: prefer the variable.",
    ),
    Setting(
        field="tokens_file",
        flag="--tokens-file",
        env="SMITHERS_TOKENS_FILE",
        metavar="FILE",
        read=_file,
        default="none",
        help="More tokens, each with a user and scopes: one JSON object a line.",
    ),
    Setting(
        field="insecure",
        flag="--insecure",
        metavar="",
        read=_switch,
        is_switch=True,
        default="off",
        help="Listen where others reach it without any token.",
    ),
    Setting(
        field="max_body_bytes",
        flag="--max-body-bytes",
        metavar="BYTES",
        read=_whole(1, 1 << 30),
        default="1048576",
        help="The largest request body.",
    ),
    Setting(
        field="headers_timeout_s",
        flag="--headers-timeout",
        metavar="SECONDS",
        read=_seconds,
        default="30",
        help="How long a request's headers may take.",
    ),
    Setting(
        field="request_timeout_s",
        flag="--request-timeout",
        metavar="SECONDS",
        read=_seconds,
        default="60",
        help="How long a request's body may take.",
    ),
    Setting(
        field="drain_timeout_s",
        flag="--drain-timeout",
        metavar="SECONDS",
        read=_seconds,
        default="30",
        help="How long what is under way may take at a stop.",
    ),
    Setting(
        field="workers",
        flag="--workers",
        metavar="N",
        read=_whole(0, 1_024),
        default="the number of CPUs",
        help="How many worker processes; 0: none here.",
    ),
    Setting(
        field="runs_per_worker",
        flag="--runs-per-worker",
        metavar="N",
        read=_whole(1, 100_000),
        default="256",
        help="How many runs one worker moves at a time.",
    ),
    Setting(
        field="queues",
        flag="--queue",
        metavar="NAME",
        read=_word,
        is_many=True,
        default="default",
        help="A queue to claim runs from; may be repeated.",
    ),
    Setting(
        field="allow_network",
        flag="--allow-network",
        metavar="",
        read=_switch,
        is_switch=True,
        default="off",
        help="Let tools reach the network.",
    ),
    Setting(
        field="pass_env",
        flag="--pass-env",
        metavar="NAME",
        read=_word,
        is_many=True,
        default="none",
        help="A variable that workers see although it looks like a secret; may be repeated.",
    ),
    Setting(
        field="log_format",
        flag="--log-format",
        env="SMITHERS_LOG_FORMAT",
        metavar="FORMAT",
        read=_one_of(LOG_FORMATS, str.lower),
        default="pretty on a terminal, else json",
        help="How logs look: json or pretty.",
    ),
    Setting(
        field="log_level",
        flag="--log-level",
        env="SMITHERS_LOG_LEVEL",
        metavar="LEVEL",
        read=_one_of(LOG_LEVELS, str.upper),
        default="INFO",
        help="What is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    ),
)

CLIENT_SETTINGS: Final = (
    Setting(
        field="url",
        flag="--server",
        env="SMITHERS_URL",
        metavar="URL",
        read=_server_url,
        default=DEFAULT_URL,
        help="The server to talk to.",
    ),
    Setting(
        field="token",
        flag="--token",
        env="SMITHERS_API_KEY",
        metavar="TOKEN",
        read=_word,
        default="none",
        is_secret=True,
        help="The token to show it. Other users of the host see flags: prefer the variable.",
    ),
)


def read_server_options(
    flags: Mapping[str, Any], environ: Mapping[str, str], **fixed: Any
) -> ServerOptions:
    """Read what a server is told; raise InvalidSettings with all that is wrong.

    `flags`: by field, None where not given; `fixed`: fields that the command itself decides where nobody else did.
    """
    values, problems = _read(SETTINGS, flags, environ)
    values = {**fixed, **values}
    values.setdefault("log_format", "pretty" if sys.stderr.isatty() else "json")
    root = values.setdefault("root_dir", Path.cwd())
    data_dir = values.get("data_dir")
    if data_dir is not None and data_dir.is_relative_to(root):
        problems.append("--data-dir: must not lie below the root, where tasks can reach it")
    if data_dir is not None and "database_url" in values:
        problems.append("--data-dir: is for the embedded Postgres, and DATABASE_URL is set")
    if "database_direct_url" in values and "database_url" not in values:
        problems.append("DATABASE_DIRECT_URL: is set, and DATABASE_URL is not")
    if problems:
        raise InvalidSettings(problems)
    return ServerOptions(**values)


def read_client_options(flags: Mapping[str, Any], environ: Mapping[str, str]) -> ClientOptions:
    """Read what an operating command is told; raise InvalidSettings with all that is wrong."""
    values, problems = _read(CLIENT_SETTINGS, flags, environ)
    if problems:
        raise InvalidSettings(problems)
    return ClientOptions(**values)


def _read(
    table: Sequence[Setting], flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in table:
        name, given = _find(setting, flags, environ)
        try:
            read = [setting.read(text) for text in given]
        except ValueError as error:
            quoted = "" if setting.is_secret else f", not {' '.join(given)!r}"
            problems.append(f"{name}: {error}{quoted}")
            continue
        if read:
            values[setting.field] = tuple(dict.fromkeys(read)) if setting.is_many else read[0]
    return values, problems


def _find(
    setting: Setting, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return the name under which a setting was given, and what; an empty text is as good as none."""
    given = flags.get(setting.field)
    if given:
        texts = ["true"] if given is True else list(given) if setting.is_many else [given]
        return setting.flag, texts
    text = environ.get(setting.env, "") if setting.env else ""
    return setting.env or setting.flag, [text] if text else []
