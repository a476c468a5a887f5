"""Start, resume and cancel runs; read one, list them."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, Strict, StringConstraints

from gateway.access import Credential
from gateway.bodies import write_json
from gateway.configs import RunConfig, StartConfig, write_config
from gateway.envelope import error_for, public_error, stored
from gateway.errors import DbNotConfigured, NoWorker, RunIdRequired
from gateway.exchange import Exchange
from gateway.fields import (
    NO_NUL,
    AnyBody,
    Body,
    Cursor,
    Digits,
    Headers,
    Query,
)
from gateway.inputs import check_input
from gateway.paging import Page, next_link, read_cursor, write_cursor
from gateway.responses import RunAnswer, RunNamed, RunRowAnswer, RunTaken
from gateway.run_state import run_state
from gateway.sources import KnownWorkflow
from gateway.starts import may_name_database, repeat_start, start_run
from smithers.defaults import DEFAULT_QUEUE
from smithers.events import Envelope, EventType, event_parts
from smithers.ids import MAX_WORKFLOW_NAME_CHARS, RUN_ID_PATTERN, RunId, new_run_id
from smithers.source.beneath import beneath
from smithers.source.closure import SourceBundle, split_reference
from smithers.source.errors import SourceError, SourceNotFound
from smithers.states import RunStatus
from smithers.store.descriptions import RunSource, find_run_source
from smithers.store.outside import CancelOutcome, Resume, ResumeOutcome, cancel_run, resume_run
from smithers.store.reads import RunPlace, RunRow, find_run, list_runs
from smithers.store.refusals import NothingToResume, RunNotFound
from smithers.store.run_traces import find_run_trace
from smithers.store.starts import IdempotencyKey, RunStart
from smithers.telemetry.tracing import RunTrace
from smithers.tree import Isolation

MAX_LIST: Final = 1_000

WorkflowPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=NO_NUL)]


class ResumeBody(Body):
    """How a run is resumed."""

    workflow_path: WorkflowPath | None = Field(
        None, description="use the source in this file as it is now; relative to the server's root"
    )
    input: dict[str, Any] | None = Field(None, description="ignored: a run keeps its input")
    config: RunConfig | None = Field(
        None, description="fields that are given replace those of the run; the others stay"
    )


class StartBody(Body):
    """The run to start."""

    workflow_path: WorkflowPath = Field(
        description="a .py file, relative to the server's root; `path.py:name` if it holds several workflows",
        examples=["hello.py"],
    )
    input: dict[str, Any] | None = Field(None, description="must fit the workflow's input model")
    run_id: Annotated[str, StringConstraints(pattern=f"^{RUN_ID_PATTERN.pattern}$")] | None = Field(
        None, description="default: a new UUIDv7"
    )
    resume: bool | None = Field(None, description="resume the run `runId` instead")
    config: StartConfig | None = None


class StartHeaders(Headers):
    """The header that makes a start repeatable."""

    idempotency_key: (
        Annotated[str, StringConstraints(pattern=r'^"?[\x21\x23-\x7e]{1,255}"?$')] | None
    ) = Field(
        None,
        alias="Idempotency-Key",
        description="repeating the key and the body returns the same run",
    )


class RunsQuery(Query):
    """Which runs."""

    limit: Digits = Field(50, ge=1, le=MAX_LIST)
    status: Annotated[RunStatus, Strict(False)] | None = None
    workflow: (
        Annotated[str, StringConstraints(max_length=MAX_WORKFLOW_NAME_CHARS, pattern=NO_NUL)] | None
    ) = Field(None, description="a workflow's name")
    cursor: Cursor | None = None


async def post_run(exchange: Exchange, body: StartBody, headers: StartHeaders) -> RunTaken:
    """Start a run, or resume one."""
    run_id = None if body.run_id is None else RunId(body.run_id)
    if body.resume:
        if run_id is None:
            raise RunIdRequired
        at_run = await exchange.at_run(run_id)
        return await _resume(at_run, run_id, body.workflow_path, body.config)
    key = _read_key(exchange, body, headers)
    if key is not None and (first := await repeat_start(exchange, key)) is not None:
        return {"runId": first}
    with exchange.services.backlog.starting():
        return {"runId": await _begin(exchange, run_id or new_run_id(), body, key)}


async def _begin(
    exchange: Exchange, chosen_id: RunId, body: StartBody, key: IdempotencyKey | None
) -> RunId:
    bundle, known = await _read_source(exchange, body.workflow_path)
    if known is not None:
        check_input(known.validator, body.input or {})
    start = _build_start(exchange, chosen_id, bundle, known, body)
    return await start_run(exchange, start, bundle, known, key)


async def post_resume(exchange: Exchange, body: ResumeBody) -> RunTaken:
    """Resume a failed or cancelled run; the body may name another source or configuration."""
    run_id = exchange.run_id(missing=NothingToResume)
    return await _resume(exchange, run_id, body.workflow_path, body.config)


async def post_cancel(exchange: Exchange, body: AnyBody) -> RunNamed:  # noqa: ARG001 - must be an object
    """Cancel a run; running attempts are stopped."""
    run_id = exchange.run_id()
    outcome, due_queue = await cancel_run(exchange.database.pool, run_id)
    if outcome is CancelOutcome.CANCELLED:
        exchange.services.metrics.count_event(EventType.RUN_CANCELLED)
        exchange.hint_events(run_id)
        await _tell_cancelled(exchange, run_id)
    elif due_queue is not None:
        exchange.hint_due(due_queue)
    else:
        exchange.hint_news(run_id)
    return {"runId": run_id}


async def _tell_cancelled(exchange: Exchange, run_id: RunId) -> None:
    """Emit the span of a run that no worker holds."""
    tracer = exchange.services.tracer
    ended = None if tracer is None else await find_run_trace(exchange.database.pool, run_id)
    if tracer is None or ended is None:
        return
    trace = RunTrace(tracer, run_id, ended.workflow_name, ended.era, ended.trace_context)
    trace.tell_run(RunStatus.CANCELLED, None, began_ms=ended.began_ms, ended_ms=ended.ended_ms)


async def get_run(exchange: Exchange) -> RunAnswer:
    """Read one run."""
    run = await find_run(exchange.database.pool, exchange.run_id())
    if run is None:
        raise RunNotFound
    return {
        "runId": run.life.run_id,
        "workflowName": run.workflow_name,
        "status": run.life.status,
        "startedAtMs": run.started_ms,
        "finishedAtMs": run.finished_ms,
        "runState": run_state(run.life),
        "summary": stored(run.summary or "{}"),
        "input": stored(run.input),
        "output": stored(run.output),
        "error": error_for(exchange.credential, run.error),
        "workflowHash": run.workflow_hash,
        "lastSeq": run.last_seq,
    }


async def get_runs(exchange: Exchange, query: RunsQuery) -> Page[list[RunRowAnswer]]:
    """List runs, newest first."""
    if not exchange.services.settings.is_kept:
        raise DbNotConfigured
    rows = await list_runs(
        exchange.database.pool,
        status=query.status,
        workflow_name=query.workflow,
        after=None if query.cursor is None else _read_place(query.cursor),
        limit=query.limit,
    )
    link = None
    if len(rows) == query.limit:
        place = write_cursor(rows[-1].created_at, rows[-1].life.run_id)
        link = next_link(exchange.request, cursor=place)
    return Page([_row(row) for row in rows], link)


def _row(row: RunRow) -> RunRowAnswer:
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
        "configJson": _shown_config(row),
        "runState": run_state(row.life),
    }


def _read_place(cursor: str) -> RunPlace:
    created_at, run_id = read_cursor(cursor, datetime, str)
    return RunPlace(created_at=created_at, run_id=RunId(run_id))


async def _resume(
    exchange: Exchange, run_id: RunId, workflow_path: str | None, config: RunConfig | None
) -> RunTaken:
    bundle = await _find_bundle(exchange, run_id, workflow_path)
    changed = None
    if bundle is not None:
        await exchange.database.sources.keep(bundle)
        bundle, changed = await _compare(exchange, run_id, bundle)
    changes = write_config(config)
    outcome, queue = await resume_run(
        exchange.database.pool,
        Resume(
            run_id=run_id,
            source_hash=None if bundle is None else bundle.source_hash,
            workflow_path=None if bundle is None else bundle.entry,
            workflow_export=None if bundle is None else bundle.workflow_name,
            config=None if changes == "{}" else changes,
            changed_files=changed,
        ),
    )
    if outcome is ResumeOutcome.ACTIVE:
        return {"runId": run_id, "status": RunStatus.RUNNING}
    if outcome is ResumeOutcome.RESUMED:
        exchange.services.metrics.runs_resumed.inc()
        exchange.hint_due(queue)
        exchange.hint_events(run_id)
    return {"runId": run_id}


async def _find_bundle(
    exchange: Exchange, run_id: RunId, workflow_path: str | None
) -> SourceBundle | None:
    """Read the source that a resume names; None: the run keeps its stored source.

    Clients repeat what the run was started with in every resume: if that file is gone, the stored source is meant. Raises
    SourceError for any other file, or another workflow of that file.
    """
    if workflow_path is None:
        return None
    try:
        return await exchange.database.sources.read(workflow_path)
    except SourceNotFound:
        stored = await find_run_source(exchange.database.pool, run_id)
        if stored is not None and not _names_own(stored, workflow_path):
            raise
        return None


def _names_own(stored: RunSource, workflow_path: str) -> bool:
    """Say whether a path names the file that a run has, and no other workflow than the run's."""
    path, name = split_reference(workflow_path)
    if json.loads(stored.bundle)["entry"] != beneath(path):
        return False
    return name is None or name == stored.workflow_export


