"""Runs, workers and turns for tests of the store: made by the product's own statements, without an engine above them."""

import asyncio
import json
import logging
import os
import random
from collections.abc import Iterable
from typing import Any, Self, cast
from uuid import uuid4

import asyncpg

from smithers.engine.facts import NodeKey
from smithers.engine.turn import Ending, EventDraft, Turn
from smithers.events import Envelope, EventType, event_parts
from smithers.ids import NodeId, RunId, SourceHash, WorkerId
from smithers.states import RunStatus
from smithers.store import claims, owners
from smithers.store.claims import ClaimedRun, ClaimKind
from smithers.store.commits import Committed, Committer, TurnCommit
from smithers.store.hints import Channel
from smithers.store.starts import RunStart, start_runs

NAME = "hello"
PATIENCE_S = 60.0
IDENTITY = owners.ProcessIdentity(boot_id="b", pid_namespace="n", pid=1, process_start="s")
LOG = logging.getLogger(__name__)
OVER = frozenset({"RunFinished", "RunFailed", "RunCancelled"})


def key_of(node_id: str, iteration: int = 0) -> NodeKey:
    return NodeKey(NodeId(node_id), iteration)


def a_turn(**parts: Any) -> Turn:
    """A turn with these parts."""
    turn = Turn()
    assert parts.keys() <= vars(turn).keys()
    vars(turn).update(parts)
    return turn


def said(*texts: str, **parts: Any) -> Turn:
    """A turn that says these, and whatever else stands in it."""
    drafts = [EventDraft(EventType.NODE_OUTPUT, {"text": text}) for text in texts]
    return a_turn(events=drafts, **parts)


def ended(status: RunStatus = RunStatus.FINISHED, **parts: Any) -> Turn:
    """A turn that ends the run."""
    event = {
        RunStatus.FINISHED: EventType.RUN_FINISHED,
        RunStatus.FAILED: EventType.RUN_FAILED,
        RunStatus.CANCELLED: EventType.RUN_CANCELLED,
    }[status]
    return a_turn(ending=Ending(status=status, events=(EventDraft(event, {}),), **parts))


def parked(status: RunStatus = RunStatus.WAITING_EVENT, due_ms: int | None = None) -> Turn:
    """A turn that gives the run back until something comes."""
    event = EventDraft(EventType.RUN_STATUS_CHANGED, {"status": status})
    return a_turn(ending=Ending(status=status, events=(event,), due_ms=due_ms))


def change(claim: ClaimedRun, turn: Turn, number: int = 1, **fields: Any) -> TurnCommit:
    """The commit of a turn, as an executor makes it of a run that nobody else has written to."""
    told = {
        "frame_no": claim.last_frame_no,
        "expected_seq": None if turn.ending is None else claim.last_seq,
        "is_cancelling": False,
        "is_cleared": True,
    }
    return TurnCommit(
        claim=claim,
        envelope=Envelope.of(claim.run_id, NAME),
        commit_no=number,
        turn=turn,
        **{**told, **fields},
    )


def a_start(run_id: str, **fields: Any) -> RunStart:
    """The start of a run."""
    envelope = Envelope.of(RunId(run_id), NAME)
    head, tail = event_parts(EventType.RUN_STARTED, envelope, {})
    told = {
        "workflow_name": NAME,
        "workflow_path": "hello.py",
        "workflow_export": None,
        "source_hash": SourceHash("none"),
        "input": "{}",
        "config": "{}",
        "auth": None,
        "trace_context": None,
        "parent_run_id": None,
        "queue": "default",
        "priority": 0,
    }
    return RunStart(**{**told, "run_id": RunId(run_id), "head": head, "tail": tail, **fields})


def as_pool(connection: asyncpg.Connection) -> asyncpg.Pool:
    """Have one connection stand for a pool of them: it answers to the same calls."""
    return cast("asyncpg.Pool", connection)


