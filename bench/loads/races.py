"""Approve, deny, cancel and a time-out meet on one parked run, over two gateways: who wins, and do all agree?"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg

from bench.client import Connection, start_run
from bench.loads.site import Site
from bench.loads.watching import ask, read_history, until, until_ended
from bench.report import Goal

LANES = 32
TIMEOUT_S = 1.0
LATE_S = (0.0, 0.05, 0.2)  # after the time-out's moment: somebody has to claim the run first
SPREAD_S = 0.02  # around that; each contender draws its own
ENDED_AS = {"approved": "finished", "denied": "failed"}
NODE_STATES = {"approved": "finished", "denied": "failed", "cancelled": "cancelled"}

GOALS = (
    Goal("races", "round_count", "rounds: approve, deny, cancel and time-out meet on one run"),
    Goal("races", "approved_count", "approval approved"),
    Goal("races", "denied_count", "approval denied by the person"),
    Goal("races", "timed_out_count", "approval denied by system:timeout"),
    Goal("races", "cancelled_count", "approval withdrawn by the cancel"),
    Goal(
        "races", "cancelled_after_count", "… cancels that came after a decision and ended the run"
    ),
    Goal("races", "disagreement_count", "rounds in which answers, events and rows disagree", 0),
    Goal("races", "seed", "seed"),
)


@dataclass(frozen=True)
class Round:
    """What was answered and what is stored."""

    run_id: str
    answers: dict[str, int]
    status: str
    approval: str
    decided_by: str | None
    node: str
    faults: list[str]
    decided_in_events: list[str]  # type and who

    @property
    def outcome(self) -> str:
        """Return the one outcome of the approval."""
        is_late = self.approval == "denied" and self.decided_by == "system:timeout"
        return "timed_out" if is_late else self.approval

    def disagreements(self) -> list[str]:
        """Say what does not fit together."""
        is_cancelled = self.status == "cancelled"
        event = {"approved": "ApprovalGranted", "denied": "ApprovalDenied"}.get(self.approval)
        expected = [f"{event} {self.decided_by}"] if event else []
        checks = {
            "approve's answer": self.answers["approve"] != _code(self.approval == "approved"),
            # The same decision twice is a 200: a denial that came after the time-out's says what is stored.
            "deny's answer": self.answers["deny"] != _code(self.approval == "denied"),
            "cancel's answer": self.answers["cancel"] != _code(is_cancelled),
            "the events": self.decided_in_events != expected,
            "withdrawn but not cancelled": self.approval == "cancelled" and not is_cancelled,
            "never decided": self.approval == "requested",
            "the run's end": not is_cancelled and self.status != ENDED_AS.get(self.approval),
            "the node's row": not is_cancelled and self.node != NODE_STATES.get(self.approval),
        }
        return [*self.faults, *(what for what, is_seen in checks.items() if is_seen)]


def races(*, is_quick: bool) -> dict[str, Any]:
    """Run the load."""
    seed = int(time.time())
    with Site(gateways=2) as site:
        rounds = asyncio.run(_play(site, 64 if is_quick else 1_000, seed))
    outcomes = Counter(one.outcome for one in rounds)
    wrong = [one for one in rounds if one.disagreements()]
    after = sum(one.status == "cancelled" and one.approval != "cancelled" for one in rounds)
    return {
        "round_count": len(rounds),
        **{
            f"{name}_count": outcomes[name]
            for name in ("approved", "denied", "timed_out", "cancelled")
        },
        "cancelled_after_count": after,
        "disagreement_count": len(wrong),
        "seed": seed,
        "notes": [f"{one}: {one.disagreements()}" for one in wrong[:20]],
    }


async def _play(site: Site, count: int, seed: int) -> list[Round]:
    played: list[Round] = []
    numbers = iter(range(count))
    async with AsyncExitStack() as stack:
        sql = await stack.enter_async_context(asyncpg.create_pool(site.dsn, min_size=2, max_size=8))
        lanes = []
        for _ in range(LANES):
            # Approve and deny at different gateways; the cancel at either.
            ports = [site.ports[0], site.ports[1], *site.ports]
            connections = [await stack.enter_async_context(Connection(port)) for port in ports]
            lanes.append(_race_on(connections, sql, numbers, seed, played))
        await asyncio.gather(*lanes)
    return played


async def _race_on(
    connections: list[Connection],
    sql: asyncpg.Pool,
    numbers: Iterator[int],
    seed: int,
    played: list[Round],
) -> None:
    for number in numbers:
        one = await _race(connections, sql, random.Random(f"{seed}-{number}"))
        played.append(one)


async def _race(connections: list[Connection], sql: asyncpg.Pool, chance: random.Random) -> Round:
    run_id = await start_run(connections[0], "question", {"timeout_s": TIMEOUT_S})

    async def find_due() -> float | None:
        due_at: float | None = await sql.fetchval(
            """
            SELECT extract(epoch FROM n.due_at)::float8 FROM smithers.nodes n JOIN smithers.runs r USING (run_id)
            WHERE n.run_id = $1 AND n.state = 'waiting-approval' AND r.owner_id IS NULL
            """,
            run_id,
        )
        return due_at

    due_at = await until(find_due, f"run {run_id} is parked")
    middle_at = due_at + chance.choice(LATE_S)
    contenders = {
        "approve": (connections[0], f"/v1/runs/{run_id}/nodes/ok/approve", {"decidedBy": "ada"}),
        "deny": (connections[1], f"/v1/runs/{run_id}/nodes/ok/deny", {"decidedBy": "bob"}),
        "cancel": (chance.choice(connections[2:]), f"/v1/runs/{run_id}/cancel", {}),
    }

    async def contend(connection: Connection, path: str, body: dict[str, str]) -> int:
        moment = middle_at + chance.uniform(-SPREAD_S, SPREAD_S)
        await asyncio.sleep(max(0.0, moment - time.time()))
        return (await ask(connection, "POST", path, body))[0]

    codes = await asyncio.gather(*[contend(*contender) for contender in contenders.values()])
    await until_ended(sql, run_id)
    return await _read(sql, run_id, dict(zip(contenders, codes, strict=True)))


async def _read(sql: asyncpg.Pool, run_id: str, answers: dict[str, int]) -> Round:
    row = await sql.fetchrow(
        """
        SELECT r.status, a.status AS approval, a.decided_by, n.state AS node FROM smithers.runs r
        JOIN smithers.approvals a USING (run_id) JOIN smithers.nodes n USING (run_id, node_id)
        WHERE r.run_id = $1
        """,
        run_id,
    )
    assert row is not None
    history = await read_history(sql, run_id)
    end = {"finished": "RunFinished", "failed": "RunFailed", "cancelled": "RunCancelled"}
    faults = history.faults()
    if history.events[-1]["type"] != end[row["status"]]:
        faults.append("the last event is not the row's status")
    decided = [
        f"{event['type']} {event.get('decidedBy')}"
        for event in history.of("ApprovalGranted", "ApprovalDenied")
    ]
    return Round(run_id, answers, faults=faults, decided_in_events=decided, **dict(row))


def _code(is_won: bool) -> int:
    return 200 if is_won else 409
