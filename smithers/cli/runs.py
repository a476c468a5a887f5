"""Inspect and control runs, over HTTP: `ps`, `inspect`, `why`, `events`, `frames`, `cancel`, `resume`."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smithers.cli import options as o
from smithers.cli.console import (
    CommandFailed,
    Exit,
    note,
    print_fields,
    print_json,
    print_line,
    print_table,
)
from smithers.states import RunStatus

if TYPE_CHECKING:
    from smithers.client import Client, Event, Frame, Node, Run, RunSummary, Why

MAX_CELL_CHARS: Final = 60
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")]


def ps(
    *,
    status: Annotated[
        RunStatus | None,
        typer.Option("--status", metavar="STATUS", help=f"Only {', '.join(RunStatus)}."),
    ] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", metavar="NAME", help="Only runs of this workflow.")
    ] = None,
    limit: Limit = 50,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """List runs, newest first."""
    with o.open_client(server, token) as client:
        runs = client.list_runs(status=status, workflow=workflow, limit=limit)
    if as_json:
        print_json([run.to_wire() for run in runs])
        return
    print_table(
        ("RUN", "WORKFLOW", "STATUS", "AGE", "TOOK", "BLOCKED BY"),
        (_row(run, time.time() * 1000) for run in runs),
        empty="no runs",
    )


def inspect(
    run: o.RunArgument,
    *,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Show a run and its nodes, and a failed run's traceback, which requires the scope `admin`."""
    with o.open_client(server, token) as client:
        found = client.get(run)
        nodes = client.list_nodes(run)
    if as_json:
        print_json({**found.to_wire(), "nodes": [node.to_wire() for node in nodes]})
        return
    print_fields(_describe(found))
    print_line("")
    # In the order in which they began, or ended without that; the others last, as the server lists them.
    began = sorted(nodes, key=lambda node: node.started_at_ms or node.finished_at_ms or math.inf)
    print_table(
        ("NODE", "STATE", "ATTEMPT", "TOOK", "OUTPUT"),
        (_node_row(node) for node in began),
        empty="no nodes yet",
    )
    if found.error and "traceback" in found.error:
        print_line("")
        print_line(found.error["traceback"].rstrip())


