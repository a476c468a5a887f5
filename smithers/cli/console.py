"""Output for people and programs: data on stdout, messages on stderr, colours and tables on terminals only; and JSON flags.

`--json` prints the server's answer, with the API's names: one document, or for events one line each.

Names, texts and errors come from workflows, tools and models: everything printed goes through `printable`, so that it
cannot control a terminal.
"""

import json
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from smithers.errors import SmithersError
from smithers.texts import printable

if TYPE_CHECKING:
    from rich.console import Console

    from smithers.settings import ServerOptions

STYLES: Final = {
    "finished": "green",
    "running": "cyan",
    "in-progress": "cyan",
    "queued": "blue",
    "pending": "dim",
    "skipped": "dim",
    "failed": "bold red",
    "cancelled": "yellow",
    "waiting-approval": "magenta",
    "waiting-event": "magenta",
    "waiting-timer": "magenta",
}


COLUMN_GAP: Final = 3
FOLDED_CHARS: Final = 20  # less room for a table's last column could not be read


class Exit(IntEnum):
    """A command's exit code."""

    OK = 0
    FAILED = 1
    CANCELLED = 2
    WAITING = 3
    USAGE = 4
    SIGINT = 130
    SIGTERM = 143


class CommandFailed(SmithersError):
    """A command cannot do what it was asked to: one sentence, and a hint at what to do."""

    def __init__(
        self, message: str, *, hint: str | None = None, exit_code: int = Exit.FAILED
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


def read_json(flag: str, text: str, *, example: str) -> Any:
    """Return the value of a flag that is JSON, `@FILE` that holds it, or `@-` for stdin; raise CommandFailed otherwise.

    `example`: a JSON text, which the hint shows quoted for a shell.
    """
    try:
        if text.startswith("@"):
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{flag} cannot be read: {error}", exit_code=Exit.USAGE) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(
            f"{flag} is not JSON: {error}",
            hint=f"quote it for the shell: '{example}'",
            exit_code=Exit.USAGE,
        ) from error


def heeded_signals(*numbers: signal.Signals) -> tuple[signal.Signals, ...]:
    """Return the signals that a command handles: not SIGHUP if `nohup` has it ignored."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in numbers if number != signal.SIGHUP or not is_ignored)


def in_full(error: Exception) -> str:
    """Return an error's message, and the errors or expectations in its details, a line for each."""
    details = getattr(error, "details", None)
    told = details if isinstance(details, dict) else {}
    lines = [str(error), *(json.dumps(one, ensure_ascii=False) for one in told.get("errors") or ())]
    if "expected" in told:
        lines.append(f"expected: {json.dumps(told['expected'], ensure_ascii=False)}")
    return "\n  ".join(lines)


def open_console(*, is_stderr: bool = False) -> "Console":
    """Return a console; it respects NO_COLOR and TERM=dumb, and detects terminals."""
    from rich.console import Console

    console = Console(stderr=is_stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.no_color = True
    return console


def print_json(value: Any, *, is_line: bool = False) -> None:
    """Print one document: indented on a terminal, unless one line is requested; else on one line."""
    indent = 2 if sys.stdout.isatty() and not is_line else None
    typer.echo(printable(json.dumps(value, indent=indent, ensure_ascii=False)))


def print_line(text: str) -> None:
    """Print one line of data."""
    typer.echo(printable(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print rows under their columns, with STYLES by word; the last column is folded to the terminal's width.

    `empty`: the message for no rows. A terminal that is too narrow for the others gets plain lines, which it wraps itself.
    """
    listed = [tuple(map(printable, row)) for row in rows]
    if not listed:
        note(empty)
        return
    *widths, last = (max(map(len, cells)) for cells in zip(columns, *listed, strict=True))
    needed = sum(widths) + len(widths) * COLUMN_GAP + min(last, FOLDED_CHARS)
    if not sys.stdout.isatty() or needed > shutil.get_terminal_size().columns:
        _print_plain(columns, listed)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number < len(widths))
    for row in listed:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    open_console().print(table, soft_wrap=False)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one a line."""
    listed = list(fields)
    width = max(len(name) for name, _ in listed)
    console = open_console()
    for name, value in listed:
        from rich.text import Text

        line = Text(f"{name:<{width}}  ", style="bold")
        line.append(printable(value), style=STYLES.get(value, "not bold"))
        console.print(line)


def note(text: str) -> None:
    """Print a message to stderr."""
    typer.echo(printable(text), err=True)


def log_to_stderr(options: "ServerOptions") -> None:
    """Log to stderr, in the format of the settings."""
    import smithers.telemetry.without_rich  # noqa: F401 - before structlog
    from smithers.telemetry.logs import configure_logging

    configure_logging(options.log_format, options.log_level)


def complain(error: str, hint: str | None) -> None:
    """Print an error and its hint to stderr."""
    from rich.text import Text

    console = open_console(is_stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), printable(error)))
    if hint:
        console.print(Text.assemble(("hint: ", "bold cyan"), printable(hint)))


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
