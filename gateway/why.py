"""Say why a run does not progress: what it waits for, since when, and the command that would unblock it."""

import shlex
from pathlib import Path
from typing import Any, Final, assert_never, cast
from urllib.parse import quote

import orjson

from gateway.exchange import Exchange
from gateway.responses import Reason, ReasonKind, WhyAnswer
from gateway.run_state import iso
from smithers.defaults import HEARTBEAT_LIMIT_S
from smithers.ids import RunId
from smithers.states import NodeState, RunStatus
from smithers.store.refusals import RunNotFound
from smithers.store.whys import OpenNode, WhyRow, find_why
from smithers.texts import command_line, counted

# By kind of question: what the person must do, and the command for it.
_ASKED: Final = {
    "approve": "decide",
    "select": "choose an option",
    "rank": "rank the options",
    "form": "fill in a form",
}
_ANSWERS: Final = {
    "approve": ("approve", ()),
    "select": ("approve", ("--select", "OPTION")),
    "rank": ("approve", ("--rank", "A,B")),
    "form": ("answer", ("--value", "JSON")),
}
SILENT_OWNER_MS: Final = 5_000  # heartbeats are written once a second


async def get_why(exchange: Exchange) -> WhyAnswer:
    """Say why a run does not progress, and what would unblock it."""
    run_id = exchange.run_id()
    row = await find_why(exchange.database.pool, run_id)
    if row is None:
        raise RunNotFound
    settings = exchange.services.settings
    return explain(
        run_id,
        row,
        exchange.database.name,
        data_dir=settings.data_dir,
        variables=settings.database_variables,
    )


def explain(
    run_id: RunId,
    row: WhyRow,
    database: str | None,
    *,
    data_dir: Path | None = None,
    variables: tuple[str, ...] = (),
) -> WhyAnswer:
    """Build `{runId, status, computedAt, summary, reasons}`; a reason: `{kind, text, nodeId?, since?, until?, unblock?}`.

    `database`: the workflow's own database that the row was read from; None: the server's. `data_dir`: of an embedded
    database in another place than the default. `variables`: the names of those that have a given one's URLs.
    """
    up = _up_command(run_id, row, data_dir)
    if up is not None:  # a URL may hold a password: who runs the command fills it in
        named = variables if database is None else (*variables, database)
        up = " ".join([*(f"{name}=URL" for name in named), up])
    reasons = [
        *_of_run(run_id, row, database, up),
        *(_of_node(run_id, node, row) for node in row.nodes),
    ]
    return {
        "runId": run_id,
        "status": row.status,
        "computedAt": iso(row.now_ms),
        "summary": "; ".join(reason["text"] for reason in reasons[:3]),
        "reasons": reasons,
    }


def _of_run(run_id: RunId, row: WhyRow, database: str | None, up: str | None) -> list[Reason]:
    match row.status:
        case RunStatus.FINISHED | RunStatus.CONTINUED:
            return [_reason("ended", f"the run is {row.status}: nothing is left to do")]
        case RunStatus.FAILED:
            error = orjson.loads(row.error) if row.error else {}
            text = f"the run failed: {error.get('name', 'an error')}: {error.get('message', '')}"
            if up is None:  # up takes the file as it is
                text += f" (after fixing the file, add --workflow {shlex.quote(row.workflow_reference)})"
            return [_reason("ended", text, unblock=_resume(run_id, up))]
        case RunStatus.CANCELLED:
            return [_reason("ended", "the run was cancelled", unblock=_resume(run_id, up))]
        case (
            RunStatus.QUEUED
            | RunStatus.RUNNING
            | RunStatus.WAITING_APPROVAL
            | RunStatus.WAITING_EVENT
            | RunStatus.WAITING_TIMER
        ):
            return _of_active(row, database, up)
        case _:
            assert_never(row.status)


def _of_active(row: WhyRow, database: str | None, up: str | None) -> list[Reason]:
    reasons = []
    if row.cancel_requested_ms is not None:
        since = iso(row.cancel_requested_ms)
        reasons.append(_reason("cancelling", "a cancel is under way", since=since))
    if row.database is not None:
        text = (
            f"it lives in the database {row.database!r}, for which this server has no URL: "
            f"ask a server that has the variable {row.database}; a worker needs it, too"
        )
        return [*reasons, _reason("elsewhere", text)]
    if row.is_owned:
        if row.heartbeat_ms is not None and row.now_ms - row.heartbeat_ms > SILENT_OWNER_MS:
            text = f"its worker is silent: after {HEARTBEAT_LIMIT_S} s another takes over by itself"
            reasons.append(_reason("worker-silent", text, since=iso(row.heartbeat_ms)))
        return reasons
    if row.due_ms is None or row.due_ms > row.now_ms:
        return reasons  # parked: its nodes say for what
    since = iso(row.due_ms)
    if not row.worker_count:
        reasons.append(_no_worker(row, database, up, since))
    elif row.crash_count:
        text = f"{counted(row.crash_count, 'worker')} died while running it: it waits to be tried apart from others"
        reasons.append(_reason("quarantined", text, since=since))
    else:
        text = f"it is due, and waits for room in {counted(row.worker_count, 'worker')}"
        reasons.append(_reason("queued", text, since=since))
    return reasons


