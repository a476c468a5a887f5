"""Live through runs as clients do: start, watch, decide, signal, cancel and resume, by chance, against servers that are hurt.

One life is one run and all its clients. What is asked again because its outcome was unknown is asked with the same name, as
docs/reliability.md tells clients to. Everything is written to the recorder; nothing is judged here.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from chaos.recorder import Recorder

ANSWER_LIMIT_S: Final = 8.0
STREAM_SILENCE_S: Final = 25.0  # the server says something every 10 s
ASK_AGAIN_S: Final = 0.3
TERMINAL: Final = frozenset({"RunFinished", "RunFailed", "RunCancelled"})
VERDICTS: Final = (
    *(("approve",), ("approve",), ("deny",)),
    *(("approve", "deny"), ("approve", "approve"), ()),
)

Ask = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """What all lives share."""

    http: aiohttp.ClientSession
    urls: list[str]
    recorder: Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the clients of one run are going to do."""

    given: dict[str, Any]  # the workflow's input
    letter_count: int = 0
    letters_within_s: float = 2
    rival_count: int = 1  # starts at once
    verdicts: tuple[str, ...] = ("approve",)  # given at once whenever the run asks
    cancel_after_s: float | None = None
    max_resumes: int = 0
    is_cutting: bool = False  # streams are cut by their reader
    has_late_viewer: bool = False
    is_misspelled: bool = False  # the start is to be refused

    @classmethod
    def draw(cls, chance: random.Random) -> "Script":
        """Make one up."""
        letters = chance.choice([0, 0, 0, 1, 4])
        given = {
            "width": chance.randrange(1, 4),
            "length": chance.randrange(0, 4),
            "step_s": chance.choice([0.0, 0.05, 0.3, 0.7]),
            "is_asking": chance.random() < 0.4,
            "letter_count": letters,
            "nap_s": chance.choice([0, 0, 0.2, 1]),
        }
        return cls(
            given=given,
            letter_count=letters,
            rival_count=chance.choice([1, 1, 1, 2, 5]),
            verdicts=chance.choice(VERDICTS),
            cancel_after_s=chance.uniform(0, 3) if chance.random() < 0.15 else None,
            max_resumes=chance.choice([0, 0, 1, 2]),
            is_cutting=chance.random() < 0.7,
            has_late_viewer=chance.random() < 0.3,
            is_misspelled=chance.random() < 0.03,
        )


