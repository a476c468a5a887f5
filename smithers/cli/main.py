"""The `smithers` command: which commands there are, and how every one of them ends."""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated, Final

import typer

from smithers.cli import serve
from smithers.cli.console import CommandFailed, Exit, complain, print_line
from smithers.errors import SmithersError
from smithers.settings import InvalidSettings

HELP: Final = """Examples:

\b
  smithers serve                                   serve the workflows below this directory
  smithers up flow.py --input '{"topic": "foxes"}'   run one to its end
  smithers ps                                      what runs, what waits
  smithers events RUN -f                           follow a run

Durable workflows in Python: every step is committed to Postgres before the next begins.
"""

app = typer.Typer(
    name="smithers",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print_line(f"smithers {installed_version('smithers-gateway')}")
        raise typer.Exit


@app.callback()
def smithers(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """What stands before every command; the help is the app's."""


app.command()(serve.serve)
app.command()(serve.gateway)
app.command()(serve.worker)


def main() -> None:
    """Run the command; an error is a sentence and a hint, never a traceback of what was foreseen."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        code = app(arguments, prog_name="smithers", standalone_mode=False)
    except typer.TyperException as error:  # a usage error, whose own code, 2, says "cancelled" here
        complain(error.format_message(), _usage_hint(error))
        return Exit.USAGE
    except InvalidSettings as error:
        for problem in error.problems:
            complain(problem, None)
        return Exit.USAGE
    except CommandFailed as error:
        complain(str(error), error.hint)
        return error.exit_code
    except typer.Abort:
        return Exit.SIGINT
    except SmithersError as error:
        complain(str(error), None)
        return Exit.FAILED
    except OSError as error:
        complain(str(error), None)
        return Exit.FAILED
    return code if isinstance(code, int) else Exit.OK
