"""Start a run where its workflow's runs live: in the server's database, or in the workflow's own.

In the latter case its id is reserved in the server's database first (see smithers.store.own_databases).
"""

import re
from dataclasses import replace
from typing import Final

from gateway.databases import Database
from gateway.exchange import Exchange
from gateway.sources import KnownWorkflow
from smithers.ids import RunId
from smithers.source.closure import SourceBundle
from smithers.store.descriptions import keep_source
from smithers.store.own_databases import find_reservation, reserve_run
from smithers.store.reads import run_exists
from smithers.store.refusals import RunExists
from smithers.store.starts import IdempotencyKey, RunStart, find_key, start_with_key

_NAMES_DATABASE: Final = re.compile(r"\bdatabase\s*=")


def may_name_database(bundle: SourceBundle) -> bool:
    """Say whether a source without a description may want a database of its own."""
    return any(_NAMES_DATABASE.search(text) for text in bundle.modules.values())


async def repeat_start(exchange: Exchange, key: IdempotencyKey) -> RunId | None:
    """Return the run that a key already stands for, even if its file has changed; None: the key is new.

    Raises KeyReused, StoreError, InvalidRequest for a database that is not known.
    """
    home = exchange.database
    kept = await find_key(home.pool, key)
    if kept is None:
        return None
    if kept.reserved_in is not None:
        own = await exchange.services.databases.get(home, kept.reserved_in)
        await _start_reserved(own, exchange, kept.run_id)
    return kept.run_id


async def start_run(
    exchange: Exchange,
    start: RunStart,
    bundle: SourceBundle,
    known: KnownWorkflow | None,
    key: IdempotencyKey | None,
) -> RunId:
    """Start a run, count it, and notify claimers; return its id, or the one that the key stands for.

    Raises RunExists, KeyReused, InvalidRequest for a database that is not known, StoreError.
    """
    home = exchange.database
    if known is not None and known.row.database is not None:
        own = await exchange.services.databases.get(home, known.row.database)
        if own is not home:  # or it is a name for the server's own
            return await _start_in(own, exchange, start, bundle, key)
    if key is None:
        if not await home.starts.submit(start):
            raise RunExists
        exchange.services.metrics.count_start()
        return start.run_id
    run_id, is_new = await start_with_key(home.pool, start, key)
    if is_new:
        exchange.services.metrics.count_start()
        # No hint of events: a new run has no viewers.
        exchange.hint_due(start.queue)
    return run_id


async def _start_in(
    own: Database,
    exchange: Exchange,
    start: RunStart,
    bundle: SourceBundle,
    key: IdempotencyKey | None,
) -> RunId:
    """Start a run in another database than the server's.

    After StoreUnavailable it may still be started: once, under the requested id or the one that the key stands for, so
    repeating the request is safe.
    """
    assert own.name is not None
    await own.sources.keep(bundle)
    # A database that is down is detected here, before anything is written.
    is_there = await run_exists(own.pool, start.run_id)
    first = await reserve_run(
        exchange.database.pool, start, database=own.name, key=key, is_there=is_there
    )
    if first is not None:
        await _start_reserved(own, exchange, first)
        return first
    # A request with the same key may have been faster: then it is the same run.
    if not await _submit(own, exchange, start) and key is None:
        raise RunExists
    return start.run_id


async def _start_reserved(own: Database, exchange: Exchange, run_id: RunId) -> None:
    """Start a reserved run, unless it is known to exist."""
    reservation = await find_reservation(exchange.database.pool, run_id)
    if reservation is not None:
        await keep_source(own.pool, reservation.start.source_hash, reservation.bundle)
        await _submit(own, exchange, reservation.start)


async def _submit(own: Database, exchange: Exchange, start: RunStart) -> bool:
    is_new = await own.starts.submit(start)
    if is_new:
        exchange.services.metrics.count_start()
        replace(exchange, database=own).hint_events(start.run_id)  # for the mirror
    return is_new
