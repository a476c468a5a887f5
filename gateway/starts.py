"""Start a run where its workflow's runs live: in the server's database, or in one that the workflow has to itself.

In the latter case its id is taken in the server's database first (see smithers.store.own_databases).
"""

import re
from dataclasses import replace
from typing import Final

from gateway.exchange import Exchange, Services
from gateway.sources import KnownWorkflow
from smithers.events import EventType, correlation_json, event_parts
from smithers.ids import RunId
from smithers.source.closure import SourceBundle
from smithers.store.own_databases import reserve_run
from smithers.store.reads import run_exists
from smithers.store.refusals import RunExists
from smithers.store.starts import IdempotencyKey, RunStart, start_with_key

_NAMES_DATABASE: Final = re.compile(r"\bdatabase\s*=")


def may_name_database(bundle: SourceBundle) -> bool:
    """Say whether a source that nobody has described may want a database of its own."""
    return any(_NAMES_DATABASE.search(text) for text in bundle.modules.values())


async def start_run(
    exchange: Exchange,
    start: RunStart,
    bundle: SourceBundle,
    known: KnownWorkflow | None,
    key: IdempotencyKey | None,
) -> RunId:
    """Start a run, and tell those who claim it; return its id, or the one that the key stands for.

    Raises RunExists, KeyReused, InvalidRequest for a database that is not known, StoreError.
    """
    home = exchange.services
    if known is not None and known.row.database is not None:
        own = await home.databases.get(home, known.row.database)
        if own is not home:  # or it is a name for the server's own
            return await _start_in(own, exchange, start, bundle, key)
    if key is None:
        if not await home.starts.submit(start):
            raise RunExists
        return start.run_id
    run_id = await start_with_key(
        home.pool, start, idempotency_key=key.key, request_hash=key.request_hash
    )
    exchange.hint_due(start.queue)  # and no hint of events: nobody can follow what was not there
    return run_id


async def _start_in(
    own: Services,
    exchange: Exchange,
    start: RunStart,
    bundle: SourceBundle,
    key: IdempotencyKey | None,
) -> RunId:
    """Start a run in another database than the server's.

    After StoreUnavailable it may yet be started: once, under the id that was asked for or that the key stands for, so
    that the same request again is safe.
    """
    assert own.database is not None
    await own.sources.keep(own.pool, bundle)
    # A database that is down is found out here, while nothing is written yet.
    is_there = await run_exists(own.pool, start.run_id)
    if is_there and key is None:
        raise RunExists
    run_id = await reserve_run(exchange.services.pool, start, database=own.database, key=key)
    is_new = await own.starts.submit(_named(start, run_id))
    if not is_new and key is None:
        raise RunExists
    replace(exchange, services=own).hint_events(run_id)  # for the mirror
    return run_id


def _named(start: RunStart, run_id: RunId) -> RunStart:
    if run_id == start.run_id:
        return start
    correlation = correlation_json(run_id, start.workflow_name)
    head, tail = event_parts(EventType.RUN_STARTED, run_id, correlation, {})
    return replace(start, run_id=run_id, head=head, tail=tail)
