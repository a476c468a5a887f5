"""Follow a run to its end, and have its questions asked.

Ends in one of four ways: the run has ended; it continues as another; it waits for something that cannot come from here; or
it was told to stop. Between two questions the display has the terminal.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from smithers.cli.asking import Ask, decide
from smithers.cli.progress import Display
from smithers.client import Approval, AsyncClient, Event, NotFound, Run, Why
from smithers.states import RunStatus

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
class Followed:
    """The run's state when following ended."""

    run: Run
    questions: tuple[
        Approval, ...
    ] = ()  # that nobody here answers: its own, and of the runs below it
    whys: tuple[Why, ...] = ()  # why they all wait
    successor: str | None = None  # the run that continues it


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
            await decide(self._client, approval, answer, self._display.say)

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
