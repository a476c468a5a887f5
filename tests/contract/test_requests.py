"""Bad input never gives a 5xx, never leaves the root, never changes anything: one request a line in requests.jsonl.

A line: `name, method, path, status` (those allowed), and `code, body, headers` where they matter; `{RUN}` is a finished run.
"""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.canary import TOKEN
from tests.support.gateway import Rows, make_root, running, settings_for

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("requests.jsonl").read_text(encoding="utf-8").splitlines()
]
RUN = "an-ended-run"
LEAK = re.compile(
    r"Traceback|File \"/|asyncpg|site-packages|SELECT .* FROM|/root/|/home/|/tmp/|smithers\.\w+_v1"
)
COUNTS = """
    SELECT (SELECT count(*) FROM smithers.runs), (SELECT count(*) FROM smithers.events),
           (SELECT count(*) FROM smithers.signals), (SELECT count(*) FROM smithers.idempotency_keys)"""


@pytest.fixture
async def rows(database: str, tmp_path: Path) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database)
    rows = Rows(connection, make_root(tmp_path))
    await rows.describe()
    await rows.add_run(RUN, status="finished", events=2)
    yield rows
    await connection.close()


async def test_every_request_of_the_corpus_is_answered_as_it_says(
    database: str, rows: Rows
) -> None:
    wrong = []
    async with running(settings_for(database, rows.root)) as client:
        for case in CASES:
            before = await rows.connection.fetchrow(COUNTS)
            answer = await client.call(
                case["method"],
                case["path"].replace("{RUN}", RUN),
                case["body"].encode() if "body" in case else None,
                headers=case.get("headers"),
            )
            text = answer.body.decode()
            fits = answer.status in case["status"] and (
                answer.status < 400 or answer.json["error"]["code"] == case["code"]
            )
            is_quiet = answer.status < 400 or await rows.connection.fetchrow(COUNTS) == before
            if not fits or not is_quiet or LEAK.search(text) or TOKEN in text:
                wrong.append((case["name"], answer.status, text[:200], is_quiet))
    assert wrong == []