def why(
    run: o.RunArgument,
    *,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Say why a run does not progress, and what would unblock it."""
    with o.open_client(server, token) as client:
        found = client.why(run)
        has_list = not as_json and _asks(found) and _lists_approvals(client)
    if as_json:
        print_json(found.to_wire())
        return
    for reason in found.reasons:
        since = f" (since {reason.since})" if reason.since else ""
        print_line(f"{reason.text}{since}")
        if reason.unblock:
            command = reason.unblock["command"]
            is_asked = "request" in reason.unblock  # others, like `smithers up`, ask no server
            print_line(f"  {o.at_server(command, server) if is_asked else command}")
    if has_list:
        note(f"its questions in full: {o.at_server(f'smithers approvals {run}', server)}")


def _asks(why: "Why") -> bool:
    return any(reason.kind == "approval" for reason in why.reasons)


def _lists_approvals(client: "Client") -> bool:
    """Say whether the server lists questions: one that was started with --no-database does not."""
    from smithers.client import BadRequest

    try:
        client.list_approvals()
    except BadRequest as error:
        if error.code != o.NO_LISTS:
            raise
        return False
    return True


def events(
    run: o.RunArgument,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow until the run has ended.")
    ] = False,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NODE", help="Only of this node; repeatable."),
    ] = None,
    type_names: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only of this type; repeatable."),
    ] = None,
    after_seq: Annotated[
        int, typer.Option("--after", metavar="SEQ", min=-1, help="Only those after this one.")
    ] = -1,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Print a run's events; with --json each on a line."""
    with o.open_client(server, token) as client:
        read = client.stream if follow else client.list_events
        for event in _choose(read(run, after_seq=after_seq), node, type_names):
            if as_json:
                print_json({"id": event.seq, **event.to_wire()}, is_line=True)
            else:
                print_line(event_line(event))


def frames(
    run: o.RunArgument,
    *,
    limit: Limit = 20,
    as_json: o.AsJson = False,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """List a run's frames, newest first: each render whose tree changed."""
    with o.open_client(server, token) as client:
        found = client.list_frames(run, limit=limit)
    if as_json:
        print_json([frame.to_wire() for frame in found])
        return
    print_table(
        ("FRAME", "AT", "NODES", "HASH"), (_frame_row(frame) for frame in found), empty="no frames"
    )


def cancel(run: o.RunArgument, *, server: o.ServerUrl = None, token: o.Token = None) -> None:
    """Cancel a run; running attempts are stopped."""
    with o.open_client(server, token) as client:
        client.cancel(run)
    note(f"run {run} is cancelled, or will be as soon as its worker is notified")


def resume(
    run: o.RunArgument,
    *,
    workflow_path: Annotated[
        str | None,
        typer.Option(
            "--workflow", metavar="PATH", help="Resume with PATH, or PATH:NAME, as it is now."
        ),
    ] = None,
    server: o.ServerUrl = None,
    token: o.Token = None,
) -> None:
    """Resume a failed or cancelled run; finished tasks do not run again. With --workflow also one that waits."""
    with o.open_client(server, token) as client:
        before = client.get(run).status
        if before in {RunStatus.FINISHED, RunStatus.CONTINUED}:
            raise CommandFailed(f"run {run} is {before}: nothing is left to do")
        client.resume(run, workflow_path=workflow_path)
    if workflow_path is not None or before in {RunStatus.FAILED, RunStatus.CANCELLED}:
        command = o.at_server(f"smithers events {run} -f", server)
        note(f"run {run} is resumed; follow it with: {command}")
    else:
        command = o.at_server(f"smithers why {run}", server)
        note(f"run {run} is {before}: `{command}` says what it waits for")


def _choose(
    events: Iterable["Event"], nodes: list[str] | None, type_names: list[str] | None
) -> Iterator["Event"]:
    if type_names:
        from smithers.events import EventType

        unknown = sorted(set(type_names) - set(EventType))
        if unknown:
            raise CommandFailed(
                f"there is no event type {', '.join(unknown)}",
                hint=f"the types are {', '.join(EventType)}",
                exit_code=Exit.USAGE,
            )
    for event in events:
        if (not nodes or event.node_id in nodes) and (not type_names or event.type in type_names):
            yield event


def _row(run: "RunSummary", now_ms: float) -> tuple[str, ...]:
    blocked = (run.run_state.blocked if run.run_state else None) or {}
    return (
        run.run_id,
        run.workflow_name,
        run.status,
        span((now_ms - run.created_at_ms) / 1000),
        _took(run.started_at_ms, run.finished_at_ms),
        f"{blocked['kind']} {blocked.get('nodeId')}" if blocked else "",
    )


def _describe(run: "Run") -> Iterator[tuple[str, str]]:
    yield "run", run.run_id
    yield "workflow", run.workflow_name
    yield "status", run.status
    if run.started_at_ms is not None:
        yield "started", moment(run.started_at_ms)
        yield "took", _took(run.started_at_ms, run.finished_at_ms) or "(not ended)"
    yield "input", _short(run.input, 400)
    if run.error:
        yield "error", f"{run.error.get('name')}: {run.error.get('message')}"
    if run.output is not None:
        yield "output", _short(run.output, 400)
    yield "nodes", ", ".join(f"{count} {state}" for state, count in run.summary.items()) or "none"


def _node_row(node: "Node") -> tuple[str, ...]:
    name = node.node_id if node.iteration == 0 else f"{node.node_id} · {node.iteration + 1}"
    error = node.error or {}
    told = f"{error.get('name')}: {error.get('message')}" if error else _short(node.output)
    attempt = str(node.attempt) if node.attempt else ""
    took = _took(node.started_at_ms, node.finished_at_ms)
    return name, node.state, attempt, took, "" if told == "null" else told[:MAX_CELL_CHARS]


def event_line(event: "Event") -> str:
    """Format an event as a line for a person."""
    node = event.node_id or ""
    if event.iteration:
        node += f" · {event.iteration + 1}"
    known = {"type", "runId", "timestampMs", "nodeId", "iteration", "correlation"}
    rest = {name: value for name, value in event.to_wire().items() if name not in known}
    told = "  ".join(f"{name}={_short(value, 200)}" for name, value in rest.items())
    return f"{event.seq:>5}  {clock(event.timestamp_ms)}  {event.type:<20}  {node:<24}  {told}".rstrip()


def _frame_row(frame: "Frame") -> tuple[str, ...]:
    at = clock(frame.created_at_ms)
    return str(frame.frame_no), at, str(frame.xml_json.count('"nodeId"')), frame.xml_hash[:12]


def _short(value: Any, limit: int = MAX_CELL_CHARS) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _took(began_ms: int | None, ended_ms: int | None) -> str:
    return "" if began_ms is None or ended_ms is None else span((ended_ms - began_ms) / 1000)


def span(duration_s: float) -> str:
    """Format a duration in suitable units."""
    if duration_s < 10:
        return f"{max(duration_s, 0):.2f} s"
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    minutes, hours = duration_s / 60, duration_s / 3600
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def moment(ms: int) -> str:
    """Format a moment in this host's time zone."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(ms: int) -> str:
    """Format a time of day, to the millisecond."""
    at = datetime.fromtimestamp(ms / 1000, UTC).astimezone()
    return at.strftime("%H:%M:%S.") + f"{ms % 1000:03d}"