class Ground:
    """One test's database, and connections to it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._opened: list[asyncpg.Connection] = []

    async def __aenter__(self) -> Self:
        self.sql = await self.connect()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for connection in self._opened:
            connection.terminate()

    async def connect(self) -> asyncpg.Connection:
        """Open one more connection; it ends with the test."""
        connection = await asyncpg.connect(self.dsn)
        self._opened.append(connection)
        return connection

    async def add_worker(self, *queues: str) -> WorkerId:
        """Register a worker."""
        worker_id = WorkerId(uuid4())
        await owners.register_worker(
            as_pool(self.sql),
            worker_id,
            pool_id=worker_id,
            process=IDENTITY,
            queues=queues or ("default",),
        )
        return worker_id

    async def start(self, *run_ids: str, **fields: Any) -> None:
        """Start runs."""
        assert all(await start_runs(self.sql, [a_start(run_id, **fields) for run_id in run_ids]))

    async def claim(
        self,
        worker_id: WorkerId,
        limit: int = 1000,
        kind: ClaimKind = ClaimKind.MANY,
        queue: str = "default",
    ) -> list[ClaimedRun]:
        """Claim, in the order of the run ids."""
        claimed = await claims.claim_runs(
            self.sql, worker_id=worker_id, queue=queue, limit=limit, kind=kind
        )
        return sorted(claimed, key=lambda claim: claim.run_id)

    async def owned(self, worker_id: WorkerId, *run_ids: str, **fields: Any) -> list[ClaimedRun]:
        """Start runs and have a worker claim them, in the order of their ids."""
        await self.start(*run_ids, **fields)
        claimed = await self.claim(worker_id)
        assert [claim.run_id for claim in claimed] == sorted(run_ids)
        return claimed

    async def hand_over(self, claim: ClaimedRun, old: WorkerId, new: WorkerId) -> ClaimedRun:
        """Have another worker own the run."""
        assert await claims.release_runs(as_pool(self.sql), old, [claim.run_id])
        (taken,) = await self.claim(new)
        assert taken.run_id == claim.run_id
        return taken

    async def run(self, run_id: str) -> asyncpg.Record:
        """Read a run's row."""
        row = await self.sql.fetchrow("SELECT * FROM smithers.runs WHERE run_id = $1", run_id)
        assert row is not None
        return row

    async def rows(self, table: str, run_id: str) -> list[dict[str, Any]]:
        """Read what hangs on a run."""
        found = await self.sql.fetch(f"SELECT * FROM smithers.{table} WHERE run_id = $1", run_id)
        return [dict(row) for row in found]

    async def history(self, run_id: str) -> list[dict[str, Any]]:
        """Read a run's events, checked: no gap, neither epoch nor time falls, and last_seq is the last."""
        rows = await self.sql.fetch(
            "SELECT seq, epoch, payload FROM smithers.events WHERE run_id = $1 ORDER BY seq", run_id
        )
        events = [json.loads(row["payload"]) for row in rows]
        assert [row["seq"] for row in rows] == list(range(len(rows)))
        for numbers in ([row["epoch"] for row in rows], [event["timestampMs"] for event in events]):
            assert numbers == sorted(numbers)
        assert (await self.run(run_id))["last_seq"] == len(rows) - 1
        return events

    async def types(self, run_id: str) -> list[str]:
        """Read a run's history as the types of its events, texts for what was said."""
        return [event.get("text", event["type"]) for event in await self.history(run_id)]

    async def ends(self, run_id: str) -> list[str]:
        """Read how a run ended, as its history has it."""
        return [event["type"] for event in await self.history(run_id) if event["type"] in OVER]

    async def until(self, question: str, *args: Any) -> Any:
        """Wait until a query answers something true."""
        async with asyncio.timeout(PATIENCE_S):
            while not (value := await self.sql.fetchval(question, *args)):
                await asyncio.sleep(0.005)
            return value

    async def until_waiting(self, connection: asyncpg.Connection) -> None:
        """Wait until another session waits for a lock."""
        await self.until(
            "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1",
            connection.get_server_pid(),
        )

    async def cut(self, application_name: str) -> None:
        """Have the server end the sessions of this name, and wait until they are gone."""
        pids = await self.sql.fetch(
            """SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = $1 AND datname = current_database()""",
            application_name,
        )
        assert pids, f"no session of {application_name}"
        await self.until(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY ($1))",
            [row["pid"] for row in pids],
        )


def names(count: int, prefix: str = "r") -> list[str]:
    """Make run ids whose order is that of their numbers."""
    return [f"{prefix}{number:04}" for number in range(count)]


def seeded() -> random.Random:
    """Make chance that can be had again: a test that fails shows its seed."""
    seed = int(os.environ.get("SMITHERS_TEST_SEED", "0")) or random.randrange(1 << 32)
    LOG.warning("SMITHERS_TEST_SEED=%d", seed)
    return random.Random(seed)


def ids(*names: str) -> list[RunId]:
    return [RunId(name) for name in names]


def by_id(claimed: Iterable[ClaimedRun]) -> dict[RunId, ClaimedRun]:
    return {claim.run_id: claim for claim in claimed}


async def commit_all(committer: Committer, *changes: Any) -> list[Committed | BaseException]:
    """Commit at once: they come in before the lane's first call, so they are one group."""
    return await asyncio.gather(*map(committer.commit, changes), return_exceptions=True)


async def hear(sql: asyncpg.Connection, channel: Channel) -> asyncio.Queue[str]:
    """Listen; return the queue of what is said from now on. `sql.reset()` ends it."""
    said: asyncio.Queue[str] = asyncio.Queue()
    await sql.add_listener(channel, lambda *hint: said.put_nowait(hint[3]))
    return said
