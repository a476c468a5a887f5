"""`smithers up FILE`: run one workflow to its end, with everything that it needs, and leave nothing running.

It is a server of its own, on the usual path: a gateway on a free loopback port with a secret token, a pool that claims
only this run's queue, and the root's embedded database, or a given one. Its runs are kept there: one that was released,
or that waits, is resumed by --resume.
"""

import errno
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, print_fields, read_json
from smithers.cli.detaching import Background, detach
from smithers.cli.errand import Again, Errand, ServePlace
from smithers.cli.session import DRAIN_S, run_errand
from smithers.defaults import LOOPBACK_NAMES
from smithers.ids import is_run_id, new_run_id
from smithers.settings import SETTINGS, ServerOptions, Setting
from smithers.settings.parsing import database_url
from smithers.store.dsn import has_password

# Its own defaults; a run has one owner at a time.
OWN: Final = MappingProxyType({"workers": 1, "log_level": "WARNING"})
COUNTED: Final = re.compile(r"\+[0-9]+$")
SERVING: Final = ("host", "port", "auth_token", "detach")  # have no effect without --serve

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The workflow's file; FILE:NAME picks one of several in it.",
        show_default=False,
    ),
]
RootDir = Annotated[
    str | None, o.option("root_dir", default="the current one, or that of a FILE outside it")
]
Workers = Annotated[str | None, o.option("workers", default=str(OWN["workers"]))]
LogLevel = Annotated[str | None, o.option("log_level", default=str(OWN["log_level"]))]
InputText = Annotated[
    str | None,
    typer.Option("--input", metavar="JSON", help="The input: JSON, @FILE, or @- for stdin."),
]
ChosenId = Annotated[
    str | None, typer.Option("--run-id", metavar="ID", help="The run's id. [default: a new one]")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run of --run-id.")]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Approve everything; for a choice take the first option."),
]
Serve = Annotated[
    bool, typer.Option("--serve", help="Serve the run over HTTP, even after its end, until Ctrl-C.")
]
WithMetrics = Annotated[
    bool, typer.Option("--metrics/--no-metrics", help="With --serve: serve /metrics as well.")
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="With --serve: run in the background.")
]


