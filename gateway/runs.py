"""Start, resume and cancel runs; read one, list them."""

import hashlib
import json
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

import orjson
from aiohttp import web

from gateway import fields
from gateway.access import Credential
from gateway.bodies import read_object, write_json
from gateway.envelope import reply
from gateway.errors import InvalidRequest, RunIdRequired
from gateway.exchange import Exchange
from gateway.inputs import check_input
from gateway.run_state import run_state
from gateway.sources import KnownWorkflow
from smithers.events import EventType, correlation_json, event_parts
from smithers.ids import RunId, is_run_id, new_run_id
from smithers.source.closure import SourceBundle
from smithers.source.errors import SourceError, SourceNotFound
from smithers.states import RunStatus
from smithers.store.descriptions import find_run_source
from smithers.store.outside import CancelOutcome, Resume, ResumeOutcome, cancel_run, resume_run
from smithers.store.reads import RunPlace, RunRow, find_run, list_runs
from smithers.store.refusals import NothingToResume, RunExists, RunNotFound
from smithers.store.starts import RunStart, start_with_key

DEFAULT_QUEUE: Final = "default"
ISOLATED: Final = "process"
MAX_LIST: Final = 1_000
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_KEY: Final = re.compile(r'"?[\x21\x23-\x7e]{1,255}"?', re.ASCII)


async def post_run(exchange: Exchange) -> web.StreamResponse:
    """Start a run, or resume one."""
    body = await read_object(exchange.request, max_bytes=exchange.services.settings.max_body_bytes)
    workflow_path = fields.take_text(body, "workflowPath", max_chars=4096)
    if not workflow_path:
        raise InvalidRequest("workflowPath must name a .py file below the root.")
    run_input = fields.take_object(body, "input") or {}
    config = _take_config(body)
    run_id = _take_run_id(body)
    if fields.take_bool(body, "resume"):
        if run_id is None:
            raise RunIdRequired
        return await _resume(exchange, run_id, workflow_path, config)
    key = _take_key(exchange.request)
    bundle, known = await _read_source(exchange, workflow_path)
    if known is not None:
        check_input(known.validator, run_input)
    start = _build_start(exchange, run_id or new_run_id(), bundle, known, run_input, config or {})
    if key is None:
        if not await exchange.services.starts.submit(start):
            raise RunExists
        run_id = start.run_id
    else:
        run_id = await start_with_key(
            exchange.services.pool,
            start,
            idempotency_key=_scoped_key(exchange.credential, key),
            request_hash=_hash_request(body),
        )
    exchange.hint_due(start.queue)
    exchange.hint_events(run_id)
    return reply({"runId": run_id})


async def post_resume(exchange: Exchange) -> web.StreamResponse:
    """Resume a run: the body may name another source or configuration."""
    body = await read_object(exchange.request, max_bytes=exchange.services.settings.max_body_bytes)
    workflow_path = fields.take_text(body, "workflowPath", max_chars=4096)
    fields.take_object(body, "input")
    config = _take_config(body)
    return await _resume(exchange, exchange.run_id(missing=NothingToResume), workflow_path, config)


async def post_cancel(exchange: Exchange) -> web.StreamResponse:
    """Cancel a run."""
    await read_object(exchange.request, max_bytes=exchange.services.settings.max_body_bytes)
    run_id = exchange.run_id()
    if await cancel_run(exchange.services.pool, run_id) is CancelOutcome.CANCELLED:
        exchange.hint_events(run_id)
    else:
        exchange.hint_news(run_id)
    return reply({"runId": run_id})


async def get_run(exchange: Exchange) -> web.StreamResponse:
    """Read one run."""
    run = await find_run(exchange.services.pool, exchange.run_id())
    if run is None:
        raise RunNotFound
    return reply(
        {
            "runId": run.life.run_id,
            "workflowName": run.workflow_name,
            "status": run.life.status,
            "startedAtMs": run.started_ms,
            "finishedAtMs": run.finished_ms,
            "runState": run_state(run.life),
            "summary": _stored(run.summary or "{}"),
            "input": _stored(run.input),
            "output": _stored(run.output),
            "error": public_error(run.error),
            "workflowHash": run.workflow_hash,
        }
    )


async def get_runs(exchange: Exchange) -> web.StreamResponse:
    """List runs, newest first."""
    request = exchange.request
    limit = fields.query_whole(request, "limit", low=1, high=MAX_LIST, default=50)
    status = fields.query_text(request, "status")
    if status is not None and status not in set(RunStatus):
        raise InvalidRequest(f"status must be one of {', '.join(RunStatus)}.")
    cursor = fields.query_text(request, "cursor")
    rows = await list_runs(
        exchange.services.pool,
        status=None if status is None else RunStatus(status),
        workflow_name=fields.query_text(request, "workflow"),
        after=None if cursor is None else _read_place(cursor),
        limit=limit,
    )
    link = None
    if len(rows) == limit:
        place = fields.write_cursor(rows[-1].created_at.isoformat(), rows[-1].life.run_id)
        link = fields.next_link(request, cursor=place)
    return reply([_row(row) for row in rows], link=link)


def public_error(text: str | None) -> Any:
    """Take the traceback out of a stored error: it names the host's files."""
    if text is None:
        return None
    if '"traceback"' not in text:
        return _stored(text)
    error = json.loads(text)
    error.pop("traceback", None)
    return error


def _stored(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)


