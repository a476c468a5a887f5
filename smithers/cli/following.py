"""Follow a run to its end, and ask its questions at the terminal.

Ends in one of four ways: the run has ended; it continues as another; it waits for something that cannot come from here; or
it was told to stop. Between two questions the display has the terminal.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import typer
from rich.markup import escape
from rich.panel import Panel

from smithers.cli.console import open_console
from smithers.cli.progress import Display
from smithers.client import Approval, AsyncClient, Conflict, Event, Run
from smithers.states import RunStatus
from smithers.texts import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a question."""

    is_approved: bool
    note: str | None = None
    selected: str | None = None
    ranked: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The run's state when following ended."""

    run: Run
    questions: tuple[Approval, ...] = ()  # its questions that nobody here answers
    successor: str | None = None  # the run that continues it


Ask = Callable[[Approval], Awaitable[Answer | None]]  # None: there is no answer


async def follow(
    client: AsyncClient, run_id: str, display: Display, ask: Ask, *, until_ended: bool
) -> Followed:
    """Show a run's events until it has ended, or waits for what `ask` cannot answer.

    `until_ended`: somebody else may answer what `ask` cannot.
    """
    successor = None
    async for event in client.stream(run_id):
        display.show(event)
        if event.type == "NodeWaitingApproval":
            await _answer(client, event, display, ask)
        elif event.type == "RunContinuedAsNew":
            successor = str(event.field("newRunId"))
        elif event.type == "RunStatusChanged" and not until_ended:
            # The event may be an old one.
            stuck = await _find_stuck(client, await client.get(run_id))
            if stuck is not None:
                return stuck
    return Followed(run=await client.get(run_id), successor=successor)


async def _find_stuck(client: AsyncClient, run: Run) -> Followed | None:
    """Return the run if only somebody else can move it; one whose last question was answered moves by itself."""
    if run.status is RunStatus.WAITING_APPROVAL:
        asked = await client.list_approvals()
        questions = tuple(approval for approval in asked if approval.run_id == run.run_id)
        return Followed(run=run, questions=questions) if questions else None
    if run.status is not RunStatus.WAITING_EVENT:
        return None
    kinds = {reason.kind for reason in (await client.why(run.run_id)).reasons}
    # A child's end moves it by itself; without a signal to wait for it has moved on since its status was read.
    is_stuck = "signal" in kinds and "subflow" not in kinds
    return Followed(run=run) if is_stuck else None


async def _answer(client: AsyncClient, event: Event, display: Display, ask: Ask) -> None:
    """Decide an approval, if it is still open."""
    place = (event.run_id, event.node_id, event.iteration)
    for approval in await client.list_approvals():
        if (approval.run_id, approval.node_id, approval.iteration) != place:
            continue
        display.pause()
        try:
            answer = await ask(approval)
        finally:
            display.unpause()
        if answer is not None:
            await _decide(client, approval, answer)


async def _decide(client: AsyncClient, approval: Approval, answer: Answer) -> None:
    place = (approval.run_id, approval.node_id)
    user, iteration = os.environ.get("USER"), approval.iteration
    with suppress(Conflict):  # somebody else was faster, as the events will show
        if answer.is_approved:
            await client.approve(
                *place,
                selected=answer.selected,
                ranked=answer.ranked,
                note=answer.note,
                decided_by=user,
                iteration=iteration,
            )
        else:
            await client.deny(*place, note=answer.note, decided_by=user, iteration=iteration)


async def approve_all(approval: Approval) -> Answer | None:
    """Approve everything: take the first option, or all in their order; only forms are left open."""
    options = approval.request_options or ()
    match approval.request_mode:
        case "approve":
            return Answer(is_approved=True)
        case "select" if options:
            return Answer(is_approved=True, selected=options[0])
        case "rank" if options:
            return Answer(is_approved=True, ranked=options)
        case _:
            return None


async def leave_open(_approval: Approval) -> None:
    """Answer nothing: there is nobody to ask."""


async def ask_at_terminal(approval: Approval) -> Answer | None:
    """Show a question and read the answer; at the end of the input, and for a form, there is none."""
    if approval.request_mode == "form":
        return None
    options = approval.request_options or ()
    _show_question(approval, options)
    prompt, read = _READERS[approval.request_mode]
    while True:
        text = await _read_line(prompt.format(count=len(options)))
        if text is None:
            return None
        answer = read(text.strip().lower(), options)
        if answer is not None:
            note = await _read_line("Note (may be empty): ")
            return replace(answer, note=(note or "").strip() or None)


def _show_question(approval: Approval, options: Sequence[str]) -> None:
    console = open_console(is_stderr=True)
    title = printable(approval.request_title or approval.node_id)
    summary = printable(approval.request_summary or "(nothing was said about it)")
    numbered = "".join(f"\n{number}  {printable(one)}" for number, one in enumerate(options, 1))
    console.print(
        Panel(
            escape(summary + ("\n" + numbered if numbered else "")),
            title=f"[bold magenta]{escape(title)}[/]",
            title_align="left",
            border_style="magenta",
            width=min(console.width, 100),
        ),
        soft_wrap=False,
    )


def _read_yes_or_no(word: str, _options: Sequence[str]) -> Answer | None:
    return Answer(is_approved=word[0] == "y") if word in {"y", "yes", "n", "no"} else None


def _read_choice(word: str, options: Sequence[str]) -> Answer | None:
    if word in {"n", "no"}:
        return Answer(is_approved=False)
    chosen = _pick(word, options)
    return Answer(is_approved=True, selected=chosen[0]) if len(chosen) == 1 else None


def _read_ranking(words: str, options: Sequence[str]) -> Answer | None:
    if words in {"n", "no"}:
        return Answer(is_approved=False)
    ranked = _pick(words, options)
    is_whole = sorted(ranked) == sorted(options)
    return Answer(is_approved=True, ranked=tuple(ranked)) if is_whole else None


def _pick(words: str, options: Sequence[str]) -> list[str]:
    """Return the options with these numbers; none if a number is invalid."""
    numbers = [int(word) if word.isdecimal() else 0 for word in words.replace(",", " ").split()]
    if any(not 1 <= number <= len(options) for number in numbers):
        return []
    return [options[number - 1] for number in numbers]


# By a question's mode: the prompt, and the parser of the answer; None: ask again.
_READERS: Final[Mapping[str, tuple[str, Callable[[str, Sequence[str]], Answer | None]]]] = {
    "approve": ("Approve? [y/n] ", _read_yes_or_no),
    "select": ("Which one? [1-{count}, n to deny] ", _read_choice),
    "rank": ("In which order? [all of 1-{count}, best first; n to deny] ", _read_ranking),
}


async def _read_line(prompt: str) -> str | None:
    """Read a line without blocking the loop; a reading thread could not be interrupted."""
    typer.echo(prompt, err=True, nl=False)
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()

    def read() -> None:
        text = os.read(0, 65_536)  # a terminal delivers whole lines
        if not line.done():
            line.set_result(text.decode(errors="replace") if text else None)

    loop.add_reader(0, read)
    try:
        return await line
    finally:
        loop.remove_reader(0)
