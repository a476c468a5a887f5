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
