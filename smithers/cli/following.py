"""Follow a run to its end, and ask the person at the terminal what the run asks.

Ends in one of three ways: the run has ended; it waits for something that cannot come from here; or somebody told us to
leave. Between two questions the display has the terminal.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import typer
from rich.markup import escape
from rich.panel import Panel

from smithers.cli.console import open_console
from smithers.cli.progress import Display
from smithers.client import Approval, AsyncClient, Conflict, Event, Run
from smithers.states import RunStatus

Answer = tuple[bool, str | None]  # whether it is approved, and a note
Ask = Callable[[Approval], Awaitable[Answer | None]]  # None: no answer can be had


async def follow(
    client: AsyncClient, run_id: str, display: Display, ask: Ask, *, until_ended: bool
) -> Run:
    """Show a run's events until it has ended, or waits for what `ask` cannot answer; return the run then.

    `until_ended`: somebody else may answer what `ask` cannot.
    """
    async for event in client.stream(run_id):
        display.show(event)
        if event.type == "NodeWaitingApproval":
            await _answer(client, event, display, ask)
        elif event.type == "RunStatusChanged" and not until_ended:
            run = await client.get(run_id)  # the event may be an old one
            if await _is_stuck(client, run):
                return run
    return await client.get(run_id)


async def _is_stuck(client: AsyncClient, run: Run) -> bool:
    """Say whether only somebody else can move the run; one whose last question was just answered moves by itself."""
    if run.status is RunStatus.WAITING_APPROVAL:
        return any(approval.run_id == run.run_id for approval in await client.list_approvals())
    if run.status is not RunStatus.WAITING_EVENT:
        return False
    why = await client.why(run.run_id)
    return all(reason.kind != "subflow" for reason in why.reasons)  # a child's end moves it


async def _answer(client: AsyncClient, event: Event, display: Display, ask: Ask) -> None:
    """Have an approval decided, if it still is one."""
    place = (event.run_id, event.node_id, event.iteration)
    for approval in await client.list_approvals():
        if (approval.run_id, approval.node_id, approval.iteration) != place:
            continue
        if approval.request_mode != "approve":
            return  # a choice, or a form: more than a yes or a no
        display.pause()
        try:
            answer = await ask(approval)
        finally:
            display.unpause()
        if answer is not None:
            await _decide(client, approval, answer)


async def _decide(client: AsyncClient, approval: Approval, answer: Answer) -> None:
    is_approved, note = answer
    decide = client.approve if is_approved else client.deny
    with suppress(Conflict):  # somebody else was quicker, which the events will say
        await decide(
            approval.run_id,
            approval.node_id,
            note=note,
            decided_by=os.environ.get("USER"),
            iteration=approval.iteration,
        )


async def approve_all(_approval: Approval) -> Answer:
    """Say yes to whatever is asked."""
    return True, None


async def leave_open(_approval: Approval) -> None:
    """Answer nothing: there is nobody to ask."""


async def ask_at_terminal(approval: Approval) -> Answer | None:
    """Show a question and read the answer; the end of the input is none."""
    console = open_console(is_stderr=True)
    title = approval.request_title or approval.node_id
    console.print(
        Panel(
            escape(approval.request_summary or "(nothing was said about it)"),
            title=f"[bold magenta]{escape(title)}[/]",
            title_align="left",
            border_style="magenta",
            width=min(console.width, 100),
        ),
        soft_wrap=False,
    )
    while True:
        text = await _read_line("Approve? [y/n] ")
        if text is None:
            return None
        word = text.strip().lower()
        if word in {"y", "yes", "n", "no"}:
            note = await _read_line("Note (may be empty): ")
            return word[0] == "y", (note or "").strip() or None


async def _read_line(prompt: str) -> str | None:
    """Read a line without holding up the loop; a thread that reads could not be called back."""
    typer.echo(prompt, err=True, nl=False)
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()

    def read() -> None:
        text = os.read(0, 65_536)  # a terminal gives whole lines
        if not line.done():
            line.set_result(text.decode(errors="replace") if text else None)

    loop.add_reader(0, read)
    try:
        return await line
    finally:
        loop.remove_reader(0)
