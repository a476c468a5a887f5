"""Demonstrate a server, from start to clean-up: `make demo`.

Starts a server on a database of its own, starts the release notes of this repository over HTTP, shows what happens as it
happens, has somebody approve them (on a terminal you; without one, or with YES=1, nobody is asked), prints them, and
takes everything down again.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.markdown import Markdown
from rich.rule import Rule

from smithers.cli.asking import Answer, Ask, approve_all, ask_at_terminal
from smithers.cli.console import open_console
from smithers.cli.following import follow
from smithers.cli.progress import open_display
from smithers.client import Approval, AsyncClient, Run
from smithers.server import start_server
from smithers.settings import ServerOptions
from smithers.states import RunStatus
from smithers.telemetry.logs import configure_logging

ROOT: Final = Path(__file__).resolve().parent.parent
WORKFLOW: Final = "examples/release_notes.py"
OUT: Final = open_console()


def main() -> None:
    """Run the demo; its exit code is 0 if the run has finished."""
    configure_logging("pretty", "ERROR")
    with scratch() as (data_dir, notes):
        try:
            run = asyncio.run(demonstrate(data_dir, notes))
        except KeyboardInterrupt:
            OUT.print("\nstopped; nothing is left running")
            sys.exit(130)
        if run.status is not RunStatus.FINISHED:
            OUT.print(f"the run ended as {run.status}: {run.error or ''}")
            sys.exit(1)
        show_result(run, notes)


@contextmanager
def scratch() -> Iterator[tuple[Path, Path]]:
    """Yield a directory for the database and a path for the notes; both are gone afterwards."""
    data_dir = Path(tempfile.mkdtemp(prefix="smithers-demo-"))
    out_dir = Path(tempfile.mkdtemp(prefix="smithers-notes-"))
    try:
        yield data_dir, out_dir / "RELEASE_NOTES.md"
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
        shutil.rmtree(out_dir, ignore_errors=True)


async def demonstrate(data_dir: Path, notes: Path) -> Run:
    """Start a server, run the workflow through its front door, stop the server."""
    token = secrets.token_urlsafe()
    options = ServerOptions(
        root_dir=ROOT,
        data_dir=data_dir,
        port=0,
        auth_token=token,
        workers=2,
        log_format="pretty",
        log_level="ERROR",
    )
    began_s = time.monotonic()
    say("a server on a database of its own")
    async with start_server(options) as server:
        detail(f"{server.url}, with 2 workers; PostgreSQL in {data_dir}")
        async with AsyncClient(server.url, token=token) as client:
            say("a run, started over HTTP")
            workflow, given = choose_example(notes)
            detail(f"POST {server.url}/v1/runs")
            detail(json.dumps({"workflowPath": workflow, "input": given}))
            run_id = await client.start(workflow, given)
            say("its events, as they happen")
            detail(f"GET {server.url}/v1/runs/{run_id}/events")
            with open_display(workflow) as display:
                left = await follow(client, run_id, display, choose_ask(), until_ended=False)
        say("everything stopped")
    detail(
        f"{time.monotonic() - began_s:.1f} s in all; the gateway first, then the workers, then Postgres"
    )
    return left.run


def choose_example(notes: Path) -> tuple[str, dict[str, Any]]:
    """Return the release notes of this repository; of a tree that is none, or without git, a smaller example."""
    git = shutil.which("git")
    if git is not None:
        looked = subprocess.run(  # noqa: S603 - the git of the path, asked about our own directory
            [git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False
        )
        if looked.returncode == 0:
            return WORKFLOW, {"repository": str(ROOT), "output": str(notes)}
    detail("this tree is no git repository (or there is no git): a hundred parallel tasks instead")
    return "examples/fan_out.py", {}


def choose_ask() -> Ask:
    """Ask whoever sits there; where nobody does, or YES=1 says so, approve."""
    if os.environ.get("YES") != "1" and sys.stdin.isatty() and sys.stderr.isatty():
        return ask_at_terminal
    return approve_by_itself


async def approve_by_itself(approval: Approval) -> Answer | None:
    """Approve, and say so."""
    detail(f"{approval.request_title} Approved by itself: nobody is at the terminal, or YES=1.")
    return await approve_all(approval)


def show_result(run: Run, notes: Path) -> None:
    """Print the result."""
    if not isinstance(run.output, dict):
        say(f"the result: {run.output}")
        return
    say(f"the result: {run.output['summary']}")
    if run.output["path"] is None:
        return
    text = notes.read_text(encoding="utf-8")
    if OUT.is_terminal:
        OUT.print(Rule(style="dim"), Markdown(text), Rule(style="dim"), soft_wrap=False)
    else:
        OUT.print(text, markup=False)


def say(text: str) -> None:
    """Begin a part."""
    OUT.print(f"\n[bold]{text}[/]" if OUT.is_terminal else f"\n{text}")
    sys.stdout.flush()


def detail(text: str) -> None:
    """Say something about it."""
    OUT.print(f"  {text}", style="dim", markup=False)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
