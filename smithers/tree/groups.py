"""The elements that contain others, and their children."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from smithers.errors import InvalidTree
from smithers.tree.budgets import Budget
from smithers.tree.checks import check_choice, check_count, check_id, check_truth
from smithers.tree.policies import OnFailure, OnFailureWord, OnMaxReached, OnMaxReachedWord
from smithers.tree.reprs import show_children, show_id
from smithers.tree.runs import ContinueAsNew, Subflow
from smithers.tree.tasks import Task
from smithers.tree.waits import Approval, HumanTask, Signal, Timer


class Sequence:
    """Children one after another."""

    __slots__ = ("children",)

    def __init__(self, *children: "Child") -> None:
        self.children = collect(children)

    __repr__ = show_children


class Parallel:
    """Children concurrently, at most `max_concurrency` at a time."""

    __slots__ = ("children", "max_concurrency")

    def __init__(self, *children: "Child", max_concurrency: int | None = None) -> None:
        if max_concurrency is not None:
            check_count(max_concurrency, "Parallel(max_concurrency=...)", least=1)
        self.children = collect(children)
        self.max_concurrency = max_concurrency

    __repr__ = show_children


class Branch:
    """One of two; the tasks of the other are recorded as skipped."""

    __slots__ = ("otherwise", "then", "when")

    def __init__(self, when: object, then: "Child", otherwise: "Child" = None) -> None:
        self.when = check_truth(when, "Branch(when=...)")
        self.then = collect((then,))
        self.otherwise = collect((otherwise,))

    def __repr__(self) -> str:
        return f"Branch({self.when}, {list(self.then)}, {list(self.otherwise)})"


class Loop:
    """Repeats its children, each time in a new iteration, until `until` is true in the render after an iteration."""

    __slots__ = ("children", "id", "max_iterations", "on_max_reached", "until")

    def __init__(
        self,
        id: str,
        *children: "Child",
        until: object = False,
        max_iterations: int = 5,
        on_max_reached: OnMaxReached | OnMaxReachedWord = OnMaxReached.RETURN_LAST,
    ) -> None:
        """`until` is read at each render: a value, or a callable without arguments."""
        self.id = check_id(id, "Loop")
        if "," in id or "=" in id:
            raise InvalidTree(
                f"Loop({id!r}): commas and equals signs are kept for the paths of loops"
            )
        self.children = collect(children)
        self.until = check_truth(until, f"Loop({id!r}, until=...)")
        self.max_iterations = check_count(
            max_iterations, f"Loop({id!r}, max_iterations=...)", least=1
        )
        self.on_max_reached = check_choice(
            OnMaxReached, on_max_reached, f"Loop({id!r}, on_max_reached=...)"
        )

    __repr__ = show_id


class Try:
    """Children one after another; if one fails, `catch`; at the end, whatever happened, `finally_`."""

    __slots__ = ("body", "catch", "finally_", "id")

    def __init__(
        self, id: str, *body: "Child", catch: "Child" = None, finally_: "Child" = None
    ) -> None:
        """With `catch` the run goes on past the failure, unless `catch` fails itself; `ctx.error(id)` says what it was."""
        self.id = check_id(id, "Try")
        self.body = collect(body)
        self.catch = collect((catch,))
        self.finally_ = collect((finally_,))

    __repr__ = show_id


class Step:
    """A saga's action, and its undo."""

    __slots__ = ("action", "undo")

    def __init__(self, action: "Child", undo: "Child" = None) -> None:
        self.action = collect((action,))
        self.undo = collect((undo,))

    def __repr__(self) -> str:
        return f"Step({list(self.action)}, {list(self.undo)})"


class Saga:
    """Actions one after another; if one fails, those that are done are undone, the last first."""

    __slots__ = ("id", "on_failure", "steps")

    def __init__(
        self, id: str, *steps: Step, on_failure: OnFailure | OnFailureWord = OnFailure.FAIL
    ) -> None:
        """An action is done when one of its nodes has finished. After the undoing the saga fails, or the run goes on."""
        self.id = check_id(id, "Saga")
        for step in steps:
            if not isinstance(step, Step):
                raise InvalidTree(f"Saga({id!r}) is made of Step, not of {type(step).__name__}")
        self.steps = steps
        self.on_failure = check_choice(OnFailure, on_failure, f"Saga({id!r}, on_failure=...)")

    __repr__ = show_id


# A budget is not a child: it is outside its workflow's tree.
Leaf = (
    Task[Any]
    | Approval
    | HumanTask[Any]
    | Signal[Any]
    | Timer
    | Subflow[Any]
    | ContinueAsNew
    | Budget
)
Group = Sequence | Parallel | Branch | Loop | Try | Saga
Element = Leaf | Group
Child = Element | None | bool | Iterable["Child"]

LEAVES: Final = (Task, Approval, HumanTask, Signal, Timer, Subflow, ContinueAsNew)
GROUPS: Final = (Sequence, Parallel, Branch, Loop, Try, Saga)
ELEMENTS: Final = LEAVES + GROUPS


def collect(children: Iterable[Child]) -> tuple[Element, ...]:
    """Flatten what an author wrote as children; raise InvalidTree for anything but elements."""
    found: list[Element] = []
    for child in children:
        given: object = child
        if given is None or isinstance(given, bool):
            continue
        if isinstance(given, ELEMENTS):
            found.append(given)
        elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
            found.extend(collect(given))
        else:
            raise InvalidTree(
                f"a tree is made of Task, Sequence and the like, not of {type(given).__name__}"
            )
    return tuple(found)