def _no_worker(row: WhyRow, database: str | None, up: str | None, since: str) -> Reason:
    if row.queue.startswith("up-"):
        text = "it was started by `smithers up`, which has ended, and no other worker claims it"
        unblock = None if up is None else {"command": up}
        return _reason("no-worker", text, since=since, unblock=unblock)
    text = f"no living worker claims from queue {row.queue!r}"
    command = command_line("worker", flags=["--queue", row.queue])
    if database is not None:
        text += (
            f" of the database {database!r}: a worker does so when the variable {database} is set"
        )
        command = f"{database}=URL {command}"
    return _reason("no-worker", text, since=since, unblock={"command": command})


def _of_node(run_id: RunId, node: OpenNode, row: WhyRow) -> Reason:
    since = None if node.since_ms is None else iso(node.since_ms)
    until = None if node.due_ms is None else iso(node.due_ms)
    place = {"nodeId": node.node_id, "iteration": node.iteration}
    match node.state:
        case NodeState.WAITING_APPROVAL:
            said = orjson.loads(node.wait) if node.wait else {}
            spent = f"the agents have spent {said['spent']}: " if "spent" in said else ""
            text = f"{spent}{node.node_id} waits for a person to {_ASKED[_mode(node)]}"
            unblock = _approve(run_id, node)
            return _reason("approval", text, since=since, until=until, unblock=unblock, **place)
        case NodeState.WAITING_EVENT:
            said = orjson.loads(node.wait) if node.wait else {}
            if (child := said.get("childRunId")) is not None:
                text = f"{node.node_id} waits for its run {child} to end"
                request = f"GET /v1/runs/{quote(child, safe='')}/why"
                unblock = {"command": command_line("why", child), "request": request}
                return _reason("subflow", text, since=since, unblock=unblock, **place)
            name = said.get("signalName", node.node_id)
            correlation = said.get("correlationId")
            which = "" if correlation is None else f" with the correlation id {correlation!r}"
            text = f"{node.node_id} waits for the signal {name!r}{which}"
            unblock = _signal(run_id, name, correlation)
            return _reason("signal", text, since=since, until=until, unblock=unblock, **place)
        case NodeState.WAITING_TIMER:
            return _reason("timer", f"{node.node_id} sleeps", since=since, until=until, **place)
        case NodeState.PENDING:
            text = f"{node.node_id} failed {counted(node.attempt, 'time')}, and waits before the next attempt"
            return _reason("back-off", text, until=until, **place)
        case NodeState.IN_PROGRESS:
            return _reason("in-progress", _tell_attempt(node, row), since=since, **place)
        case NodeState.FINISHED | NodeState.FAILED | NodeState.CANCELLED | NodeState.SKIPPED:
            raise AssertionError(f"{node.node_id} is {node.state}, and so not open")
        case _:
            assert_never(node.state)


def _tell_attempt(node: OpenNode, row: WhyRow) -> str:
    """Describe an attempt; one whose run was released is no longer running."""
    if not row.is_owned and row.due_ms is not None:
        return f"{node.node_id} was stopped in attempt {node.attempt}: it is tried again when a worker claims the run"
    took_s = 0 if node.since_ms is None else (row.now_ms - node.since_ms) / 1000
    return f"{node.node_id} has been running for {took_s:.0f} s, attempt {node.attempt}"


def _reason(kind: ReasonKind, text: str, **more: Any) -> Reason:
    said = {name: value for name, value in more.items() if value is not None}
    return cast("Reason", {"kind": kind, "text": text, **said})


def _up_command(run_id: RunId, row: WhyRow, data_dir: Path | None) -> str | None:
    """Return the command that resumes a run which `smithers up` began, or a continuation of one; None for any other.

    A run that one of these has started resumes with it.
    """
    began = row.queue.removeprefix("up-")
    if began == row.queue or not (run_id == began or run_id.startswith(f"{began}+")):
        return None
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    flags = ["--run-id", run_id, "--resume", *place]
    return command_line("up", row.workflow_reference, flags=flags)


def _resume(run_id: RunId, up: str | None) -> dict[str, str]:
    if up is not None:
        return {"command": up}
    return {
        "command": command_line("resume", run_id),
        "request": f"POST /v1/runs/{quote(run_id, safe='')}/resume",
    }


def _approve(run_id: RunId, node: OpenNode) -> dict[str, str]:
    verb, more = _ANSWERS[_mode(node)]
    iteration = ("--iteration", str(node.iteration)) if node.iteration else ()
    path = f"/v1/runs/{quote(run_id, safe='')}/nodes/{quote(node.node_id, safe='')}"
    return {
        "command": command_line(verb, run_id, node.node_id, flags=[*more, *iteration]),
        "request": f"POST {path}/{verb}",
    }


def _mode(node: OpenNode) -> str:
    mode: str = (orjson.loads(node.wait) if node.wait else {}).get("mode", "approve")
    return mode


def _signal(run_id: RunId, name: str, correlation: str | None) -> dict[str, str]:
    which = () if correlation is None else ("--correlation", correlation)
    return {
        "command": command_line("signal", run_id, name, flags=which),
        "request": f"POST /v1/runs/{quote(run_id, safe='')}/signals/{quote(name, safe='')}",
    }
