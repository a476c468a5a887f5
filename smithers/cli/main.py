"""The `smithers` command: its subcommands, and how each of them ends."""

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import typer

from smithers.cli import approvals, check, db, doctor, graph, runs, serve, signals, start, up
from smithers.cli.console import CommandFailed, Exit, complain, in_full, note, print_line
from smithers.errors import SmithersError
from smithers.settings import InvalidSettings

HELP: Final = (
    """Durable workflows in Python: every step is committed to Postgres before the next begins."""
)
OVERVIEW: Final = (
    "smithers serve                     serve the workflows below this directory",
    "smithers up FILE --input @in.json  run one workflow to its end",
    "smithers start FILE                start a run on the server",
    "smithers ps                        list runs: what runs, what waits",
    "smithers events RUN --follow       watch a run",
)

app = typer.Typer(
    name="smithers",
    no_args_is_help=True,
    rich_markup_mode=None,  # half the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _help(examples: Sequence[str], text: str) -> str:
    """Put examples before the text; the backspace keeps typer from rewrapping them."""
    return "\n".join(["Examples:", "", "\b", *(f"  {line}" for line in examples), "", text])


def _add(
    group: typer.Typer, command: Callable[..., None], *examples: str, name: str | None = None
) -> None:
    """Add a command; its help is its examples and its docstring."""
    text = inspect.cleandoc(command.__doc__ or "")
    group.command(name, help=_help(examples, text), short_help=text.partition("\n")[0])(command)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print_line(f"smithers {version('smithers-gateway')}")
        raise typer.Exit


@app.callback(help=_help(OVERVIEW, HELP))
def smithers(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Options before every command."""


def _add_running() -> None:
    example = """smithers up flow.py --input '{"topic": "foxes"}'"""
    _add(
        app,
        up.up,
        "smithers up flow.py",
        example,
        "smithers up flow.py --run-id nightly --resume",
        "smithers up flow.py --serve --detach",
    )
    _add(
        app,
        serve.serve,
        "smithers serve",
        "smithers serve --root-dir flows --port 8080",
        "DATABASE_URL=postgresql://db/app smithers serve --migrate",
    )
    _add(app, serve.gateway, "DATABASE_URL=postgresql://db/app smithers gateway --root-dir flows")
    _add(app, serve.worker, "DATABASE_URL=postgresql://db/app smithers worker --queue heavy")


def _add_operating() -> None:
    _add(
        app,
        start.start,
        "smithers start flow.py",
        """smithers start flow.py:nightly --input '{"topic": "foxes"}' --run-id nightly-7""",
    )
    _add(app, runs.ps, "smithers ps", "smithers ps --status failed --json")
    _add(app, runs.inspect, "smithers inspect RUN", "smithers inspect RUN --json")
    _add(app, runs.why, "smithers why RUN")
    _add(
        app,
        runs.events,
        "smithers events RUN --follow",
        "smithers events RUN --type NodeFailed --json",
    )
    _add(app, runs.frames, "smithers frames RUN")
    _add(app, approvals.approvals, "smithers approvals")
    _add(
        app,
        approvals.approve,
        'smithers approve RUN NODE --note "looks good"',
        "smithers approve RUN NODE --select blue",
    )
    _add(app, approvals.deny, 'smithers deny RUN NODE --note "too long"')
    _add(app, approvals.answer, """smithers answer RUN NODE --value '{"stars": 5}'""")
    _add(app, signals.signal, """smithers signal RUN paid --data '{"amount": 12}'""")
    _add(app, runs.cancel, "smithers cancel RUN")
    _add(app, runs.resume, "smithers resume RUN", "smithers resume RUN --workflow flow.py")


def _add_checking() -> None:
    _add(app, graph.graph, "smithers graph flow.py", "smithers graph flow.py --json")
    _add(app, check.check, "smithers check", "smithers check flow.py --json")
    _add(app, doctor.doctor, "smithers doctor", "DATABASE_URL=postgresql://db/app smithers doctor")
    group = typer.Typer(
        help="The database: its schema, and its old runs.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    _add(group, db.upgrade, "DATABASE_URL=postgresql://db/app smithers db upgrade")
    _add(group, db.current, "smithers db current", "smithers db current --json")
    _add(
        group,
        db.prune,
        "smithers db prune --older-than 30d --dry-run",
        "DATABASE_URL=postgresql://db/app smithers db prune --older-than 12w",
    )
    app.add_typer(group, name="db")


# In the order in which --help lists them.
_add_running()
_add_operating()
_add_checking()


def main() -> None:
    """Run the command of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; expected errors are a sentence and a hint, never a traceback."""
    try:
        code = app(arguments, prog_name="smithers", standalone_mode=False)
    except typer.Abort:
        code = Exit.SIGINT
    except (typer.TyperException, SmithersError, OSError) as error:
        code = _explain(error)
    return code if isinstance(code, int) else Exit.OK


def _explain(error: Exception) -> int:
    match error:
        case typer.TyperException() if error.format_message().startswith("Usage: "):
            note(error.format_message())  # no command was given: this is the help
            return Exit.USAGE
        case typer.TyperException():  # a usage error, whose own code, 2, says "cancelled" here
            complain(error.format_message(), "smithers COMMAND --help lists the options")
            return Exit.USAGE
        case InvalidSettings():
            for problem in error.problems:
                complain(problem, None)
            return Exit.USAGE
        case CommandFailed():
            complain(str(error), error.hint)
            return error.exit_code
        case OSError(errno=errno.EADDRINUSE):
            complain(
                in_full(error),
                "another program listens there: choose another port with --port N, for `worker` with --metrics-port N",
            )
            return Exit.FAILED
        case _:
            complain(in_full(error), getattr(error, "hint", None))
            return Exit.FAILED


if __name__ == "__main__":
    main()
