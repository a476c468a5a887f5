"""What each hot query reads of 50,000 runs and 500,000 events: by an index, and no more than it answers needs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest

from smithers.engine.facts import NodeFact
from smithers.ids import WorkerId
from smithers.states import NodeState, RunStatus
from smithers.store import (
    claims,
    commits,
    descriptions,
    node_reads,
    owners,
    reads,
    run_facts,
    starts,
    tails,
    whys,
)
from smithers.store.connections import connect, connect_hot
from smithers.store.outside import CANCEL_RUN, RESUME_RUN
from smithers.store.starts import start_unique
from tests.support.crowds import BIG, Plan, explain, fill
from tests.support.postgres import fresh_database
from tests.support.turns import Ground, a_start, as_pool, change, key_of, names, said

WORKER = "'00000000-0000-4000-8000-000000000003'"
IDLE_WORKER = "'00000000-0000-4000-8000-000000000004'"  # claims nothing here
NEWEST = "'infinity', ''"
OLDEST = "'-infinity', '', '', 0"
TEN = "'{" + ",".join(f"r{number:06}" for number in range(1, 11)) + "}'"
TEN_SEQS = "ARRAY[3,3,3,3,3,3,3,3,3,3]::bigint[]"
TEN_NAMES = "'" + " ".join(f"r{number:06}" for number in range(1, 11)) + "'"
TEN_NUMBERS = "'3 3 3 3 3 3 3 3 3 3'"


class Case(NamedTuple):
    """A query, with what it may look at: rows of big tables, and pages."""

    query: str
    arguments: str
    max_rows: int
    max_blocks: int
    may_scan: frozenset[str] = frozenset()  # where it asks for most of what there is


# On hot connections, or in a child's pool: planned once. A claimed run is looked at four times (found, locked, updated, its
# request).
HOT = {
    "claim ten": Case(claims.CLAIM_RUNS, f"'{{default}}', 10, {WORKER}", 60, 800),
    "claim a full batch": Case(claims.CLAIM_RUNS, f"'{{default}}', 64, {WORKER}", 330, 5_000),
    "claim where only the future waits": Case(
        claims.CLAIM_RUNS, f"'{{asleep}}', 64, {WORKER}", 10, 40
    ),
    "claim in an empty queue": Case(claims.CLAIM_RUNS, f"'{{none}}', 64, {WORKER}", 5, 30),
    "claim an isolated run": Case(
        claims.CLAIM_ISOLATED_RUN, f"'{{default}}', 1, {WORKER}", 15, 100
    ),
    "claim a suspect": Case(claims.CLAIM_SUSPECT_RUN, f"'{{default}}', 1, {WORKER}", 15, 100),
    "claim ten first-time suspects": Case(
        claims.CLAIM_FIRST_TIME_SUSPECTS, f"'{{default}}', 10, {WORKER}", 60, 800
    ),
    "find the next due": Case(claims.FIND_NEXT_DUE, "'{default}'", 10, 40),
    "find the next due of a sleeping queue": Case(claims.FIND_NEXT_DUE, "'{asleep}'", 10, 40),
    "release what a lost claim took": Case(
        claims.RELEASE_UNKNOWN, f"{IDLE_WORKER}, '{{}}', '{{}}'", 110, 300
    ),
    "load ten runs": Case(run_facts.LOAD_RUNS, TEN, 150, 300),
    "load the news": Case(run_facts.LOAD_NEWS, "'r000001', 8, 0", 10, 30),
    "find news": Case(claims.FIND_NEWS, f"{WORKER}, {TEN}, {TEN_SEQS}", 15, 60),
    "release runs": Case(claims.RELEASE_RUNS, f"{WORKER}, {TEN}", 200, 150),
    "read ten tails": Case(tails.READ_TAILS, f"{TEN_NAMES}, {TEN_NUMBERS}, 500, 1048576", 100, 200),
}

# Through the pool: planned for the values, or, when the server thinks it cheaper, once.
COLD = {
    "count the runs apart": Case(claims.COUNT_RUNS_APART, "'{default,asleep}'", 60, 160),
    "find what moved": Case(tails.FIND_MOVED, f"{TEN}, {TEN_SEQS}", 15, 60),
    "beat": Case(owners.BEAT, f"ARRAY[{WORKER}]::uuid[], '{{}}'", 0, 60),
    "list the living": Case(owners.LIST_LIVING, "", 0, 150),
    "find a run": Case(reads.FIND_RUN, "'r000150'", 15, 50),
    "why a run waits": Case(whys.READ_WHY, "'r000150', 100", 15, 60),
    "list runs": Case(reads.LIST_RUNS, f"{NEWEST}, 50", 400, 1_500),
    "list runs from a place on": Case(
        reads.LIST_RUNS, "now() - interval '4 h', 'r', 50", 400, 1_500
    ),
    "list a rare workflow": Case(reads.LIST_RUNS_OF_WORKFLOW, f"{NEWEST}, 50, 'rare'", 400, 1_500),
    "list a common workflow": Case(
        reads.LIST_RUNS_OF_WORKFLOW, f"{NEWEST}, 50, 'common'", 400, 1_500
    ),
    "list an absent workflow": Case(reads.LIST_RUNS_OF_WORKFLOW, f"{NEWEST}, 50, 'none'", 5, 20),
    **{
        f"list {status} runs": Case(
            reads.LIST_RUNS_IN_STATUS, f"{NEWEST}, 50, '{status}'", 400, 1_500
        )
        for status in (
            "queued",
            "running",
            "waiting-approval",
            "waiting-timer",
            "finished",
            "failed",
            "cancelled",
        )
    },
    "list failed runs of a common workflow": Case(
        reads.LIST_RUNS_OF_BOTH_BY_STATUS, f"{NEWEST}, 50, 'failed', 'common'", 450, 1_500
    ),
    "list finished runs of a rare workflow": Case(
        reads.LIST_RUNS_OF_BOTH_BY_WORKFLOW, f"{NEWEST}, 50, 'finished', 'rare'", 700, 2_000
    ),
    "list finished runs of a common workflow, entry by entry": Case(
        reads.LIST_RUNS_OF_BOTH,
        f"{NEWEST}, 50, 'finished', 'common'",
        250_000,
        9_000,
        frozenset({"runs", "run_requests"}),
    ),
    "look along a status": Case(
        reads.LOOK_ALONG_STATUS, f"{NEWEST}, 50, 'finished', 'rare', 500", 1_100, 3_000
    ),
    "look along a workflow": Case(
        reads.LOOK_ALONG_WORKFLOW, f"{NEWEST}, 50, 'failed', 'common', 500", 1_100, 3_000
    ),
    "list approvals": Case(node_reads.LIST_APPROVALS, f"{OLDEST}, 50, 4194304", 300, 1_000),
    "list all approvals": Case(
        node_reads.LIST_APPROVALS,
        f"{OLDEST}, 10000, 4194304",
        250_000,
        110_000,
        frozenset({"nodes", "runs", "run_requests"}),
    ),
    "list approvals from a place on": Case(
        node_reads.LIST_APPROVALS, "now() - interval '4 h', 'r', 'w', 0, 50, 4194304", 300, 1_000
    ),
    "list nodes": Case(
        node_reads.LIST_NODES, "'r000150', 1000, NULL, NULL, NULL, 100, 1000000", 10, 30
    ),
    "find the newest of a chain": Case(reads.FIND_NEWEST, "'r000150'", 5, 20),
    "count the queued": Case(starts.COUNT_QUEUED, "500", 500, 1_200),
    "find a key": Case(starts.FIND_KEY, "'k'", 2, 20),
    "find a description": Case(descriptions.FIND_DESCRIPTION, "'h77', ''", 0, 20),
    "list the descriptions that are wanted": Case(descriptions.LIST_WANTED_DESCRIPTIONS, "", 0, 60),
    "find a run's source": Case(descriptions.FIND_RUN_SOURCE, "'r000001'", 5, 20),
    "say whether a run is there": Case(reads.RUN_EXISTS, "'r000001'", 2, 10),
}
pytestmark = pytest.mark.timeout(300)  # the first test waits until the crowd is there
MODES = ("force_custom_plan", "force_generic_plan")


class Crowd(NamedTuple):
    """The database, and what was seen in it."""

    dsn: str
    plans: dict[tuple[str, bool, str], Plan]  # by query, after ANALYZE, how it was planned


async def look_at_all(dsn: str, *, is_analyzed: bool) -> dict[tuple[str, bool, str], Plan]:
    plans: dict[tuple[str, bool, str], Plan] = {}
    hot, cold = await connect_hot(dsn, role="test"), await connect(dsn, role="test")
    for name, case in HOT.items():
        plans[name, is_analyzed, "hot"] = await explain(hot, case.query, case.arguments)
    for mode in MODES:
        await cold.execute(f"SET plan_cache_mode = {mode}")
        for name, case in COLD.items():
            plans[name, is_analyzed, mode] = await explain(cold, case.query, case.arguments)
    await hot.close()
    await cold.close()
    return plans


@pytest.fixture(scope="module")
def crowd(postgres_server: str, database_template: str) -> Iterator[Crowd]:
    async def see(dsn: str) -> dict[tuple[str, bool, str], Plan]:
        connection = await asyncpg.connect(dsn)
        await fill(connection)
        seen = await look_at_all(dsn, is_analyzed=False)
        await connection.execute("ANALYZE")
        await connection.close()
        return seen | await look_at_all(dsn, is_analyzed=True)

    with asyncio.Runner() as runner:
        database = fresh_database(postgres_server, database_template)
        dsn = runner.run(database.__aenter__())
        try:
            yield Crowd(dsn, runner.run(see(dsn)))
        finally:
            runner.run(database.__aexit__(None, None, None))


def check(plan: Plan, case: Case) -> None:
    assert plan.scanned <= case.may_scan, str(plan)
    assert plan.row_count <= case.max_rows, str(plan)
    assert plan.block_count <= case.max_blocks, str(plan)


@pytest.mark.parametrize("is_analyzed", [False, True], ids=["never analyzed", "analyzed"])
@pytest.mark.parametrize("name", HOT)
def test_a_hot_query_reads_what_it_needs(crowd: Crowd, name: str, *, is_analyzed: bool) -> None:
    check(crowd.plans[name, is_analyzed, "hot"], HOT[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COLD)
def test_a_query_of_the_pool_reads_what_it_needs(crowd: Crowd, name: str, mode: str) -> None:
    check(crowd.plans[name, True, mode], COLD[name])


ALL_ASK = """
INSERT INTO smithers.runs (run_id, status, queue, priority, epoch, commit_no, last_seq, created_at)
SELECT 'r' || lpad(n::text, 6, '0'), 'waiting-approval', 'default', 0, 1, 3, 9, now() - n * interval '1 s'
FROM generate_series(1, 20000) AS n;
INSERT INTO smithers.run_requests (run_id, workflow_name, workflow_path, source_hash, input, config, created_at)
SELECT run_id, 'common', 'x.py', 'h', '{}', '{}', created_at FROM smithers.runs;
INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at)
SELECT run_id, 'w', 0, 'wait', status, created_at FROM smithers.runs;
INSERT INTO smithers.approvals (run_id, node_id, iteration, status, request, requested_at)
SELECT run_id, 'w', 0, 'requested', '{}', created_at FROM smithers.runs
"""


async def test_runs_that_wait_are_listed_without_reading_every_open_question(database: str) -> None:
    """Before the first ANALYZE, too, where Postgres takes the index of the open questions for the best."""
    connection = await connect(database, role="test")
    for table in BIG:
        await connection.execute(f"ALTER TABLE smithers.{table} SET (autovacuum_enabled = false)")
    await connection.execute(ALL_ASK)
    plan = await explain(connection, reads.LIST_RUNS_IN_STATUS, f"{NEWEST}, 50, 'waiting-approval'")
    assert plan.block_count < 1_500, str(plan)
    await connection.close()


READ_SO_FAR = """
SELECT relname::text, seq_tup_read, coalesce(idx_tup_fetch, 0) AS fetched FROM pg_stat_xact_user_tables
WHERE schemaname = 'smithers' AND relname = ANY ($1)"""


@pytest.fixture
async def hot(crowd: Crowd) -> AsyncIterator[asyncpg.Connection]:
    """A hot connection in a transaction that is undone."""
    connection = await connect_hot(crowd.dsn, role="test")
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def rows_read(connection: asyncpg.Connection) -> int:
    """Count the rows that this transaction has read by an index; it has scanned no big table."""
    read = await connection.fetch(READ_SO_FAR, BIG)
    assert {row["relname"]: row["seq_tup_read"] for row in read if row["seq_tup_read"]} == {}
    return sum(row["fetched"] for row in read)


@pytest.mark.parametrize("status", [RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED])
@pytest.mark.parametrize("workflow_name", ["common", "rare", "old", "none"])
async def test_a_list_by_both_filters_takes_the_shorter_walk(
    hot: asyncpg.Connection, status: RunStatus, workflow_name: str
) -> None:
    """50 of 13,500 finished and 1,000 failed runs, of 49,000, 100 and 900 of a workflow."""
    await hot.execute(
        """UPDATE smithers.run_requests SET workflow_name = 'old'
        WHERE workflow_name = 'common' AND run_id BETWEEN 'r000000' AND 'r000900'"""
    )
    before = await rows_read(hot)
    pool: Any = hot
    rows = await reads.list_runs(
        pool, status=status, workflow_name=workflow_name, after=None, limit=50
    )
    assert await rows_read(hot) - before <= 6_000
    assert [row.life.run_id for row in rows] == [
        row[0]
        for row in await hot.fetch(
            """SELECT run_id FROM smithers.runs AS r JOIN smithers.run_requests AS q USING (run_id)
            WHERE status = $1 AND workflow_name = $2 ORDER BY r.created_at DESC, run_id DESC LIMIT 50""",
            status,
            workflow_name,
        )
    ]


@pytest.mark.parametrize("workflow_name", ["common", "rare", "none"])
async def test_a_list_by_both_filters_is_the_same_whichever_way_is_walked(
    hot: asyncpg.Connection, workflow_name: str
) -> None:
    """From the middle of the list on."""
    await hot.execute("UPDATE smithers.run_requests SET workflow_name = 'rare' WHERE run_id ~ '7$'")
    middle = await hot.fetchrow(
        "SELECT created_at, run_id FROM smithers.runs WHERE run_id = 'r025000'"
    )
    assert middle is not None
    by_status, by_workflow, by_both = [
        [row["run_id"] for row in await hot.fetch(walk, *middle, 50, "finished", workflow_name)]
        for walk in (
            reads.LIST_RUNS_OF_BOTH_BY_STATUS,
            reads.LIST_RUNS_OF_BOTH_BY_WORKFLOW,
            reads.LIST_RUNS_OF_BOTH,
        )
    ]
    assert by_status == by_workflow == by_both
    assert len(by_both) == (0 if workflow_name == "none" else 50)


async def test_a_list_of_runs_that_wait_for_people_reads_what_they_are_asked(
    hot: asyncpg.Connection,
) -> None:
    pool: Any = hot
    wanted: dict[str, Any] = {
        "status": RunStatus.WAITING_APPROVAL,
        "workflow_name": None,
        "after": None,
        "limit": 50,
    }
    newest, *_ = await reads.list_runs(pool, **wanted)
    await hot.execute(
        """INSERT INTO smithers.nodes (run_id, node_id, iteration, kind, state, created_at)
        SELECT $1, 'n' || n, 0, 'task', 'finished', now() FROM generate_series(10, 3000) AS n""",
        newest.life.run_id,
    )
    before = await rows_read(hot)
    rows = await reads.list_runs(pool, **wanted)
    assert await rows_read(hot) - before <= 50 * 5
    assert {row.life.wait and row.life.wait.node_id for row in rows} == {"w"}
    assert await hot.fetchval(DECIDE, newest.life.run_id) is not None
    newest, *_ = await reads.list_runs(pool, **wanted)
    assert newest.life.wait is None


async def any_run(connection: asyncpg.Connection, status: str) -> str:
    return await connection.fetchval(
        "SELECT run_id FROM smithers.runs WHERE status = $1 ORDER BY created_at LIMIT 1", status
    )


# What decide_and_tell_v4 and signal_and_tell_v4 do before their COMMIT, which a transaction that is to be undone forbids.
DECIDE = """SELECT d.* FROM smithers.decide_approval_v5(
    ROW($1, 'w', 0, true, NULL, 'x', NULL, NULL, NULL, false)::smithers.decision_v1) AS d"""
SEND = "SELECT * FROM smithers.send_signal_v2($1, 's', NULL, '1', NULL, 'id')"
CALLS: dict[str, tuple[str, str, list[Any]]] = {
    "decide": (
        "waiting-approval",
        DECIDE,
        [],
    ),
    "signal": ("waiting-timer", SEND, []),
    "cancel": ("waiting-approval", CANCEL_RUN, []),
    "resume": ("failed", RESUME_RUN, [None, None, None, None, None]),
}


@pytest.mark.parametrize("name", CALLS)
async def test_what_comes_from_outside_reads_its_run_only(
    hot: asyncpg.Connection, name: str
) -> None:
    status, query, rest = CALLS[name]
    run_id = await any_run(hot, status)
    before = await rows_read(hot)
    (row,) = await hot.fetch(query, run_id, *rest)
    assert row["outcome"] in {"decided", "received", "cancelled", "resumed"}
    assert await rows_read(hot) - before <= 30


async def test_a_start_reads_nothing(hot: asyncpg.Connection) -> None:
    assert all(await start_unique(hot, [a_start(run_id) for run_id in names(100, "new")]))
    assert await rows_read(hot) == 0


async def test_a_burial_reads_the_runs_of_its_worker_only(hot: asyncpg.Connection) -> None:
    """50 runs: found, locked, looked at, their nodes looked for, freed; the two that die are failed."""
    worker_id = WorkerId(UUID(WORKER.strip("'")))
    await hot.execute(
        """UPDATE smithers.runs SET crash_count = 2 WHERE run_id IN (
            SELECT run_id FROM smithers.runs WHERE owner_id = $1 ORDER BY run_id LIMIT 2)""",
        worker_id,
    )
    before = await rows_read(hot)
    freed = await owners.bury_worker(as_pool(hot), worker_id, "exit--9")
    assert (freed.is_all, freed.queues, len(freed.failed)) == (True, {"default": 48}, 2)
    assert await rows_read(hot) - before <= 50 * 8 + 2 * 50


async def write_untold(connection: asyncpg.Connection) -> str:
    """Return a call of what commit_turns_v5 does before its COMMIT, which a transaction that is to be undone forbids."""
    text = await connection.fetchval(
        "SELECT pg_get_functiondef('smithers.commit_turns_v5'::regproc)"
    )
    before, commit, _ = text.partition("    COMMIT;\n")
    assert commit
    await connection.execute(f"{before}END\n$procedure$".replace("commit_turns_v5", "untold", 1))
    return commits.COMMIT_TURNS.replace("commit_turns_v5", "untold")


async def test_a_group_of_commits_reads_its_runs_only(
    hot: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "COMMIT_TURNS", await write_untold(hot))
    worker_id = WorkerId(UUID(WORKER.strip("'")))
    claimed = await claims.claim_runs(
        hot, worker_id=worker_id, queue="default", limit=50, kind=claims.ClaimKind.MANY
    )
    before = await rows_read(hot)
    turns = [said("a", nodes={key_of("n0"): NodeFact(NodeState.FINISHED)}) for _ in claimed]
    answers = await commits._commit_group(hot, worker_id, list(map(change, claimed, turns)))
    for answer in answers:
        assert isinstance(answer, commits.Committed)
        assert answer.outcome is commits.Outcome.COMMITTED
    assert await rows_read(hot) - before <= 50 * 6


async def test_nine_commits_of_ten_stay_on_their_page(database: str) -> None:
    """A commit that changes no indexed column writes no index entry, as long as its page has room (HOT)."""
    async with Ground(database) as ground:
        worker_id = await ground.add_worker()
        claimed = await ground.owned(worker_id, *names(20))
        async with commits.Committer(database, worker_id=worker_id) as committer:
            for number in range(1, 51):
                await asyncio.gather(
                    *(committer.commit(change(claim, said("a"), number)) for claim in claimed)
                )
        await ground.until(
            "SELECT n_tup_upd >= 1020 FROM pg_stat_user_tables WHERE relname = 'runs'"
        )
        counts = await ground.sql.fetchrow(
            "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'runs'"
        )
    assert counts is not None
    assert counts["n_tup_hot_upd"] / counts["n_tup_upd"] >= 0.9
