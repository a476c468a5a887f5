"""Reports of attempts to their run's executor, and how they are applied to the run."""

import asyncio
from typing import NamedTuple

from smithers.engine import reports
from smithers.engine.facts import NodeKey, Problem
from smithers.engine.progress import Progress
from smithers.engine.turn import CachedOutput, TokenUsage, ToolCall


class Finished(NamedTuple):
    """An attempt returned; `output` is JSON text."""

    key: NodeKey
    attempt: int
    output: str
    cached: CachedOutput | None = None  # for other nodes that would do the same


class Failed(NamedTuple):
    """An attempt raised, took too long, or returned a value that cannot be stored."""

    key: NodeKey
    attempt: int
    problem: Problem


class Aborted(NamedTuple):
    """An attempt was stopped on purpose."""

    key: NodeKey
    attempt: int
    reason: str


class Parked(NamedTuple):
    """An attempt stopped before a question to a model: the run's budget is spent."""

    key: NodeKey
    attempt: int
    took_ms: int  # since it was last counted


class Printed(NamedTuple):
    """A body printed."""

    key: NodeKey
    attempt: int
    text: str
    stream: str


class Beaten(NamedTuple):
    """A body reported its progress; `data` is JSON text."""

    key: NodeKey
    attempt: int
    data: str


class Called(NamedTuple):
    """A body called a tool, or the call has ended."""

    key: NodeKey
    attempt: int
    call: ToolCall
    kept: asyncio.Future[None] | None  # completed when the call's start is committed


class Used(NamedTuple):
    """A model has used tokens."""

    key: NodeKey
    attempt: int
    usage: TokenUsage
    took_ms: int  # since the attempt was last counted


Happening = Finished | Failed | Aborted | Parked | Printed | Beaten | Called | Used


def apply_report(run: Progress, happening: Happening, now_ms: int) -> None:
    """Apply a report to a run."""
    match happening:
        case Finished(key, _, output, cached):
            reports.finish_attempt(run, key, output, cached)
        case Failed(key, _, problem):
            reports.fail_attempt(run, key, problem, now_ms)
        case Aborted(key, _, reason):
            reports.abort_attempt(run, key, reason)
        case Parked(key, _, took_ms):
            reports.park_attempt(run, key, took_ms)
        case Printed(key, attempt, text, stream):
            reports.record_output(run, key, attempt, text, stream)
        case Beaten(key, attempt, data):
            reports.record_heartbeat(run, key, attempt, data)
        case Called(key, attempt, call, _):
            reports.record_tool_call(run, key, attempt, call)
        case Used(key, attempt, usage, took_ms):
            reports.record_usage(run, key, attempt, usage, took_ms)
