"""Tools that run programs in the jail: `bash` and `grep`."""

import os
import re
import signal
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final, ParamSpec, Self

from pydantic import BaseModel, Field
from pydantic_core import to_json

from smithers.source.beneath import beneath
from smithers.source.errors import SourceError
from smithers.tools.errors import ToolError, ToolRefused
from smithers.tools.files import MAX_JSON_BYTES, RelativePath, cut_text
from smithers.tools.tool import Tool, tool
from smithers.tools.toolbox import Captured, Command, CommandEnd, find_toolbox

P = ParamSpec("P")

SHELL: Final = ("/bin/sh", "-c")
TIMEOUT_S: Final = 120.0
MAX_TIMEOUT_S: Final = 3_600.0
OUTPUT_BYTES: Final = 100_000  # of each stream
MAX_ARGUMENT_BYTES: Final = 100_000
GREP_TIMEOUT_S: Final = 30.0
GREP_OUTPUT_BYTES: Final = 1 << 20
MAX_MATCHES: Final = 200
MAX_LINE_CHARS: Final = 500
TROUBLE: Final = 2  # of any kind, even for a single file
# What grep prints, `path NUL number : text` to the end of a line; a path may hold anything but a NUL.
PRINTED: Final = re.compile(r"([^\0]*)\0([0-9]+):(.*)\n")

Timeout = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, description="In seconds.")]
WorkingDirectory = Annotated[str, Field(description="Relative to the root directory.")]


class CommandResult(BaseModel):
    """How a command ended, and the beginning of its output."""

    exit_code: int  # below 0: the signal that killed it
    stdout: str
    stderr: str
    is_stdout_truncated: bool = False
    is_stderr_truncated: bool = False

    def check(self) -> Self:
        """Return this result; raise ToolError if the exit code is not 0."""
        if self.exit_code:
            raise ToolError(
                f"exit code {self.exit_code}: {self.stderr[-2000:] or self.stdout[-2000:]}"
            )
        return self


class Match(BaseModel):
    """A line that matches a pattern."""

    path: str
    line: int
    text: str


class Matches(BaseModel):
    """The lines that match a pattern."""

    matches: list[Match]
    is_truncated: bool = False


async def _bash(
    cmd: str,
    args: Sequence[str] = (),
    *,
    cwd: WorkingDirectory = ".",
    stdin: str = "",
    timeout: Timeout = TIMEOUT_S,  # noqa: ASYNC109 - the jail enforces it, with all that the command starts
) -> CommandResult:
    """Run a program with arguments, without a shell, in a sandbox that sees only the root directory and the system."""
    return await _run((cmd, *args), cwd=cwd, stdin=stdin, timeout_s=timeout)


@tool(name="shell")
async def _shell(
    line: str,
    *,
    cwd: WorkingDirectory = ".",
    stdin: str = "",
    timeout: Timeout = TIMEOUT_S,  # noqa: ASYNC109 - as above
) -> CommandResult:
    """Run a line of shell (sh) in a sandbox that sees only the root directory and the system."""
    return await _run((*SHELL, line), cwd=cwd, stdin=stdin, timeout_s=timeout)


@tool(side_effect=False)
async def grep(
    pattern: str,
    path: RelativePath = ".",
    *,
    glob: Annotated[str | None, Field(description="Only files of such names, e.g. '*.py'.")] = None,
    ignore_case: bool = False,
    max_matches: Annotated[int, Field(ge=1, le=10_000)] = MAX_MATCHES,
) -> Matches:
    """Find the lines below a directory, or of a file, that a Perl-compatible regular expression matches.

    Files below the directory that disappear meanwhile, or cannot be read, are skipped.
    """
    options = ["--ignore-case"] if ignore_case else []
    if glob is not None:
        options.append(f"--include={glob}")
    # Text after --regexp= and -- is never parsed as an option.
    argv = (
        *("grep", "--recursive", "--line-number", "--null", "--with-filename", "--binary-files=without-match"),
        *("--no-messages", "--devices=skip", "--perl-regexp", f"--regexp={pattern}", *options, "--", _inside(path) or "."),
    )  # fmt: skip
    end = await find_toolbox().run_command(
        Command(argv=argv, timeout_s=GREP_TIMEOUT_S, max_output_bytes=GREP_OUTPUT_BYTES)
    )
    return await find_toolbox().run_in_thread(partial(_judge, end, path, max_matches))


class Bash(Tool[P, CommandResult]):  # a Tool in lists of tools, with another as an attribute
    """`bash(cmd, args)` runs a program, `bash.shell(line)` a line of shell."""

    shell = _shell


bash: Final = Bash(_bash, name="bash")


async def _run(argv: tuple[str, ...], *, cwd: str, stdin: str, timeout_s: float) -> CommandResult:
    if sum(len(one.encode("utf-8", "replace")) for one in argv) > MAX_ARGUMENT_BYTES:
        raise ToolRefused(f"arguments have at most {MAX_ARGUMENT_BYTES} bytes: use stdin or a file")
    end: CommandEnd = await find_toolbox().run_command(
        Command(
            argv=argv,
            cwd=_inside(cwd),
            stdin=stdin.encode("utf-8", "replace"),
            timeout_s=timeout_s,
            max_output_bytes=OUTPUT_BYTES,
        )
    )
    stdout, stderr = _text(end.stdout.content), _text(end.stderr.content)
    kept_stdout, kept_stderr = (cut_text(text, MAX_JSON_BYTES // 2) for text in (stdout, stderr))
    return CommandResult(
        exit_code=end.exit_code,
        stdout=kept_stdout,
        stderr=kept_stderr,
        is_stdout_truncated=end.stdout.is_truncated or len(kept_stdout) < len(stdout),
        is_stderr_truncated=end.stderr.is_truncated or len(kept_stderr) < len(stderr),
    )


def _inside(path: str) -> str:
    """Return a path's canonical spelling, "" for the root; where it leads inside the jail is up to the jail."""
    if path.strip("./") == "" and ".." not in path and not path.startswith("/"):
        return ""
    try:
        return beneath(path)
    except SourceError as error:
        raise ToolRefused(error.reason) from error


def _judge(end: CommandEnd, path: str, max_matches: int) -> Matches:
    """Return the matches; raise ToolError if there are none, for another reason than that single files failed."""
    is_cut_off = end.exit_code == -signal.SIGPIPE and end.stdout.is_truncated
    if end.exit_code < 0 and not is_cut_off:
        raise ToolError(f"grep was killed by signal {-end.exit_code}")
    if end.exit_code >= TROUBLE and not end.stdout.content:
        if end.stderr.content:
            raise ToolError(f"grep: {_text(end.stderr.content)[:500]}")
        _check_opens(path)
    return _read_matches(end.stdout, max_matches)


def _check_opens(path: str) -> None:
    """Raise ToolRefused if the path to search cannot be opened: grep is told not to report files."""
    try:
        os.close(find_toolbox().root.open(_inside(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
    except SourceError as error:
        raise ToolRefused(error.reason) from error


def _read_matches(printed: Captured, max_matches: int) -> Matches:
    text, at, room = _text(printed.content), 0, MAX_JSON_BYTES
    matches: list[Match] = []
    while found := PRINTED.match(text, at):
        at = found.end()
        path, line, content = found.groups()
        match = Match(path=path.removeprefix("./"), line=int(line), text=content[:MAX_LINE_CHARS])
        room -= len(to_json(match)) + 1
        if room < 0 or len(matches) == max_matches:
            return Matches(matches=matches, is_truncated=True)
        matches.append(match)
    return Matches(matches=matches, is_truncated=printed.is_truncated)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
