"""Check the Python files of a directory with tools: find a pattern in them, check their syntax, write a report.

Programs that the tools start run in the sandbox: they see the root directory and the system, and no network.
"""

from pydantic import BaseModel, Field

from smithers import Context, Parallel, Sequence, Task, workflow
from smithers.tools import bash, grep, write

CHECK_SYNTAX = """
import ast, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    try:
        ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        print(f"{path}:{error.lineno}: {error.msg}")
"""


class Request(BaseModel):
    """Where to look, for what, and where to write the report."""

    folder: str = "examples"
    pattern: str = Field(default=r"^async def \w+", description="A Perl-compatible expression.")
    report: str = "demo-output/check.md"


class Found(BaseModel):
    """A line of a file."""

    path: str
    line: int
    text: str


async def find_lines(folder: str, pattern: str) -> list[Found]:
    """Find the pattern in the folder's Python files."""
    found = await grep(pattern, folder, glob="*.py")
    return [Found(path=one.path, line=one.line, text=one.text) for one in found.matches]


def check_syntax(folder: str) -> list[str]:
    """List the files that are not valid Python; a plain function calls `result()`."""
    checked = bash("python3", ["-c", CHECK_SYNTAX, folder], timeout=60).result()
    return checked.check().stdout.splitlines()


async def write_report(path: str, lines: list[Found], broken: list[str]) -> str:
    """Write the report."""
    text = ["# Check", "", f"{len(broken)} files with errors, {len(lines)} lines found.", ""]
    text += [f"- {one}" for one in broken]
    text += [f"- {one.path}:{one.line}: `{one.text.strip()}`" for one in lines]
    await write(path, "\n".join(text) + "\n")
    return path


@workflow(input=Request)
def check_project(ctx: Context[Request]) -> Sequence:
    """Run both checks concurrently, then write the report."""
    asked = ctx.input
    lines = ctx.output_maybe("lines", list[Found]) or []
    broken = ctx.output_maybe("syntax", list[str]) or []
    return Sequence(
        Parallel(
            Task("lines", lambda: find_lines(asked.folder, asked.pattern), output=list[Found]),
            Task("syntax", lambda: check_syntax(asked.folder), output=list[str]),
        ),
        Task("report", lambda: write_report(asked.report, lines, broken)),
    )