def _row(row: RunRow) -> dict[str, Any]:
    error = public_error(row.error)
    return {
        "runId": row.life.run_id,
        "parentRunId": row.parent_run_id,
        "workflowName": row.workflow_name,
        "workflowPath": row.workflow_path,
        "workflowHash": row.workflow_hash,
        "status": row.life.status,
        "createdAtMs": row.created_ms,
        "startedAtMs": row.started_ms,
        "finishedAtMs": row.finished_ms,
        "heartbeatAtMs": row.life.heartbeat_ms,
        "runtimeOwnerId": row.life.owner_id,
        "cancelRequestedAtMs": row.cancel_requested_ms,
        "hijackRequestedAtMs": None,
        "hijackTarget": None,
        "vcsType": None,
        "vcsRoot": None,
        "vcsRevision": None,
        "errorJson": None if error is None else orjson.dumps(error).decode(),
        "configJson": row.config,
        "runState": run_state(row.life),
    }


def _read_place(cursor: str) -> RunPlace:
    moment, run_id = fields.read_cursor(cursor, str, str)
    try:
        return RunPlace(created_at=datetime.fromisoformat(moment), run_id=RunId(run_id))
    except ValueError as error:
        raise InvalidRequest("cursor must be one that a Link header carried.") from error


async def _resume(
    exchange: Exchange, run_id: RunId, workflow_path: str | None, config: dict[str, Any] | None
) -> web.StreamResponse:
    services = exchange.services
    bundle = await _find_bundle(exchange, workflow_path)
    source = None if bundle is None else await services.sources.keep(services.pool, bundle)
    changed = None
    if bundle is not None and (stored := await find_run_source(services.pool, run_id)) is not None:
        changed = _changed_files(bundle, *stored)
    outcome, queue = await resume_run(
        services.pool,
        Resume(
            run_id=run_id,
            source_hash=source,
            workflow_path=None if bundle is None else bundle.entry,
            workflow_export=None if bundle is None else bundle.workflow_name,
            config=None if config is None else write_json(config),
            changed_files=changed,
        ),
    )
    if outcome is ResumeOutcome.ACTIVE:
        return reply({"runId": run_id, "status": RunStatus.RUNNING})
    if outcome is ResumeOutcome.RESUMED:
        exchange.hint_due(queue)
        exchange.hint_events(run_id)
    return reply({"runId": run_id})


async def _find_bundle(exchange: Exchange, workflow_path: str | None) -> SourceBundle | None:
    """Read the source that a resume names; a file that is gone leaves the run its stored one."""
    if workflow_path is None:
        return None
    try:
        return await exchange.services.sources.read(workflow_path)
    except SourceNotFound:
        return None


def _changed_files(bundle: SourceBundle, stored_hash: str, stored: str) -> str | None:
    if stored_hash == bundle.source_hash:
        return None
    before = json.loads(stored)["modules"]
    names = {*before, *bundle.modules}
    changed = sorted(name for name in names if before.get(name) != bundle.modules.get(name))
    return json.dumps(changed, ensure_ascii=False)


async def _read_source(
    exchange: Exchange, workflow_path: str
) -> tuple[SourceBundle, KnownWorkflow | None]:
    """Read a version, have it stored, and say what is known of it; raises SourceError."""
    services = exchange.services
    bundle = await services.sources.read(workflow_path)
    await services.sources.keep(services.pool, bundle)
    known = await services.sources.describe(services.pool, bundle)
    if known is not None and known.row.error is not None:
        raise SourceError(known.row.error)
    return bundle, known


def _build_start(
    exchange: Exchange,
    run_id: RunId,
    bundle: SourceBundle,
    known: KnownWorkflow | None,
    run_input: dict[str, Any],
    config: dict[str, Any],
) -> RunStart:
    name = (known.row.workflow_name if known else None) or PurePosixPath(bundle.entry).stem
    head, tail = event_parts(EventType.RUN_STARTED, run_id, correlation_json(run_id, name), {})
    trace = exchange.request.headers.get("traceparent")
    return RunStart(
        run_id=run_id,
        workflow_name=name,
        workflow_path=bundle.entry,
        workflow_export=bundle.workflow_name,
        source_hash=bundle.source_hash,  # type: ignore[arg-type]  # a SourceHash by its nature
        input=write_json(run_input),
        config=write_json(config),
        auth=_auth(exchange.credential),
        trace_context=trace if trace and _TRACEPARENT.fullmatch(trace) else None,
        parent_run_id=None,
        queue=exchange.services.settings.queue_override
        or (known.row.queue if known else None)
        or DEFAULT_QUEUE,
        priority=0,
        head=head,
        tail=tail,
        is_solo=known is not None and known.row.isolation == ISOLATED,
    )


def _auth(credential: Credential) -> str | None:
    if credential.scopes is None:
        return None
    return write_json({"user": credential.user, "scopes": list(credential.scopes)})


def _take_run_id(body: dict[str, Any]) -> RunId | None:
    value = body.get("runId")
    if value is None:
        return None
    if not isinstance(value, str) or not is_run_id(value):
        raise InvalidRequest(
            "runId must be 1 to 255 letters, digits and . _ : @ + -, the first a letter, a digit or _."
        )
    return RunId(value)


def _take_config(body: dict[str, Any]) -> dict[str, Any] | None:
    """Take what a caller may set, and nothing else: a request narrows, it never widens."""
    config = fields.take_object(body, "config")
    if config is None:
        return None
    limit = fields.take_whole(config, "maxConcurrency", low=1)
    return {} if limit is None else {"maxConcurrency": limit}


def _take_key(request: web.Request) -> str | None:
    values = request.headers.getall("Idempotency-Key", [])
    if not values:
        return None
    if len(values) > 1 or not _KEY.fullmatch(values[0]):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return values[0].strip('"')


def _scoped_key(credential: Credential, key: str) -> str:
    return hashlib.sha256(f"{credential.user or ''}\n{key}".encode()).hexdigest()


def _hash_request(body: dict[str, Any]) -> str:
    """Hash what was asked, not how it was spelled."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