@dataclass(slots=True)
class Life:
    """One run, and what its clients know of it."""

    run_id: str
    script: Script
    chance: random.Random
    clients: Clients
    last_seq: int = -1
    last_type: str = ""
    resume_count: int = 0
    decision_count: int = 0
    is_over: bool = False  # the run has ended, and nobody resumes it
    helpers: set[asyncio.Task[Any]] = field(default_factory=set)

    async def live(self) -> None:
        """Go through it all; ends when the run has, and no client wants more of it."""
        chance, script = self.chance, self.script
        if script.is_misspelled:
            await self._ask("start", "POST", "/v1/runs", self._start_body("no-such-file.py"))
            return
        await self._start()
        for number in range(script.letter_count):
            self._help(self._send(number, chance.uniform(0, script.letters_within_s)))
        if script.cancel_after_s is not None:
            self._help(self._cancel(script.cancel_after_s))
        if script.has_late_viewer:
            self._help(self._watch_from_start())
        await self._follow()

    async def _start(self) -> None:
        """Start the run, some at once through several gateways; go on when one thing is known: it exists."""
        body = self._start_body("life.py") | {"input": self.script.given}

        async def once() -> str:
            return await self._ask("start", "POST", "/v1/runs", body)

        await asyncio.gather(*[self._until_known(once) for _ in range(self.script.rival_count)])

    def _start_body(self, path: str) -> dict[str, Any]:
        return {"workflowPath": path, "runId": self.run_id}

    async def _send(self, number: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        name, is_twice = f"{self.run_id}-{number}", self.chance.random() < 0.3

        async def once() -> str:
            body = {"data": number, "id": name}
            path = f"/v1/runs/{self.run_id}/signals/letter"
            return await self._ask("signal", "POST", path, body, signal=name, data=number)

        # An ended run refuses it, and may be resumed: then it is sent again.
        while "ok" not in await asyncio.gather(
            *[self._until_known(once) for _ in range(1 + is_twice)]
        ):
            if self.is_over:
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def _cancel(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        path = f"/v1/runs/{self.run_id}/cancel"
        await self._until_known(lambda: self._ask("cancel", "POST", path, {}))

    async def _decide(self, node: str, iteration: int) -> None:
        """Have some people decide at once, each through a gateway of their own."""

        async def decide(verdict: str) -> None:
            await asyncio.sleep(self.chance.uniform(0, 0.05))
            self.decision_count += 1
            person = f"person-{self.decision_count}"
            body = {"decidedBy": person, "iteration": iteration}
            path = f"/v1/runs/{self.run_id}/nodes/{node}/{verdict}"
            await self._until_known(
                lambda: self._ask(
                    "decide",
                    "POST",
                    path,
                    body,
                    node=node,
                    iteration=iteration,
                    verdict=verdict,
                    person=person,
                )
            )

        await asyncio.gather(*[decide(verdict) for verdict in self.script.verdicts])

    async def _resume(self) -> bool:
        """Open a new era, perhaps; say whether there is more to follow."""
        if self.last_type == "RunFinished" or self.resume_count >= self.script.max_resumes:
            return False
        self.resume_count += 1
        path = f"/v1/runs/{self.run_id}/resume"
        phases: list[str] = []

        async def once() -> str:
            phases.append(await self._ask("resume", "POST", path, {}))
            return phases[-1]

        # Not again once it is known: somebody's cancel may end the new era at any time.
        await self._until_known(once)
        # A refusal after an unknown outcome may be of the era that the first one opened: whoever follows will see.
        return phases != ["refused"]

    async def _follow(self) -> None:
        """Follow the run to its end, over any number of broken streams, and answer what it asks."""
        while True:
            is_all = await self._stream("main") == "nothing-left"
            if is_all or self.last_type in TERMINAL:
                if not await self._resume():
                    break
                self.last_type = ""
            await asyncio.sleep(0.05)
        self.is_over = True
        for task in list(self.helpers):
            await task  # what they ask of an ended run is refused
        await self._ask("read", "GET", f"/v1/runs/{self.run_id}")

    async def _watch_from_start(self) -> None:
        """Be one more viewer, who comes late and sees everything from the first event, once."""
        chance = random.Random(self.chance.random())
        viewer = Life(self.run_id, self.script, chance, self.clients)
        await asyncio.sleep(viewer.chance.uniform(0, 2))
        while viewer.last_type not in TERMINAL:
            await viewer._stream("late")
            await asyncio.sleep(0.05)

    async def _stream(self, viewer: str) -> str:
        """Open a stream after the last event that was seen, read until it ends or is cut on purpose; say how it ended."""
        number = self.chance.randrange(len(self.clients.urls))
        url = f"{self.clients.urls[number]}/v1/runs/{self.run_id}/events"
        headers = {"Last-Event-ID": str(self.last_seq)} if self.last_seq >= 0 else {}
        cut_after = self.chance.randrange(1, 6_000) if self.script.is_cutting else None
        session: dict[str, Any] = {"after": self.last_seq, "seqs": [], "shas": [], "end": "broken"}
        limits = aiohttp.ClientTimeout(total=None, connect=3, sock_read=STREAM_SILENCE_S)
        try:
            async with self.clients.http.get(url, headers=headers, timeout=limits) as response:
                session["status"] = response.status
                if response.status == 204:
                    session["end"] = "nothing-left"
                elif response.status == 200:
                    session["end"] = await self._read(response, session, cut_after, viewer)
        except (aiohttp.ClientError, TimeoutError, OSError):
            await asyncio.sleep(ASK_AGAIN_S)
        self.clients.recorder.write(
            viewer, "stream", run=self.run_id, gateway=number, last_type=self.last_type, **session
        )
        return str(session["end"])

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        session: dict[str, Any],
        cut_after: int | None,
        viewer: str,
    ) -> str:
        buffer, room = b"", cut_after
        async for data in response.content.iter_any():
            buffer += data if room is None else data[:room]
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                self._take(block, session, viewer)
            if room is not None:
                room -= len(data)
                if room <= 0:
                    response.close()
                    return "cut"
        return "clean"

    def _take(self, block: bytes, session: dict[str, Any], viewer: str) -> None:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line[1:])
        if b"data" not in fields:
            return
        event = json.loads(fields[b"data"])
        self.last_seq, self.last_type = int(fields[b"id"]), event["type"]
        session["seqs"].append(self.last_seq)
        session["shas"].append(hashlib.sha256(fields[b"data"]).hexdigest()[:16])
        if event["type"] == "ApprovalRequested" and viewer == "main":
            self._help(self._decide(event["nodeId"], event["iteration"]))

    async def _until_known(self, ask: Ask) -> str:
        """Ask again, with the same name, until the answer is a definite one."""
        while (phase := await ask()) == "unknown":
            await asyncio.sleep(self.chance.uniform(0.5, 1.5) * ASK_AGAIN_S)
        return phase

    async def _ask(self, what: str, method: str, path: str, body: Any = None, **fields: Any) -> str:
        number = self.chance.randrange(len(self.clients.urls))
        limits = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S, connect=3)
        recorder, url = self.clients.recorder, self.clients.urls[number] + path
        with recorder.operation(
            f"client-{number}", what, run=self.run_id, gateway=number, **fields
        ) as end:
            with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                async with self.clients.http.request(
                    method, url, json=body, timeout=limits
                ) as response:
                    answer = await response.json()
                    end["status"] = response.status
                    if response.status < 300:
                        end["phase"] = "ok"
                        end["answer"] = {key: answer.get(key) for key in ("seq", "status")}
                    elif response.status < 500 and response.status not in {408, 429}:
                        end["phase"] = "refused"
            return str(end["phase"])

    def _help(self, doing: Any) -> None:
        task = asyncio.create_task(doing)
        self.helpers.add(task)
        task.add_done_callback(self.helpers.discard)


async def load(
    clients: Clients, *, seed: str, lanes: int, is_over: asyncio.Event, pause_s: float
) -> int:
    """Have so many lives at once until told that it is over, and let each come to its end; return how many there were."""
    numbers = iter(range(10**9))
    count = 0

    async def lane() -> None:
        nonlocal count
        while not is_over.is_set():
            number = next(numbers)
            count += 1
            chance = random.Random(f"{seed}/{number}")
            life = Life(f"r{seed}-{number}", Script.draw(chance), chance, clients)
            await life.live()
            with suppress(TimeoutError):
                async with asyncio.timeout(life.chance.uniform(0, 2 * pause_s)):
                    await is_over.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return count
