"""Authors' choices: what a denial, a time-out, an exhausted loop or a failure does, and what runs share.

A choice is a member of its enum or its value: a type checker accepts both, and finds a misspelt value.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from smithers.durations import Duration, seconds
from smithers.errors import InvalidTree
from smithers.tree.checks import check_choice, check_duration, check_json


class ApprovalMode(StrEnum):
    """The kind of answer that a person gives."""

    APPROVE = "approve"  # yes or no
    SELECT = "select"  # one of the options, or no
    RANK = "rank"  # all of the options in an order, or no


ApprovalModeWord = Literal["approve", "select", "rank"]


class OnDeny(StrEnum):
    """What a denied approval does to its run."""

    FAIL = "fail"
    CONTINUE = "continue"
    SKIP = "skip"


OnDenyWord = Literal["fail", "continue", "skip"]


class OnTimeout(StrEnum):
    """What a wait that timed out does to its run."""

    FAIL = "fail"
    CONTINUE = "continue"
    SKIP = "skip"


OnTimeoutWord = Literal["fail", "continue", "skip"]


class OnFailure(StrEnum):
    """What a saga does after its undoing."""

    FAIL = "fail"
    CONTINUE = "continue"


OnFailureWord = Literal["fail", "continue"]


class OnMaxReached(StrEnum):
    """What a loop does when its iterations are used up."""

    RETURN_LAST = "return-last"
    FAIL = "fail"


OnMaxReachedWord = Literal["return-last", "fail"]


class CacheScope(StrEnum):
    """Which runs share an output."""

    RUN = "run"
    WORKFLOW = "workflow"  # the runs of all workflows of this name
    GLOBAL = "global"


CacheScopeWord = Literal["run", "workflow", "global"]


class Isolation(StrEnum):
    """What each of a workflow's runs has to itself."""

    PROCESS = "process"  # a worker process for each run


IsolationWord = Literal["process"]


class Cache:
    """When the output of an earlier execution of the same function is reused."""

    __slots__ = ("by", "scope", "ttl_s", "version")

    def __init__(
        self,
        *,
        by: Any = None,
        version: str | int = 1,
        ttl: Duration | None = None,
        scope: CacheScope | CacheScopeWord = CacheScope.WORKFLOW,
    ) -> None:
        """`by`: JSON that the output depends on, in addition to what the task `needs`. `version`: of the function.

        `ttl`: how old an output may be that this task reuses, whatever it was stored with; None: of any age.
        """
        self.by = check_json(by, "Cache(by=...)")
        self.version = str(version)
        self.ttl_s = check_duration(ttl, "Cache(ttl=...)")
        self.scope = check_choice(CacheScope, scope, "Cache(scope=...)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long to wait before the next attempt, in seconds: initial · factor^n, at most maximum.

    With jitter, between half of that and all of it.
    Jitter is derived from the run, the node and the attempt, so that a wait is the same wherever it is computed.
    """

    initial: Duration = 1
    factor: float = 2
    maximum: Duration = 60
    jitter: bool = True

    def __post_init__(self) -> None:
        """Raise InvalidTree for a pause that is not a duration, and for a factor that is not a finite number from 0."""
        seconds(self.initial, "Retry(initial=...)")
        seconds(self.maximum, "Retry(maximum=...)")
        if not 0 <= self.factor < float("inf"):
            raise InvalidTree(
                f"Retry(factor=...) must be a finite number from 0, not {self.factor!r}"
            )

    @property
    def initial_s(self) -> float:
        """The first pause."""
        return seconds(self.initial, "Retry(initial=...)")

    @property
    def maximum_s(self) -> float:
        """The longest pause."""
        return seconds(self.maximum, "Retry(maximum=...)")
