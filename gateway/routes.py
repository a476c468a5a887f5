"""The one table of routes: it is complete, and every route has a scope.

A route's parameters and answer are its handler's signature (see routing); its refusals are listed here. A test compares
this table with /openapi.json.
"""

from typing import Final

from gateway.access import Scope
from gateway.approvals import get_approvals
from gateway.documentation import Documentation
from gateway.errors import DbNotConfigured, NotReady, NoWorker, RunIdRequired, TooManyRequests
from gateway.forms import post_answer
from gateway.frames import get_frames
from gateway.health import get_health, get_metrics, get_ready
from gateway.nodes import get_node, get_nodes, post_approve, post_deny
from gateway.routing import OPEN, Route
from gateway.runs import get_run, get_runs, post_cancel, post_resume, post_run
from gateway.signals import post_signal
from gateway.streams import get_events, post_stream_token
from gateway.why import get_why
from gateway.workflows import get_workflows
from smithers.source.errors import OutsideRoot, SourceError
from smithers.store.refusals import (
    DecisionMisfit,
    FormMisfit,
    KeyReused,
    NodeNotFound,
    NodeNotWaiting,
    NotAllowed,
    NothingToResume,
    RunExists,
    RunNotActive,
    RunNotFound,
)

_RESUMING: Final = (NothingToResume, RunNotActive, SourceError, OutsideRoot)
_STARTING: Final = (*_RESUMING, RunIdRequired, RunExists, KeyReused, NoWorker)
_LISTING: Final = (DbNotConfigured,)
_OF_ACTIVE_RUN: Final = (RunNotFound, RunNotActive)
_ANSWERING: Final = (NodeNotFound, NodeNotWaiting, NotAllowed)
_DECIDING: Final = (*_ANSWERING, DecisionMisfit)

_TABLE: Final = (
    Route("GET", "/health", OPEN, get_health),
    Route("GET", "/ready", OPEN, get_ready, (NotReady,)),
    Route("GET", "/metrics", Scope.METRICS_READ, get_metrics),
    Route("POST", "/v1/runs", Scope.RUNS_WRITE, post_run, _STARTING),
    Route("GET", "/v1/runs", Scope.RUNS_READ, get_runs, _LISTING),
    Route("GET", "/v1/runs/:runId", Scope.RUNS_READ, get_run, (RunNotFound,)),
    Route("POST", "/v1/runs/:runId/resume", Scope.RUNS_WRITE, post_resume, _RESUMING),
    Route("POST", "/v1/runs/:runId/cancel", Scope.RUNS_WRITE, post_cancel, _OF_ACTIVE_RUN),
    Route(
        "GET",
        "/v1/runs/:runId/events",
        Scope.RUNS_READ,
        get_events,
        (RunNotFound, TooManyRequests),
        takes_stream_token=True,
    ),
    Route(
        "POST", "/v1/runs/:runId/events/token", Scope.RUNS_READ, post_stream_token, (RunNotFound,)
    ),
    Route("GET", "/v1/runs/:runId/why", Scope.RUNS_READ, get_why, (RunNotFound,)),
    Route("GET", "/v1/runs/:runId/frames", Scope.RUNS_READ, get_frames, (RunNotFound,)),
    Route("GET", "/v1/runs/:runId/nodes", Scope.RUNS_READ, get_nodes, (RunNotFound,)),
    Route("GET", "/v1/runs/:runId/nodes/:nodeId", Scope.RUNS_READ, get_node, (NodeNotFound,)),
    Route(
        "POST",
        "/v1/runs/:runId/nodes/:nodeId/approve",
        Scope.APPROVALS_DECIDE,
        post_approve,
        _DECIDING,
    ),
    Route(
        "POST", "/v1/runs/:runId/nodes/:nodeId/deny", Scope.APPROVALS_DECIDE, post_deny, _DECIDING
    ),
    Route(
        "POST",
        "/v1/runs/:runId/nodes/:nodeId/answer",
        Scope.APPROVALS_DECIDE,
        post_answer,
        (*_ANSWERING, FormMisfit),
    ),
    Route(
        "POST",
        "/v1/runs/:runId/signals/:signalName",
        Scope.SIGNALS_SEND,
        post_signal,
        _OF_ACTIVE_RUN,
    ),
    Route("POST", "/signal/:runId/:signalName", Scope.SIGNALS_SEND, post_signal, _OF_ACTIVE_RUN),
    Route("GET", "/v1/workflows", Scope.RUNS_READ, get_workflows, _LISTING),
    Route("GET", "/v1/approvals", Scope.RUNS_READ, get_approvals, _LISTING),
    Route("GET", "/v1/approval/list", Scope.RUNS_READ, get_approvals, _LISTING),
    Route("GET", "/approval/list", Scope.RUNS_READ, get_approvals, _LISTING),
    Route("GET", "/approvals", Scope.RUNS_READ, get_approvals, _LISTING),
)

ROUTES: Final = Documentation(_TABLE).routes
