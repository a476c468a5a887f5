"""Follow a run to its end, and ask its questions at the terminal.

Ends in one of four ways: the run has ended; it continues as another; it waits for something that cannot come from here; or
it was told to stop. Between two questions the display has the terminal.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import typer
from rich.markup import escape
from rich.panel import Panel

from smithers.cli.console import open_console
from smithers.cli.progress import Display
from smithers.client import Approval, AsyncClient, Conflict, Event, NotFound, Run, Why
from smithers.states import RunStatus
from smithers.texts import printable

LOOK_AGAIN_S: Final = 0.5
MAX_STREAMS: Final = 1_000  # a server refuses too many
# The kinds of reasons for which a parked run waits, and those among them that give it its status.
WAITS: Final = frozenset({"approval", "signal", "subflow", "timer", "back-off"})
AWAITED: Final = MappingProxyType(
    {
        RunStatus.WAITING_APPROVAL: ("approval",),
        RunStatus.WAITING_EVENT: ("signal", "subflow"),
    }
)


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
    questions: tuple[
        Approval, ...
    ] = ()  # that nobody here answers: its own, and of the runs below it
    whys: tuple[Why, ...] = ()  # why they all wait
    successor: str | None = None  # the run that continues it


Ask = Callable[[Approval], Awaitable[Answer | None]]  # None: there is no answer
# Of a question: run, node, iteration, and when it was asked: a resumed run asks again.
Place = tuple[str, str, int, int]


async def follow(
    client: AsyncClient, run_id: str, display: Display, ask: Ask, *, until_ended: bool
) -> Followed:
    """Show a run's events until it has ended, or it and the runs below it wait for what `ask` cannot answer.

    `until_ended`: somebody else may answer what `ask` cannot.
    """
    family = _Family(client, run_id, display, ask, until_ended=until_ended)
    family.hear(run_id)
    try:
        return await family.left
    finally:
        await family.drop()


class _Family:
    """A run and the runs below it, its subflows: only its own events are shown, the questions of all are asked."""

    def __init__(
        self, client: AsyncClient, run_id: str, display: Display, ask: Ask, *, until_ended: bool
    ) -> None:
        self.left: asyncio.Future[Followed] = asyncio.get_running_loop().create_future()
        self._client = client
        self._run_id = run_id
        self._display = display
        self._ask = ask
        self._until_ended = until_ended
        self._is_parked: dict[str, bool] = {}  # by run, as far as its events are known
        self._old: dict[str, int] = {}  # by run: its last event when it was first followed
        self._asked: set[Place] = set()
        self._hearing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()  # for one event at a time: a question has the terminal
        self._room = asyncio.Semaphore(MAX_STREAMS)
        self._successor: str | None = None

    def hear(self, run_id: str) -> None:
        """Follow a run, unless it is followed already."""
        if run_id in self._is_parked:
            return
        self._is_parked[run_id] = False
        hearing = asyncio.create_task(self._hear(run_id))
        self._hearing.add(hearing)
        hearing.add_done_callback(self._end)

    async def drop(self) -> None:
        """Follow none any more."""
        for hearing in self._hearing:
            hearing.cancel()
        await asyncio.gather(*self._hearing, return_exceptions=True)

    def _end(self, hearing: asyncio.Task[None]) -> None:
        self._hearing.discard(hearing)
        error = None if hearing.cancelled() else hearing.exception()
        if error is not None and not self.left.done():
            self.left.set_exception(error)

    async def _hear(self, run_id: str) -> None:
        async with self._room:
            await self._stream(run_id)
        async with self._turn:
            if run_id == self._run_id:
                self._leave(Followed(run=await self._client.get(run_id), successor=self._successor))
            del self._is_parked[run_id]
            await self._leave_if_stuck()

    async def _stream(self, run_id: str) -> None:
        while True:
            try:
                self._old[run_id] = (await self._client.get(run_id)).last_seq
                async for event in self._client.stream(run_id):
                    async with self._turn:
                        await self._take(event)
            except NotFound:
                if run_id == self._run_id:
                    raise
                # A workflow's own database tells of its new runs a moment later.
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return

    async def _take(self, event: Event) -> None:
        is_own = event.run_id == self._run_id
        if is_own:
            self._display.show(event)
        match event.type:
            case "NodeWaitingApproval":
                await self._answer(event)
            case "SubflowStarted":
                self.hear(str(event.field("childRunId")))
            case "RunContinuedAsNew" if is_own:
                self._successor = str(event.field("newRunId"))
            case "RunContinuedAsNew":
                self.hear(str(event.field("newRunId")))
            case "RunStarted":
                self._is_parked[event.run_id] = False
            case "RunStatusChanged":
                self._is_parked[event.run_id] = True
            case _:
                pass
        # An old event does not say what the run does now; whatever the last of them is, another may never come.
        old = self._old[event.run_id]
        if event.seq == old or (event.seq > old and event.type == "RunStatusChanged"):
            await self._leave_if_stuck()

    async def _leave_if_stuck(self) -> None:
        """Leave, unless a question is open that was not asked here yet: the events lag behind the server's state."""
        while not self._until_ended and not self.left.done() and all(self._is_parked.values()):
            stuck = await _find_stuck(self._client, [*self._is_parked])
            if stuck is None:
                return
            unasked = next((one for one in stuck.questions if _place(one) not in self._asked), None)
            if unasked is None:
                self._leave(stuck)
            else:
                await self._put(unasked)

    async def _answer(self, event: Event) -> None:
        """Ask the question that an event is about, if it is still open."""
        place = (event.run_id, event.node_id, event.iteration)
        for approval in await self._client.list_approvals():
            if place == (approval.run_id, approval.node_id, approval.iteration):
                await self._put(approval)

    async def _put(self, approval: Approval) -> None:
        """Ask a question, once, and decide it."""
        if _place(approval) in self._asked:
            return
        self._asked.add(_place(approval))
        self._display.pause()
        try:
            answer = await self._ask(approval)
        finally:
            self._display.unpause()
        if answer is not None:
            await _decide(self._client, approval, answer)

    def _leave(self, followed: Followed) -> None:
        if not self.left.done():
            self.left.set_result(followed)


async def _find_stuck(client: AsyncClient, run_ids: Sequence[str]) -> Followed | None:
    """Return the state of these runs, the first of which has started the others, if only somebody else can make them go on.

    A run whose last question was answered, or whose child has ended, goes on by itself.
    """
    whys = [await client.why(run_id) for run_id in run_ids]
    kinds = [reason.kind for why in whys for reason in why.reasons]
    if not all(_is_parked(why) for why in whys) or kinds.count("subflow") >= len(run_ids):
        return None
    asked = await client.list_approvals()
    questions = tuple(approval for approval in asked if approval.run_id in run_ids)
    if not questions and "signal" not in kinds:
        return None
    return Followed(run=await client.get(run_ids[0]), questions=questions, whys=tuple(whys))


def _is_parked(why: Why) -> bool:
    kinds = {reason.kind for reason in why.reasons}
    return kinds <= WAITS and not kinds.isdisjoint(AWAITED.get(why.status, ()))


def _place(approval: Approval) -> Place:
    return (approval.run_id, approval.node_id, approval.iteration, approval.requested_at_ms)


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
