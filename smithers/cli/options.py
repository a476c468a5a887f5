"""The command line's options, made from the table of settings: a flag's help, variable and default stand there only."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

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

_BY_FIELD: Final = {setting.field: setting for setting in (*SETTINGS, *CLIENT_SETTINGS)}


def option(field: str) -> Any:
    """Return the option for a setting; its value is read with all others, not by itself."""
    return typer.Option(
        _BY_FIELD[field].flag,
        metavar=_BY_FIELD[field].metavar or None,
        help=_describe(_BY_FIELD[field]),
        show_default=False,
    )


def _describe(setting: Setting) -> str:
    variable = f"{setting.env}; " if setting.env else ""
    return f"{setting.help} [{variable}default: {setting.default}]"


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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the names of the wire.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)
]


def server_options(flags: Mapping[str, Any], **decided: Mapping[str, Any]) -> ServerOptions:
    """Read the settings of a command that serves: its flags, then the environment; `decided`: see read_server_options."""
    return read_server_options(flags, os.environ, **decided)


def looking_options(flags: Mapping[str, Any]) -> ServerOptions:
    """Read the settings of a command that serves nobody: its options, its log's, and the way past a pooler."""
    used = {*flags, "log_format", "log_level"}
    if "database_url" in flags:
        used.add("database_direct_url")
    return read_server_options(flags, os.environ, used=used)


def open_client(url: str | None, token: str | None) -> "Client":
    """Open the conversation of an operating command."""
    from smithers.client import Client

    options = read_client_options({"url": url, "token": token}, os.environ)
    return Client(options.url, token=options.token)
