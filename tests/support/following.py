"""A load that counts: runs are started without a pause and each is followed to its end, whatever stands between."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp

LIMIT_S: Final = 60
TOO_MANY: Final = 20  # failures: more would only repeat themselves


class Load:
    """Starts runs at a server or a balancer, and reads each one's events to its end."""

    def __init__(self, url: str, workflow_path: str) -> None:
        self.url = url
        self.answers: Counter[int | str] = Counter()
        self.followed = 0
        self.reconnects = 0
        self.is_over = False
        self._workflow_path = workflow_path
        self._moved = asyncio.Condition()

    async def go_on(self, count: int) -> None:
        """Wait until so many more runs were followed to their end."""
        wanted = self.followed + count
        async with asyncio.timeout(LIMIT_S), self._moved:
            await self._moved.wait_for(lambda: self.followed >= wanted)

    async def start_and_follow(self, session: aiohttp.ClientSession) -> None:
        """Start one run after the other until the load is over."""
        while not self.is_over:
            body = await self._start(session)
            self._check()
            if body is None:
                continue
            await self._follow(session, body["runId"])
            async with self._moved:
                self.followed += 1
                self._moved.notify_all()

    async def _start(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        try:
            async with session.post(
                f"{self.url}/v1/runs", json={"workflowPath": self._workflow_path}
            ) as answer:
                body: dict[str, Any] = await answer.json()
                self.answers[200 if answer.status == 200 else f"{answer.status} {body}"] += 1
        except (aiohttp.ClientError, ValueError) as error:
            self.answers[type(error).__name__] += 1
            return None
        return body if answer.status == 200 else None

    def _check(self) -> None:
        assert self.answers.total() - self.answers[200] < TOO_MANY, dict(self.answers)

    async def _follow(self, session: aiohttp.ClientSession, run_id: str) -> None:
        """Read a run's events over as many streams as that takes; each number comes once."""
        last = -1
        while True:
            async with asyncio.timeout(LIMIT_S):
                async for seq, kind in self._read(session, run_id, last):
                    assert seq == last + 1, f"{run_id}: {seq} after {last}"
                    last = seq
                    if kind == "RunFinished":
                        return
            self.reconnects += 1
            self._check()

    async def _read(
        self, session: aiohttp.ClientSession, run_id: str, last: int
    ) -> AsyncIterator[tuple[int, str]]:
        resume = {"Last-Event-ID": str(last)} if last >= 0 else {}
        try:
            async with session.get(f"{self.url}/v1/runs/{run_id}/events", headers=resume) as stream:
                if stream.status != 200:
                    self.answers[f"stream {stream.status}"] += 1
                    return
                seq = -1
                async for line in stream.content:
                    if line.startswith(b"id: "):
                        seq = int(line[4:])
                    elif line.startswith(b"data: "):
                        yield seq, json.loads(line[6:])["type"]
        except aiohttp.ClientError as error:
            self.answers[f"stream {type(error).__name__}"] += 1


async def run_load(load: Load, *, token: str, starters: int, count: int) -> None:
    """Run a load until so many runs were followed."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for _ in range(starters):
            group.create_task(load.start_and_follow(session))
        await load.go_on(count)
        load.is_over = True


if __name__ == "__main__":  # as a process, where the load must come from another host
    import os
    import sys

    told = Load(sys.argv[1], sys.argv[2])
    asyncio.run(run_load(told, token=os.environ["TOKEN"], starters=8, count=int(sys.argv[3])))
    json.dump({"followed": told.followed, "answers": told.answers}, sys.stdout)
