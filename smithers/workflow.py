"""Make a builder function a workflow."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload

from pydantic import BaseModel

from smithers.context import Context
from smithers.durations import Duration, seconds
from smithers.errors import InvalidTree
from smithers.tree import Budget, Child, Isolation, IsolationWord
from smithers.tree.checks import check_choice, check_kind, check_word, check_workflow_name

Input = TypeVar("Input", bound=BaseModel)
Builder = Callable[[Context[Any]], Child]

RENDER_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow(Generic[Input]):
    """A builder, and what the server must know about it before a run starts."""

    name: str
    builder: Builder
    input_model: type[Input] | None = None
    output_node: str | None = None  # the node whose output is the run's; None: the last task
    queue: str | None = None
    isolation: Isolation | IsolationWord | None = None
    database: str | None = None  # the environment variable with its URL
    budget: Budget | None = None  # how much a run's agents may use
    render_timeout_s: float = RENDER_TIMEOUT_S

    def __post_init__(self) -> None:
        """Raise InvalidTree for an impossible name or queue, an unknown isolation, or an invalid budget or duration."""
        _refuse_async(self.builder)
        check_workflow_name(self.name)
        check_word(self.queue, f"@workflow(queue=...) of {self.name!r}")
        if self.isolation is not None:
            check_choice(Isolation, self.isolation, f"@workflow(isolation=...) of {self.name!r}")
        if self.budget is not None:
            check_kind(Budget, self.budget, f"@workflow(budget=...) of {self.name!r}")
        # setitimer(0) would mean: no limit.
        if self.render_timeout_s == 0:
            raise InvalidTree(f"@workflow(render_timeout=0) of {self.name!r} would never render")

    @property
    def is_isolated(self) -> bool:
        """Whether each run has a worker process of its own."""
        return self.isolation == Isolation.PROCESS

    def __call__(self, ctx: Context[Input]) -> Child:
        """Call the builder: return the tree for these facts."""
        return self.builder(ctx)


@overload
def workflow(builder: Callable[[Context[Any]], Child], /) -> Workflow[Any]: ...
@overload
def workflow(
    *,
    input: type[Input] | None = None,
    name: str | None = None,
    output: str | None = None,
    queue: str | None = None,
    isolation: Isolation | IsolationWord | None = None,
    database: str | None = None,
    budget: Budget | None = None,
    render_timeout: Duration = RENDER_TIMEOUT_S,
) -> Callable[[Callable[[Context[Input]], Child]], Workflow[Input]]: ...
def workflow(
    builder: Callable[..., Child] | None = None,
    /,
    *,
    input: type[BaseModel] | None = None,
    name: str | None = None,
    output: str | None = None,
    queue: str | None = None,
    isolation: Isolation | IsolationWord | None = None,
    database: str | None = None,
    budget: Budget | None = None,
    render_timeout: Duration = RENDER_TIMEOUT_S,
) -> Any:
    """Make a builder a workflow; usable with or without options.

    `input`: the pydantic model of a run's input; without one `ctx.input` is a plain mapping. `name`: default, the function's
    name in kebab case. `output`: the id of the node whose output is the run's; default, the last task's. `queue`: which
    workers may run it, a word of 1 to 200 characters. `isolation="process"`: each run in a worker process of its own.
    `database`: the environment variable that holds the URL of the workflow's own database. `budget`: how much a run's agents
    may use before a person is asked. `render_timeout`: how long one render may take.

    Raises InvalidTree for an async function, and for any other queue, isolation, budget or duration.
    """

    def make(function: Callable[..., Child]) -> Workflow[Any]:
        return Workflow(
            name=name or _kebab_case(function.__name__),
            builder=function,
            input_model=input,
            output_node=output,
            queue=queue,
            isolation=isolation,
            database=database,
            budget=budget,
            render_timeout_s=seconds(render_timeout, "@workflow(render_timeout=...)"),
        )

    return make if builder is None else make(builder)


def _refuse_async(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function):
        raise InvalidTree(
            f"the builder {function.__name__} is async: a builder is a plain function that returns a tree; what takes time "
            "belongs in tasks"
        )


def _kebab_case(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name)
    return spaced.replace("_", "-").strip("-").lower()