async def _compare(
    exchange: Exchange, run_id: RunId, bundle: SourceBundle
) -> tuple[SourceBundle, str | None]:
    """Return the workflow that a resume means, and which files of its source have changed, as JSON.

    If only the run's own file is named, its own workflow is meant. Raises SourceError for another one than the run has that
    cannot be loaded: a parked run would fail of it.
    """
    stored = await find_run_source(exchange.database.pool, run_id)
    if stored is None:
        return bundle, None
    if bundle.workflow_name is None and json.loads(stored.bundle)["entry"] == bundle.entry:
        bundle = replace(bundle, workflow_name=stored.workflow_export)
    chosen = (bundle.source_hash, bundle.workflow_name)
    if chosen != (stored.source_hash, stored.workflow_export):
        _refuse_unloadable(await exchange.database.sources.describe(bundle))
    return bundle, _changed_files(bundle, stored)


def _changed_files(bundle: SourceBundle, stored: RunSource) -> str | None:
    if stored.source_hash == bundle.source_hash:
        return None
    before = json.loads(stored.bundle)["modules"]
    names = {*before, *bundle.modules}
    changed = sorted(name for name in names if before.get(name) != bundle.modules.get(name))
    return json.dumps(changed, ensure_ascii=False)


async def _read_source(
    exchange: Exchange, workflow_path: str
) -> tuple[SourceBundle, KnownWorkflow | None]:
    """Read a version, store it, and return what is known about it; raises SourceError."""
    sources = exchange.database.sources
    bundle = await sources.read(workflow_path)
    await sources.keep(bundle)
    known = await sources.describe(bundle)
    if known is None and may_name_database(bundle):
        raise NoWorker
    _refuse_unloadable(known)
    return bundle, known


