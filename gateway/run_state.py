"""Derive a run's state as Smithers' clients read it: `runState`. Pure."""

import json
from datetime import UTC, datetime
from typing import assert_never

from gateway.responses import Blocked, LifeState, RunState
from smithers.states import RunStatus
from smithers.store.reads import OpenWait, RunLife


def run_state(life: RunLife) -> RunState:
    """Build `{runId, state, computedAt, blocked?, unhealthy?}`."""
    state: RunState = {
        "runId": life.run_id,
        "state": _state(life),
        "computedAt": iso(life.now_ms),
    }
    if life.wait is not None and (blocked := _blocked(life.status, life.wait)) is not None:
        state["blocked"] = blocked
    if life.is_stale and life.heartbeat_ms is not None and not life.status.is_terminal:
        state["unhealthy"] = {
            "kind": "engine-heartbeat-stale",
            "lastHeartbeatAt": iso(life.heartbeat_ms),
        }
    return state


def _state(life: RunLife) -> LifeState:
    match life.status:
        case RunStatus.QUEUED | RunStatus.RUNNING:
            if life.owner_id is not None:
                return LifeState.STALE if life.is_stale else LifeState.RUNNING
            is_lost = life.lost_heartbeat_ms is not None
            return LifeState.RECOVERING if is_lost else LifeState.RUNNING
        case RunStatus.WAITING_APPROVAL | RunStatus.WAITING_EVENT | RunStatus.WAITING_TIMER:
            return LifeState(life.status.value)
        case RunStatus.FINISHED | RunStatus.CONTINUED:
            return LifeState.SUCCEEDED
        case RunStatus.FAILED | RunStatus.CANCELLED:
            return LifeState(life.status.value)
        case _:
            assert_never(life.status)


def _blocked(status: RunStatus, wait: OpenWait) -> Blocked | None:
    if status is RunStatus.WAITING_APPROVAL:
        requested = None if wait.requested_ms is None else iso(wait.requested_ms)
        return {"kind": "approval", "nodeId": wait.node_id, "requestedAt": requested}
    if status is RunStatus.WAITING_EVENT:
        said = json.loads(wait.wait) if wait.wait else {}
        key = said.get("correlationId") or said.get("signalName")
        return {"kind": "event", "nodeId": wait.node_id, "correlationKey": key}
    if status is RunStatus.WAITING_TIMER:
        wake = None if wait.due_ms is None else iso(wait.due_ms)
        return {"kind": "timer", "nodeId": wait.node_id, "wakeAt": wake}
    return None


def iso(ms: int) -> str:
    """Format milliseconds since 1970 as ISO 8601."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
