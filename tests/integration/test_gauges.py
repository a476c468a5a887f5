"""What metrics say of the database."""

import asyncpg

from smithers.store.connections import open_pool
from smithers.store.gauges import read_gauges


async def test_the_queues_of_single_runs_are_measured_as_one(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            """INSERT INTO smithers.runs (run_id, status, last_seq, created_at, due_at, queue, is_solo) VALUES
            ('a', 'queued', 0, now(), now() - interval '1 h', 'up-a', false),
            ('b', 'queued', 0, now(), now() - interval '2 h', 'up-b', true),
            ('c', 'queued', 0, now(), now(), 'upper', false),
            ('d', 'waiting-timer', 0, now(), now() + interval '1 h', 'default', false)"""
        )
    finally:
        await connection.close()
    async with open_pool(database, role="gauges", max_size=1) as pool:
        queues = (await read_gauges(pool)).queues
    assert {name: backlog.count for name, backlog in queues.items()} == {"up": 2, "upper": 1}
    assert 7_200 <= queues["up"].oldest_s < 7_300


async def test_a_run_that_waits_in_its_workflows_own_database_is_measured_by_its_mirror(
    database: str,
) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            """INSERT INTO smithers.runs (run_id, database, status, era, last_seq, mirrored_seq, created_at) VALUES
            ('reserved', 'ORDERS', 'queued', 0, -1, -1, now() - interval '1 h'),
            ('copied', 'ORDERS', 'queued', 0, 0, 0, now()),
            ('resumed', 'ORDERS', 'queued', 1, 9, 9, now() - interval '9 h'),
            ('running', 'ORDERS', 'running', 0, 3, 3, now() - interval '9 h')"""
        )
    finally:
        await connection.close()
    async with open_pool(database, role="gauges", max_size=1) as pool:
        queues = (await read_gauges(pool)).queues
    assert queues.keys() == {"default"}
    assert queues["default"].count == 2
    assert 3_600 <= queues["default"].oldest_s < 3_700
