"""The one table of routes: what is not here does not exist, and nothing is here without who may use it."""

from typing import Final

from gateway.access import Scope
from gateway.approvals import get_approvals
from gateway.frames import get_frames
from gateway.health import get_health, get_metrics, get_ready
from gateway.nodes import get_node, get_nodes, post_approve, post_deny
from gateway.routing import OPEN, Route
from gateway.runs import get_run, get_runs, post_cancel, post_resume, post_run
from gateway.signals import post_signal
from gateway.streams import get_events
from gateway.why import get_why

ROUTES: Final = (
    Route("GET", "/health", OPEN, get_health),
    Route("GET", "/ready", OPEN, get_ready),
    Route("GET", "/metrics", Scope.METRICS_READ, get_metrics),
    Route("POST", "/v1/runs", Scope.RUNS_WRITE, post_run),
    Route("GET", "/v1/runs", Scope.RUNS_READ, get_runs),
    Route("GET", "/v1/runs/:runId", Scope.RUNS_READ, get_run),
    Route("POST", "/v1/runs/:runId/resume", Scope.RUNS_WRITE, post_resume),
    Route("POST", "/v1/runs/:runId/cancel", Scope.RUNS_WRITE, post_cancel),
    Route("GET", "/v1/runs/:runId/events", Scope.RUNS_READ, get_events),
    Route("GET", "/v1/runs/:runId/why", Scope.RUNS_READ, get_why),
    Route("GET", "/v1/runs/:runId/frames", Scope.RUNS_READ, get_frames),
    Route("GET", "/v1/runs/:runId/nodes", Scope.RUNS_READ, get_nodes),
    Route("GET", "/v1/runs/:runId/nodes/:nodeId", Scope.RUNS_READ, get_node),
    Route("POST", "/v1/runs/:runId/nodes/:nodeId/approve", Scope.APPROVALS_DECIDE, post_approve),
    Route("POST", "/v1/runs/:runId/nodes/:nodeId/deny", Scope.APPROVALS_DECIDE, post_deny),
    Route("POST", "/v1/runs/:runId/signals/:signalName", Scope.SIGNALS_SEND, post_signal),
    Route("POST", "/signal/:runId/:signalName", Scope.SIGNALS_SEND, post_signal),
    Route("GET", "/v1/approvals", Scope.RUNS_READ, get_approvals),
    Route("GET", "/v1/approval/list", Scope.RUNS_READ, get_approvals),
    Route("GET", "/approval/list", Scope.RUNS_READ, get_approvals),
    Route("GET", "/approvals", Scope.RUNS_READ, get_approvals),
)