def up(
    file: FileArgument,
    *,
    input_text: InputText = None,
    run_id: ChosenId = None,
    resume: Resume = False,
    yes: Yes = False,
    serve: Serve = False,
    host: o.Host = None,
    port: o.Port = None,
    auth_token: o.AuthToken = None,
    metrics: WithMetrics = True,
    detach: Detach = False,
    root_dir: RootDir = None,
    data_dir: o.DataDir = None,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    migrate: o.Migrate = False,
    workers: Workers = None,
    allow_network: o.AllowNetwork = False,
    unsafe_tools: o.UnsafeTools = False,
    pass_env: o.PassEnv = None,
    log_format: o.LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run one workflow to its end; its result goes to stdout.

    Exit codes: 0 finished, 1 failed, 2 cancelled, 3 waits for somebody, 4 bad input, 130 Ctrl-C, 143 SIGTERM.

    Ctrl-C cancels the run. SIGTERM releases it: --resume resumes it.
    """
    raise typer.Exit(_up(file, locals()))


def _up(file: str, flags: Mapping[str, Any]) -> int:
    if flags["resume"] and flags["input_text"] is not None:
        raise CommandFailed(
            "--input: a resumed run keeps the input that it was started with",
            hint="leave --input out, or start another run without --resume",
            exit_code=Exit.USAGE,
        )
    chosen = _choose_id(flags["run_id"], is_resume=flags["resume"])
    told = _read_options(flags, file, chosen)
    errand = Errand(
        file=file,
        workflow_path=place_below(told.root_dir, file),
        input=read_input(flags["input_text"]),
        run_id=chosen,
        is_resume=flags["resume"],
        is_yes=flags["yes"],
        serve=_choose_place(flags, told),
        again=_repeat(flags),
    )
    # Its own server is private, wherever the run itself is served.
    options = replace(told, host="127.0.0.1", port=0, auth_token=secrets.token_urlsafe())
    if not flags["detach"]:
        return run_errand(errand, options)
    half = detach(chosen)
    if not isinstance(half, Background):
        return run_errand(errand, options, announce=half)
    print_fields(
        [("url", half.url), ("pid", str(half.pid)), ("run", chosen), ("log", str(half.log))]
    )
    return Exit.OK


def _choose_place(flags: Mapping[str, Any], told: ServerOptions) -> ServePlace | None:
    """Return where the run is served; raise CommandFailed for an exposed host without a token, and for ignored flags."""
    if not flags["serve"]:
        given = [name for name in SERVING if flags[name]] + ["no-metrics"] * (not flags["metrics"])
        if given:
            raise CommandFailed(
                f"--{given[0].replace('_', '-')} is for a run that is served",
                hint="add --serve",
                exit_code=Exit.USAGE,
            )
        return None
    if told.host not in LOOPBACK_NAMES and not told.auth_token:
        raise CommandFailed(
            f"host {told.host} is reachable from outside, and no token is set",
            hint="set SMITHERS_API_KEY",
            exit_code=Exit.USAGE,
        )
    return ServePlace(told.host, told.port, told.auth_token, metrics=flags["metrics"])


def _choose_id(given: str | None, *, is_resume: bool) -> str:
    if is_resume and given is None:
        raise CommandFailed(
            "--resume needs to know which run", hint="add --run-id ID", exit_code=Exit.USAGE
        )
    if given is not None and not is_run_id(given):
        raise CommandFailed(
            f"--run-id {given!r}: a run's id has 1 to 255 letters, digits and . _ : @ + -, and begins with one of the first "
            "two or with _",
            exit_code=Exit.USAGE,
        )
    return given or new_run_id()


def _read_options(flags: Mapping[str, Any], file: str, run_id: str) -> ServerOptions:
    """Read the settings of a server that serves this one run."""
    root_dir = flags["root_dir"] or os.environ.get("SMITHERS_ROOT_DIR") or find_root(file)
    told = o.server_options(
        {**flags, "root_dir": root_dir},
        defaults=OWN,
        fixed={
            "own_queue": f"up-{COUNTED.sub('', run_id)}",  # also for its continuations
            "drain_timeout_s": DRAIN_S,
            "retention": None,  # the database may be a server's
            "tokens_file": None,  # its gateway accepts one secret token
        },
    )
    if not told.workers:
        raise CommandFailed("--workers 0: there would be no worker to run it", exit_code=Exit.USAGE)
    return told


def _repeat(flags: Mapping[str, Any]) -> Again:
    """Return the command's own flags; secrets become variables to fill in."""
    variables = []
    words = [f"--{name}" for name in ("yes", "serve", "detach") if flags[name]]
    words += ["--no-metrics"] * (not flags["metrics"])
    for setting in SETTINGS:
        given = flags.get(setting.field)
        if given is True:
            words.append(setting.flag)
        elif given and setting.is_secret and not _is_open_url(setting, given):
            variables.append(f"{setting.env}=…")
        elif given:
            for text in given if setting.is_many else [given]:
                words += [setting.flag, text]
    return Again(tuple(variables), tuple(words))


def _is_open_url(setting: Setting, given: str) -> bool:
    """Say whether a setting that may hold a secret is a URL without one."""
    return setting.read is database_url and not has_password(given)


def find_root(file: str) -> str:
    """Return the root for a file: the current directory if the file is below it, else the file's own."""
    here = Path.cwd()
    path = _path_of(file)
    return str(here if path.is_relative_to(here) else path.parent)


def place_below(root: Path, file: str) -> str:
    """Return a workflow's path as the server names it; raise CommandFailed if it is missing or not below the root."""
    path = _path_of(file)
    if not path.is_file():
        raise CommandFailed(f"there is no file {file.partition(':')[0]}", exit_code=Exit.USAGE)
    if not path.is_relative_to(root):
        raise CommandFailed(
            f"{path} is not below the root {root}",
            hint="name a directory above the file with --root-dir",
            exit_code=Exit.USAGE,
        )
    _, colon, export = file.partition(":")
    return f"{path.relative_to(root)}{colon}{export}"


def _path_of(file: str) -> Path:
    name = file.partition(":")[0]
    path = Path(name)
    try:
        path.stat()
    except OSError as error:
        # Some versions of Python raise RuntimeError when they resolve such a path, others nothing.
        if error.errno == errno.ELOOP:
            raise CommandFailed(
                f"{name} leads through too many links", exit_code=Exit.USAGE
            ) from error
    return path.resolve()


def read_input(text: str | None) -> dict[str, Any]:
    """Read --input; raise CommandFailed for anything but a JSON object."""
    if text is None:
        return {}
    value = read_json("--input", text, example='{"topic": "foxes"}')
    if not isinstance(value, dict):
        raise CommandFailed("--input must be a JSON object", exit_code=Exit.USAGE)
    return value
