"""`smithers up FILE`: run one workflow to its end, with everything that this needs, and leave nothing running.

It is a server of its own, on the same path as everybody: a gateway on a free loopback port behind a token that nobody else
knows, a pool that claims only this run's queue, and the root's embedded database, or a given one. What it began is kept
there: a run that was released, or that waits, is taken up again by --resume.
"""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smithers.cli import options as o
from smithers.cli.console import CommandFailed, Exit, note, print_json
from smithers.ids import RunId, is_run_id, new_run_id
from smithers.settings import ServerOptions
from smithers.states import RunStatus

if TYPE_CHECKING:
    from smithers.cli.following import Answer, Ask
    from smithers.cli.progress import Display
    from smithers.client import Approval, AsyncClient, BadRequest, Run
    from smithers.server import Server

DRAIN_S: Final = 2.0  # what is under way when we are told to leave is given back after this


FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The workflow's file; FILE:NAME picks one of several in it.",
        show_default=False,
    ),
]
InputText = Annotated[
    str | None,
    typer.Option("--input", metavar="JSON", help="The input: JSON, @FILE, or @- for stdin."),
]
ChosenId = Annotated[
    str | None, typer.Option("--run-id", metavar="ID", help="The run's id. [default: a new one]")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run of --run-id where it stopped.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Approve whatever is asked.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is to be run."""

    file: str  # as the person wrote it
    workflow_path: str  # below the root
    input: dict[str, Any]
    run_id: str
    is_resume: bool
    is_yes: bool


def up(
    file: FileArgument,
    *,
    input_text: InputText = None,
    run_id: ChosenId = None,
    resume: Resume = False,
    yes: Yes = False,
    root_dir: o.RootDir = None,
    data_dir: o.DataDir = None,
    database_url: o.DatabaseUrl = None,
    database_direct_url: o.DatabaseDirectUrl = None,
    migrate: o.Migrate = False,
    workers: o.Workers = None,
    allow_network: o.AllowNetwork = False,
    pass_env: o.PassEnv = None,
    log_format: o.LogFormat = None,
    log_level: o.LogLevel = None,
) -> None:
    """Run one workflow to its end; its result goes to stdout.

    Exit codes: 0 finished, 1 failed, 2 cancelled, 3 waits for somebody, 4 bad input, 130 Ctrl-C, 143 SIGTERM.

    Ctrl-C cancels the run. SIGTERM releases it: --resume goes on with it.
    """
    flags = locals()
    chosen = _choose_id(run_id, is_resume=resume)
    options = _options_of_its_own(flags, file, chosen)
    errand = Errand(
        file=file,
        workflow_path=place_below(options.root_dir, file),
        input=read_input(input_text),
        run_id=chosen,
        is_resume=resume,
        is_yes=yes,
    )
    raise typer.Exit(run_errand(errand, options))


def _choose_id(given: str | None, *, is_resume: bool) -> str:
    if is_resume and given is None:
        raise CommandFailed(
            "--resume needs to know which run", hint="add --run-id ID", exit_code=Exit.USAGE
        )
    if given is not None and not is_run_id(given):
        raise CommandFailed(f"{given!r} is no run id", exit_code=Exit.USAGE)
    return given or new_run_id()


def _options_of_its_own(flags: Mapping[str, Any], file: str, run_id: str) -> ServerOptions:
    """Return the options of a server that serves this one run, and nobody else."""
    root_dir = flags["root_dir"] or os.environ.get("SMITHERS_ROOT_DIR") or find_root(file)
    return o.server_options(
        {**flags, "root_dir": root_dir, "auth_token": secrets.token_urlsafe(), "port": "0"},
        own_queue=f"up-{run_id}",
        drain_timeout_s=DRAIN_S,
        workers=1,  # a run has one owner at a time
        log_level="WARNING",
    )


def find_root(file: str) -> str:
    """Return the root for a file: the current directory if the file lies below it, else the file's own."""
    here = Path.cwd()
    path = _path_of(file)
    return str(here if path.is_relative_to(here) else path.parent)


def place_below(root: Path, file: str) -> str:
    """Return a workflow as the server names it; raise CommandFailed where it is not there or not below."""
    path = _path_of(file)
    if not path.is_file():
        raise CommandFailed(f"there is no file {file.partition(':')[0]}", exit_code=Exit.USAGE)
    if not path.is_relative_to(root):
        raise CommandFailed(
            f"{path} does not lie below the root {root}",
            hint="leave --root-dir out, or name a directory above the file",
            exit_code=Exit.USAGE,
        )
    _, colon, export = file.partition(":")
    return f"{path.relative_to(root)}{colon}{export}"


def _path_of(file: str) -> Path:
    return Path(file.partition(":")[0]).resolve()


def read_input(text: str | None) -> dict[str, Any]:
    """Read --input; raise CommandFailed for what is no JSON object."""
    if text is None:
        return {}
    if text.startswith("@"):
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(f"--input: {error}", exit_code=Exit.USAGE) from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandFailed(
            f"--input is no JSON: {error}",
            hint="""quote it: '{"topic": "foxes"}'""",
            exit_code=Exit.USAGE,
        ) from error
    if not isinstance(value, dict):
        raise CommandFailed("--input must be a JSON object", exit_code=Exit.USAGE)
    return value


def run_errand(errand: Errand, options: ServerOptions) -> int:
    """Run it, and return the command's exit code."""
    import uvloop

    from smithers.telemetry.logs import configure_logging

    configure_logging(options.log_format, options.log_level)
    return uvloop.run(_run(errand, options))


async def _run(errand: Errand, options: ServerOptions) -> int:
    from smithers.cli.progress import open_display
    from smithers.client import AsyncClient
    from smithers.server import start_server

    with open_display(f"{Path(errand.file).name}  {errand.run_id}") as display:
        async with (
            start_server(options, environ=os.environ) as server,
            AsyncClient(server.url, token=options.auth_token) as client,
        ):
            session = _Session(errand, server, client, display)
            with session.signals():
                if errand.is_resume:
                    await _refuse_others(errand, server.dsn, str(options.own_queue))
                await _begin(errand, client)
                await session.follow()
            display.end()  # before the drain: its seconds are none of the run's
    return session.conclude()


async def _refuse_others(errand: Errand, dsn: str, own_queue: str) -> None:
    """Raise CommandFailed for a run that a server began: nobody here would ever claim it."""
    from smithers.store.connections import connect
    from smithers.store.reads import find_queue

    connection = await connect(dsn, role="up")
    try:
        queue = await find_queue(connection, RunId(errand.run_id))
    finally:
        await connection.close()
    if queue not in {None, own_queue}:
        raise CommandFailed(
            f"run {errand.run_id} was not begun by `smithers up`: it is in the queue {queue}",
            hint=f"smithers resume {errand.run_id}, with a server that serves it",
            exit_code=Exit.USAGE,
        )


async def _begin(errand: Errand, client: "AsyncClient") -> None:
    from smithers.client import BadRequest, Conflict, NotFound

    try:
        if errand.is_resume:
            await client.resume(errand.run_id, workflow_path=errand.workflow_path)
        else:
            await client.start(errand.workflow_path, errand.input, run_id=errand.run_id)
    except BadRequest as error:
        raise CommandFailed(_explain(error), exit_code=Exit.USAGE) from error
    except NotFound as error:
        hint = "leave --resume out to start it"
        raise CommandFailed(str(error), hint=hint, exit_code=Exit.USAGE) from error
    except Conflict as error:
        hint = f"smithers up {errand.file} --run-id {errand.run_id} --resume"
        raise CommandFailed(str(error), hint=hint, exit_code=Exit.USAGE) from error


def _explain(error: "BadRequest") -> str:
    """Say what is wrong with a start, field by field."""
    details = error.details if isinstance(error.details, dict) else {}
    errors = details.get("errors") or []
    return "\n  ".join([str(error), *(json.dumps(one, ensure_ascii=False) for one in errors)])


class _Session:
    """One run at the terminal: who is asked, what the signals do to it, and how it ended."""

    def __init__(
        self, errand: Errand, server: "Server", client: "AsyncClient", display: "Display"
    ) -> None:
        self._errand = errand
        self._display = display
        self._server = server
        self._client = client
        self._interrupted = asyncio.Event()
        self._leaving = asyncio.Event()
        self._exit_code = Exit.OK  # of who was told to leave
        self._cancelling: asyncio.Task[str] | None = None
        self._run: Run | None = None

    async def follow(self) -> None:
        """Follow the run until it has ended, waits, or somebody wants us to leave."""
        from smithers.cli import following

        work = following.follow(
            self._client, self._errand.run_id, self._display, self._choose_ask()
        )
        following_it = asyncio.create_task(work)
        leaving = asyncio.create_task(self._leaving.wait())
        await asyncio.wait({following_it, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not following_it.done():
            following_it.cancel()
            await asyncio.wait({following_it})
        else:
            self._run = following_it.result()

    def _choose_ask(self) -> "Ask":
        from smithers.cli import following

        if self._errand.is_yes:
            return following.approve_all
        if sys.stdin.isatty() and sys.stderr.isatty():
            return self._ask_unless_interrupted
        return following.leave_open

    async def _ask_unless_interrupted(self, approval: "Approval") -> "Answer | None":
        from smithers.cli import following

        asking = asyncio.create_task(following.ask_at_terminal(approval))
        interrupted = asyncio.create_task(self._interrupted.wait())
        await asyncio.wait({asking, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if asking.done():
            return asking.result()
        asking.cancel()
        await asyncio.wait({asking})
        return None

    def conclude(self) -> int:
        """Say what came of it, and return the exit code."""
        run = self._run
        if run is None:
            self._say_how_to_go_on("released")
            return self._exit_code
        match run.status:
            case RunStatus.FINISHED:
                print_json(run.output)
                return Exit.OK
            case RunStatus.CANCELLED:
                self._say_how_to_go_on("cancelled")
                return Exit.CANCELLED if self._cancelling is None else Exit.SIGINT
            case RunStatus.FAILED:
                error = run.error or {}
                raise CommandFailed(
                    f"the run failed: {error.get('name')}: {error.get('message')}",
                    hint=f"mend it, then: {self._command('--resume')}",
                )
            case _:
                self._say_what_unblocks(run)
                return Exit.WAITING

    def _say_what_unblocks(self, run: "Run") -> None:
        blocked = (run.run_state.blocked if run.run_state else None) or {}
        if run.status is RunStatus.WAITING_EVENT:
            note(f"run {run.run_id} waits for the signal {blocked.get('correlationKey')}")
            note("a server of this root, `smithers serve`, takes it:")
            note(f"  smithers signal {run.run_id} {blocked.get('correlationKey')}")
            note(f"then go on with:\n  {self._command('--resume')}")
        else:
            note(f"run {run.run_id} waits for an approval: {blocked.get('nodeId')}")
            note(f"approve it with:\n  {self._command('--resume', '--yes')}")

    def _say_how_to_go_on(self, word: str) -> None:
        note(f"{word}; go on with:\n  {self._command('--resume')}")

    def _command(self, *flags: str) -> str:
        return " ".join(["smithers up", self._errand.file, "--run-id", self._errand.run_id, *flags])

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take the signals while the run is followed; those that come later hurry the drain."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave, Exit.SIGTERM)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._server.hurry)

    def _interrupt(self) -> None:
        if self._cancelling is not None:
            self._leave(Exit.SIGINT)
            return
        self._display.say("cancelling the run; Ctrl-C again to leave at once")
        self._interrupted.set()
        self._cancelling = asyncio.create_task(self._client.cancel(self._errand.run_id))

    def _leave(self, code: Exit) -> None:
        if self._leaving.is_set():
            self._server.hurry()
        else:
            self._exit_code = code
            self._leaving.set()
