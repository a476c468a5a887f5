"""Ask a run's questions, at the terminal or by rule, and send the answers.

The first decision wins, whoever makes it: a prompt is withdrawn when its question is decided elsewhere, and an answer that
comes too late is reported.
"""

import asyncio
import os
import termios
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import typer
from rich.markup import escape
from rich.panel import Panel

from smithers.cli.console import open_console
from smithers.client import Approval, AsyncClient, Conflict, Event
from smithers.texts import printable

# What closes a question, and the word for the decision.
ENDS: Final = MappingProxyType(
    {"ApprovalGranted": "approved", "ApprovalDenied": "denied", "NodeCancelled": None}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a question."""

    is_approved: bool
    note: str | None = None
    selected: str | None = None
    ranked: tuple[str, ...] | None = None


Ask = Callable[[Approval], Awaitable[Answer | None]]  # None: there is no answer


async def decide(
    client: AsyncClient, approval: Approval, answer: Answer, say: Callable[[str], None]
) -> None:
    """Decide a question; `say` gets a sentence if that was too late."""
    place = (approval.run_id, approval.node_id)
    user, iteration = os.environ.get("USER"), approval.iteration
    try:
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
    except Conflict:
        end = await _find_end(client.list_events(approval.run_id), approval)
        say(f"{_tell_end(approval, end)}: the answer came too late")


async def _find_end(events: AsyncGenerator[Event], approval: Approval) -> Event | None:
    """Return the event that has closed a question; None: there is none among its run's events."""
    place = (approval.node_id, approval.iteration)
    async with aclosing(events):
        async for event in events:
            is_later = event.timestamp_ms >= approval.requested_at_ms  # a resumed run asks again
            if event.type in ENDS and is_later and (event.node_id, event.iteration) == place:
                return event
    return None


def _tell_end(approval: Approval, end: Event | None) -> str:
    from smithers.engine.questions import TIMEOUT_USER

    question = f"the question {approval.node_id}"
    word = None if end is None else ENDS[end.type]
    if end is None or word is None:
        return f"{question} is not open any more"
    user = end.field("decidedBy")
    by = "" if user is None else f" by {'its time-out' if user == TIMEOUT_USER else user}"
    return f"{question} was {word}{by}"


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


async def ask_while_open(
    client: AsyncClient, approval: Approval, say: Callable[[str], None]
) -> Answer | None:
    """Ask at the terminal, until the question is decided elsewhere: `say` gets a sentence about that."""
    asking = asyncio.create_task(ask_at_terminal(approval))
    ending = asyncio.create_task(_find_end(client.stream(approval.run_id), approval))
    try:
        await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        _withdraw_prompt()
        say(_tell_end(approval, ending.result()))
        return None
    finally:
        asking.cancel()
        ending.cancel()
        await asyncio.wait({asking, ending})


def _withdraw_prompt() -> None:
    """End the prompt's line, and drop what was typed there: it answers no other question."""
    typer.echo(err=True)
    termios.tcflush(0, termios.TCIFLUSH)


def _show_question(approval: Approval, options: Sequence[str]) -> None:
    console = open_console(is_stderr=True)
    title = printable(approval.request_title or approval.node_id)
    summary = printable(approval.request_summary or "(no summary)")
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
