"""The command line's options, generated from the table of settings, the only place of flags' help and defaults."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smithers.cli.console import CommandFailed, Exit, in_full
from smithers.settings import (
    CLIENT_SETTINGS,
    SETTINGS,
    ServerOptions,
    Setting,
    read_client_options,
    read_server_options,
)

if TYPE_CHECKING:
    from smithers.client import Client

NO_LISTS: Final = "DB_NOT_CONFIGURED"  # a 400 that no argument can fix
_BY_FIELD: Final = {setting.field: setting for setting in (*SETTINGS, *CLIENT_SETTINGS)}


def option(field: str, *, default: str | None = None) -> Any:
    """Return the option for a setting; its value is parsed together with all others.

    `default`: that of a command with its own.
    """
    return typer.Option(
        _BY_FIELD[field].flag,
        metavar=_BY_FIELD[field].metavar or None,
        help=_describe(_BY_FIELD[field], default or _BY_FIELD[field].default),
        show_default=False,
    )


def _describe(setting: Setting, default: str) -> str:
    variable = f"{setting.env}; " if setting.env else ""
    return f"{setting.help} [{variable}default: {default}]"


Text = str | None
Texts = list[str] | None
RootDir = Annotated[Text, option("root_dir")]
Host = Annotated[Text, option("host")]
Port = Annotated[Text, option("port")]
DatabaseUrl = Annotated[Text, option("database_url")]
DatabaseDirectUrl = Annotated[Text, option("database_direct_url")]
NoDatabase = Annotated[bool, option("no_database")]
WorkflowDatabases = Annotated[Texts, option("workflow_databases")]
DataDir = Annotated[Text, option("data_dir")]
Migrate = Annotated[bool, option("migrate")]
AuthToken = Annotated[Text, option("auth_token")]
TokensFile = Annotated[Text, option("tokens_file")]
Insecure = Annotated[bool, option("insecure")]
MaxBodyBytes = Annotated[Text, option("max_body_bytes")]
HeadersTimeout = Annotated[Text, option("headers_timeout_s")]
RequestTimeout = Annotated[Text, option("request_timeout_s")]
DrainTimeout = Annotated[Text, option("drain_timeout_s")]
HttpWorkers = Annotated[Text, option("http_workers")]
Limits = Annotated[Texts, option("limits")]
Workers = Annotated[Text, option("workers")]
RunsPerWorker = Annotated[Text, option("runs_per_worker")]
WorkerMemory = Annotated[Text, option("worker_memory_mib")]
Queues = Annotated[Texts, option("queues")]
AllowNetwork = Annotated[bool, option("allow_network")]
UnsafeTools = Annotated[bool, option("unsafe_tools")]
PassEnv = Annotated[Texts, option("pass_env")]
Retention = Annotated[Text, option("retention")]
MetricsPort = Annotated[Text, option("metrics_port")]
Otel = Annotated[bool, option("otel")]
LogFormat = Annotated[Text, option("log_format")]
LogLevel = Annotated[Text, option("log_level")]

ServerUrl = Annotated[Text, option("url")]
Token = Annotated[Text, option("token")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the names of the HTTP API.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)
]


def server_options(flags: Mapping[str, Any], **decided: Mapping[str, Any]) -> ServerOptions:
    """Read a serving command's settings: its flags, then the environment; `decided`: see read_server_options."""
    return read_server_options(flags, os.environ, **decided)


def looking_options(flags: Mapping[str, Any]) -> ServerOptions:
    """Read the settings of a command that serves nothing: its options, those of its log, and the direct URL."""
    used = {*flags, "log_format", "log_level"}
    if "database_url" in flags:
        used.add("database_direct_url")
    return read_server_options(flags, os.environ, used=used)


def at_server(command: str, url: str | None) -> str:
    """Return a command as it is printed, for the server that this command's --server names."""
    return command if url is None else f"SMITHERS_URL={shlex.quote(url)} {command}"


@contextmanager
def open_client(url: str | None, token: str | None) -> Iterator["Client"]:
    """Open an operating command's client; raise CommandFailed for invalid settings."""
    from smithers.client import BadRequest, Client, Unsendable

    options = read_client_options({"url": url, "token": token}, os.environ)
    try:
        with Client(options.url, token=options.token) as client:
            yield client
    except BadRequest as error:
        if error.code == NO_LISTS:
            raise
        raise CommandFailed(in_full(error), exit_code=Exit.USAGE) from error
    except Unsendable as error:
        raise CommandFailed(in_full(error), exit_code=Exit.USAGE) from error