def _refuse_unloadable(known: KnownWorkflow | None) -> None:
    if known is not None and known.row.error is not None:
        raise SourceError(known.row.error)


def _build_start(
    exchange: Exchange,
    run_id: RunId,
    bundle: SourceBundle,
    known: KnownWorkflow | None,
    body: StartBody,
) -> RunStart:
    name = (known.row.workflow_name if known else None) or PurePosixPath(bundle.entry).stem
    head, tail = event_parts(EventType.RUN_STARTED, Envelope.of(run_id, name), {})
    return RunStart(
        run_id=run_id,
        workflow_name=name,
        workflow_path=bundle.entry,
        workflow_export=bundle.workflow_name,
        source_hash=bundle.source_hash,
        input=write_json(body.input or {}),
        config=write_config(body.config),
        auth=_auth(exchange.credential),
        trace_context=exchange.trace_context,
        parent_run_id=None,
        queue=exchange.services.settings.queue_override
        or (known.row.queue if known else None)
        or DEFAULT_QUEUE,
        priority=(body.config and body.config.priority) or 0,
        head=head,
        tail=tail,
        is_solo=known is not None and known.row.isolation == Isolation.PROCESS,
    )


def _auth(credential: Credential) -> str | None:
    if credential.scopes is None:
        return None
    return write_json({"user": credential.user, "scopes": list(credential.scopes)})


def _shown_config(row: RunRow) -> str:
    if not row.priority:
        return row.config
    return write_json({**orjson.loads(row.config), "priority": row.priority})


def _read_key(exchange: Exchange, body: StartBody, headers: StartHeaders) -> IdempotencyKey | None:
    if headers.idempotency_key is None:
        return None
    key = headers.idempotency_key.strip('"')
    scoped = f"{exchange.credential.user or ''}\n{key}"
    return IdempotencyKey(hashlib.sha256(scoped.encode()).hexdigest(), _hash_request(body))


def _hash_request(body: StartBody) -> str:
    """Hash the meaning of a request, not its spelling: an explicit default equals an omitted field."""
    config = {} if body.config is None else body.config.model_dump(by_alias=True, exclude_none=True)
    chosen = {"runId": body.run_id, "config": {name: each for name, each in config.items() if each}}
    asked = {
        "workflowPath": body.workflow_path,
        # Always, as `smithers.client` sends it.
        "input": body.input or {},
        **{name: each for name, each in chosen.items() if each},
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
