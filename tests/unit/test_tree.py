"""A slip in what a builder writes is InvalidTree, whose text says what would be right; elements show what they are."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, get_args

import pytest

from smithers import (
    Approval,
    Branch,
    Budget,
    Cache,
    CacheScope,
    ContinueAsNew,
    HumanTask,
    InvalidTree,
    Isolation,
    Loop,
    Parallel,
    Retry,
    Saga,
    Sequence,
    Signal,
    SmithersError,
    Step,
    Subflow,
    Task,
    Timer,
    Workflow,
    WorkflowError,
    workflow,
)
from smithers.tree import policies


def wrong(value: Any) -> Any:
    """A value that no type checker would let pass."""
    return value


def build(_ctx: Any) -> Sequence:
    return Sequence()


async def wait() -> bool:
    return False


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        (
            lambda: Approval("a", title="?", on_deny=wrong("no")),
            "Approval('a', on_deny=...) takes 'fail' or 'continue' or 'skip', not 'no'",
        ),
        (
            lambda: Approval("a", title="?", mode=wrong("vote")),
            "Approval('a', mode=...) takes 'approve' or 'select' or 'rank', not 'vote'",
        ),
        (
            lambda: HumanTask("h", prompt="?", output=dict, on_timeout=wrong("no")),
            "HumanTask('h', on_timeout=...) takes 'fail' or 'continue' or 'skip', not 'no'",
        ),
        (
            lambda: Signal("s", on_timeout=wrong("no")),
            "Signal('s', on_timeout=...) takes 'fail' or 'continue' or 'skip', not 'no'",
        ),
        (
            lambda: Loop("l", on_max_reached=wrong("no")),
            "Loop('l', on_max_reached=...) takes 'return-last' or 'fail', not 'no'",
        ),
        (
            lambda: Saga("s", on_failure=wrong("no")),
            "Saga('s', on_failure=...) takes 'fail' or 'continue', not 'no'",
        ),
        (
            lambda: Cache(scope=wrong("x")),
            "Cache(scope=...) takes 'run' or 'workflow' or 'global', not 'x'",
        ),
        (
            lambda: Cache(by=[object()]),
            "Cache(by=...) takes JSON: Unable to serialize unknown type: <class 'object'>",
        ),
        (
            lambda: workflow(isolation=wrong("proces"))(build),
            "@workflow(isolation=...) of 'build' takes 'process', not 'proces'",
        ),
        (
            lambda: Workflow(name="w", builder=build, isolation=wrong(True)),
            "@workflow(isolation=...) of 'w' takes 'process', not True",
        ),
        (
            lambda: Task("a", 1, timeout=-1),
            "Task('a', timeout=...) must be finite and not negative, not -1",
        ),
        (
            lambda: Timer("t", duration=float("inf")),
            "Timer('t', duration=...) must be finite and not negative, not inf",
        ),
        (
            lambda: Retry(initial=-1),
            "Retry(initial=...) must be finite and not negative, not -1",
        ),
        (
            lambda: Retry(factor=-1),
            "Retry(factor=...) must be a finite number from 0, not -1",
        ),
        (
            lambda: Task("a", 1, retry=wrong(3)),
            "Task('a', retry=...) takes a Retry, not 3",
        ),
        (
            lambda: Task("a", 1, cache=wrong(True)),
            "Task('a', cache=...) takes a Cache, not True",
        ),
        (
            lambda: Task("a", 1, needs=wrong(["b"])),
            "Task('a', needs=...) takes a mapping, not ['b']",
        ),
        (
            lambda: Task("a", 1, meta=wrong("x")),
            "Task('a', meta=...) takes a mapping, not 'x'",
        ),
        (
            lambda: Task("a", 1, retries=wrong("3")),
            "Task('a', retries=...) takes a whole number from 0, not '3'",
        ),
        (
            lambda: Parallel(max_concurrency=0),
            "Parallel(max_concurrency=...) takes a whole number from 1, not 0",
        ),
        (
            lambda: Loop("l", max_iterations=wrong(1.5)),
            "Loop('l', max_iterations=...) takes a whole number from 1, not 1.5",
        ),
        (
            lambda: workflow(budget=wrong(1000))(build),
            "@workflow(budget=...) of 'build' takes a Budget, not 1000",
        ),
        (
            lambda: workflow(name="w" * 301)(build),
            "@workflow(name=...) takes at most 300 characters",
        ),
        (
            lambda: workflow(name=wrong(5))(build),
            "@workflow(name=...) takes a text, not int",
        ),
        (
            lambda: workflow(render_timeout=0)(build),
            "@workflow(render_timeout=0) of 'build' would never render",
        ),
        (
            lambda: Task("a", wait()),
            "Task('a') got a coroutine: pass the function, or a lambda that calls it",
        ),
    ],
)
def test_a_slip_is_an_invalid_tree_and_says_what_would_be_right(
    slip: Callable[[], object], told: str
) -> None:
    with pytest.raises(InvalidTree) as caught:
        slip()
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda wrong: Task("x", 1, timeout=wrong), "Task('x', timeout=...)"),
        (lambda wrong: Task("x", 1, heartbeat_timeout=wrong), "Task('x', heartbeat_timeout=...)"),
        (lambda wrong: Approval("x", title="?", timeout=wrong), "Approval('x', timeout=...)"),
        (
            lambda wrong: HumanTask("x", prompt="?", output=int, timeout=wrong),
            "HumanTask('x', timeout=...)",
        ),
        (lambda wrong: Signal("x", timeout=wrong), "Signal('x', timeout=...)"),
        (lambda wrong: Timer("x", duration=wrong), "Timer('x', duration=...)"),
        (lambda wrong: Cache(ttl=wrong), "Cache(ttl=...)"),
        (lambda wrong: Retry(initial=wrong), "Retry(initial=...)"),
        (lambda wrong: Retry(maximum=wrong), "Retry(maximum=...)"),
        (lambda wrong: Budget(seconds=wrong), "Budget(seconds=...)"),
        (lambda wrong: Budget(tokens=1, timeout=wrong), "Budget(timeout=...)"),
        (
            lambda wrong: workflow(render_timeout=wrong)(build),
            "@workflow(render_timeout=...)",
        ),
    ],
)
@pytest.mark.parametrize("wrong", ["5m", "5", [5], True])
def test_what_is_no_duration_is_refused_with_where_it_stands(
    make: Callable[[object], object], where: str, wrong: object
) -> None:
    with pytest.raises(InvalidTree) as caught:
        make(wrong)
    assert str(caught.value) == f"{where} takes seconds or a timedelta, not {wrong!r}"


def test_whoever_catches_pythons_own_class_or_ours_catches_a_slip() -> None:
    assert issubclass(InvalidTree, ValueError)
    assert issubclass(InvalidTree, WorkflowError)
    assert issubclass(InvalidTree, SmithersError)


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        (policies.ApprovalMode, policies.ApprovalModeWord),
        (policies.OnDeny, policies.OnDenyWord),
        (policies.OnTimeout, policies.OnTimeoutWord),
        (policies.OnFailure, policies.OnFailureWord),
        (policies.OnMaxReached, policies.OnMaxReachedWord),
        (policies.CacheScope, policies.CacheScopeWord),
        (policies.Isolation, policies.IsolationWord),
    ],
)
def test_a_type_checker_knows_all_words_of_a_choice(choice: type[StrEnum], word: object) -> None:
    assert get_args(word) == tuple(one.value for one in choice)


def test_a_choice_may_be_given_as_its_word() -> None:
    assert Cache(scope="run").scope is CacheScope.RUN
    assert workflow(isolation="process")(build).is_isolated
    assert workflow(isolation=Isolation.PROCESS)(build).is_isolated
    assert not workflow(build).is_isolated


CONDITIONS: list[Callable[[Any], bool]] = [
    lambda condition: Branch(condition, Task("a", 1)).when,
    lambda condition: Loop("l", until=condition).until,
    *(
        partial(lambda kind, condition: kind(skip_if=condition).skip_if, kind)
        for kind in (
            partial(Task, "a", 1),
            partial(Approval, "a", title="?"),
            partial(HumanTask, "h", prompt="?", output=dict),
            partial(Signal, "s"),
            partial(Timer, "t", duration=1),
            partial(Subflow, "s", workflow(build)),
            ContinueAsNew,
        )
    ),
]


@pytest.mark.parametrize("ask", CONDITIONS)
def test_a_condition_is_a_value_or_a_callable_that_is_asked(ask: Callable[[Any], bool]) -> None:
    asked = [ask(condition) for condition in (1, 0, lambda: "yes", lambda: None)]
    assert asked == [True, False, True, False]


@pytest.mark.parametrize("ask", CONDITIONS)
def test_a_condition_is_never_awaited(ask: Callable[[Any], bool]) -> None:
    for condition in (wait, wait()):
        with pytest.raises(InvalidTree, match="cannot be awaited"):
            ask(condition)


@pytest.mark.parametrize(
    ("element", "shown"),
    [
        (Task("a", 1), "Task('a')"),
        (Timer("t", duration=1), "Timer('t')"),
        (Loop("rounds", Task("a", 1)), "Loop('rounds')"),
        (Saga("s", Step(Task("a", 1))), "Saga('s')"),
        (
            Sequence(Task("a", 1), Parallel(Signal("s"))),
            "Sequence(Task('a'), Parallel(Signal('s')))",
        ),
        (Branch(when=True, then=Task("a", 1)), "Branch(True, [Task('a')], [])"),
        (Step(Task("a", 1), Task("b", 1)), "Step([Task('a')], [Task('b')])"),
    ],
)
def test_an_element_shows_what_it_is(element: object, shown: str) -> None:
    assert repr(element) == shown


def test_a_builder_that_is_async_is_told_so_where_it_is_written():
    async def research(ctx): ...

    with pytest.raises(InvalidTree, match=r"research is async: a builder is a plain function"):
        workflow(wrong(research))
