"""What attempts report to their run's executor."""

import asyncio
from dataclasses import dataclass

from smithers.engine.facts import NodeKey, Problem
from smithers.engine.turn import CachedOutput, ToolCall
from smithers.tools.toolbox import TokenUsage


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt returned; `output` is JSON text."""

    key: NodeKey
    attempt: int
    output: str
    cached: CachedOutput | None = None  # for others that would do the same


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt raised, took too long, or returned what cannot be kept."""

    key: NodeKey
    attempt: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Aborted:
    """An attempt was stopped on purpose."""

    key: NodeKey
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Printed:
    """A body printed."""

    key: NodeKey
    attempt: int
    text: str
    stream: str


@dataclass(frozen=True, slots=True)
class Beaten:
    """A body reported how far it is; `data` is JSON text."""

    key: NodeKey
    attempt: int
    data: str


@dataclass(frozen=True, slots=True)
class Called:
    """A body called a tool, or the call is over."""

    key: NodeKey
    attempt: int
    call: ToolCall
    kept: asyncio.Future[None] | None  # to be told when the call's start is in the database


@dataclass(frozen=True, slots=True)
class Used:
    """A model has used up tokens."""

    key: NodeKey
    attempt: int
    usage: TokenUsage


Happening = Finished | Failed | Aborted | Printed | Beaten | Called | Used
