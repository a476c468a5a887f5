"""What a builder returns: elements that nest, with tasks and waits as leaves.

Elements are values: making one does nothing. Children may be nested iterables; None, False and True are dropped, so
`cond and Task(...)` reads well. A node id is unique in its tree, and comes from data, not from positions.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from smithers.durations import Duration, seconds
from smithers.errors import InvalidTree
from smithers.ids import NODE_ID_PATTERN

Output = TypeVar("Output")

SCOPE_MARK: Final = "@@"  # parts a node's id from its loops' path


class OnDeny(StrEnum):
    """What a denied approval does to its run."""

    FAIL = "fail"
    CONTINUE = "continue"
    SKIP = "skip"


class OnTimeout(StrEnum):
    """What a wait that ran out does to its run."""

    FAIL = "fail"
    CONTINUE = "continue"
    SKIP = "skip"


class OnMaxReached(StrEnum):
    """What a loop does that has used up its iterations."""

    RETURN_LAST = "return-last"
    FAIL = "fail"


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
        seconds(self.initial)
        seconds(self.maximum)
        if not 0 <= self.factor < float("inf"):
            raise InvalidTree(f"Retry(factor={self.factor!r}) is no factor")


class Sequence:
    """Children one after another."""

    __slots__ = ("children",)

    def __init__(self, *children: "Child") -> None:
        self.children = collect(children)


class Parallel:
    """Children at once; at most `max_concurrency` of them under way."""

    __slots__ = ("children", "max_concurrency")

    def __init__(self, *children: "Child", max_concurrency: int | None = None) -> None:
        if max_concurrency is not None and max_concurrency < 1:
            raise InvalidTree(
                f"Parallel(max_concurrency={max_concurrency}) would never start anything"
            )
        self.children = collect(children)
        self.max_concurrency = max_concurrency


class Branch:
    """One of two; the tasks of the other are recorded as skipped."""

    __slots__ = ("otherwise", "then", "when")

    def __init__(self, when: object, then: "Child", otherwise: "Child" = None) -> None:
        self.when = bool(when)
        self.then = collect((then,))
        self.otherwise = collect((otherwise,))


class Loop:
    """Children again, with the next iteration, until `until` is true at a render after an iteration has ended."""

    __slots__ = ("children", "id", "max_iterations", "on_max_reached", "until")

    def __init__(
        self,
        id: str,
        *children: "Child",
        until: object = False,
        max_iterations: int = 5,
        on_max_reached: OnMaxReached | str = OnMaxReached.RETURN_LAST,
    ) -> None:
        """`until` is read at each render: a value, or a callable without arguments."""
        if max_iterations < 1:
            raise InvalidTree(f"Loop({id!r}, max_iterations={max_iterations}) would never run")
        self.id = check_id(id, "Loop")
        if "," in id or "=" in id:
            raise InvalidTree(
                f"Loop({id!r}): commas and equals signs are kept for the paths of loops"
            )
        self.children = collect(children)
        self.until = bool(until() if callable(until) else until)
        self.max_iterations = max_iterations
        self.on_max_reached = OnMaxReached(on_max_reached)


class Task(Generic[Output]):
    """A leaf that does work: a callable (sync: in a thread; async: awaited), or a plain value that is recorded."""

    __slots__ = (
        "continue_on_fail",
        "depends_on",
        "do",
        "id",
        "label",
        "meta",
        "needs",
        "needs_approval",
        "output",
        "retries",
        "retry",
        "skip_if",
        "timeout_s",
    )

    def __init__(
        self,
        id: str,
        do: Callable[..., Awaitable[Output]] | Callable[..., Output] | Output,
        *,
        output: type[Output] | None = None,
        needs: Mapping[str, str] | None = None,
        depends_on: Iterable[str] = (),
        retries: int = 0,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        continue_on_fail: bool = False,
        skip_if: object = False,
        needs_approval: bool = False,
        label: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe a task.

        `output`: the model that the result must fit; default: the function's return annotation, else any JSON.
        `needs`: argument name to node id: waits for those nodes and passes their outputs; where one of them was skipped
        or failed, this task is skipped. `depends_on`: waits only. `retries`: attempts after the first. `timeout`: of
        one attempt. `continue_on_fail`: the tree moves on past a failure. `needs_approval`: a person says yes first.
        """
        if retries < 0:
            raise InvalidTree(
                f"Task({id!r}, retries={retries}): a number of retries is not negative"
            )
        self.id = check_id(id, "Task")
        self.do = do
        self.output = output
        self.needs = dict(needs) if needs else {}
        _names(self.needs.values(), f"Task({id!r}, needs=...)")
        self.depends_on = _names(depends_on, f"Task({id!r}, depends_on=...)")
        self.retries = retries
        self.retry = retry or _DEFAULT_RETRY
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.continue_on_fail = continue_on_fail
        self.skip_if = bool(skip_if)
        self.needs_approval = needs_approval
        self.label = check_text(label, f"Task({id!r}, label=...)")
        self.meta = dict(meta) if meta else {}


class Approval:
    """A leaf at which a person decides; its output is an ApprovalDecision."""

    __slots__ = (
        "allowed_scopes",
        "allowed_users",
        "depends_on",
        "id",
        "label",
        "on_deny",
        "skip_if",
        "summary",
        "timeout_s",
        "title",
    )

    def __init__(
        self,
        id: str,
        *,
        title: str,
        summary: str | None = None,
        on_deny: OnDeny | str = OnDeny.FAIL,
        timeout: Duration | None = None,
        allowed_users: Iterable[str] | None = None,
        allowed_scopes: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Ask `title`. A `timeout` that runs out counts as a denial by `system:timeout`."""
        self.id = check_id(id, "Approval")
        self.title = check_text(title, f"Approval({id!r}, title=...)") or id
        self.summary = check_text(summary, f"Approval({id!r}, summary=...)")
        self.on_deny = OnDeny(on_deny)
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.allowed_users = (
            None
            if allowed_users is None
            else _names(allowed_users, f"Approval({id!r}, allowed_users=...)")
        )
        self.allowed_scopes = (
            None
            if allowed_scopes is None
            else _names(allowed_scopes, f"Approval({id!r}, allowed_scopes=...)")
        )
        self.depends_on = _names(depends_on, f"Approval({id!r}, depends_on=...)")
        self.skip_if = bool(skip_if)
        self.label = check_text(label, f"Approval({id!r}, label=...)")


class Signal(Generic[Output]):
    """A leaf that waits for a named signal; the signal's data is its output."""

    __slots__ = (
        "correlation_id",
        "depends_on",
        "event",
        "id",
        "label",
        "on_timeout",
        "output",
        "skip_if",
        "timeout_s",
    )

    def __init__(
        self,
        id: str,
        *,
        event: str | None = None,
        output: type[Output] | None = None,
        correlation_id: str | None = None,
        timeout: Duration | None = None,
        on_timeout: OnTimeout | str = OnTimeout.FAIL,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Wait for the signal named `event` (default: the id); one sent earlier counts, and each counts once."""
        self.id = check_id(id, "Signal")
        self.event = check_text(event, f"Signal({id!r}, event=...)") or id
        self.output = output
        self.correlation_id = check_text(correlation_id, f"Signal({id!r}, correlation_id=...)")
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.on_timeout = OnTimeout(on_timeout)
        self.depends_on = _names(depends_on, f"Signal({id!r}, depends_on=...)")
        self.skip_if = bool(skip_if)
        self.label = check_text(label, f"Signal({id!r}, label=...)")


WaitForEvent = Signal  # Smithers' name for it


class Timer:
    """A leaf that sleeps durably."""

    __slots__ = ("depends_on", "duration_s", "id", "label", "skip_if", "until")

    def __init__(
        self,
        id: str,
        *,
        duration: Duration | None = None,
        until: datetime | None = None,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Sleep for `duration` from when the timer is reached, or `until` a moment that has a time zone."""
        if (duration is None) == (until is None):
            raise InvalidTree(f"Timer({id!r}) takes either duration= or until=")
        if until is not None and until.tzinfo is None:
            raise InvalidTree(f"Timer({id!r}, until=...): a moment needs a time zone")
        self.id = check_id(id, "Timer")
        self.duration_s = None if duration is None else seconds(duration)
        self.until = until
        self.depends_on = _names(depends_on, f"Timer({id!r}, depends_on=...)")
        self.skip_if = bool(skip_if)
        self.label = check_text(label, f"Timer({id!r}, label=...)")


_DEFAULT_RETRY: Final = Retry()

Leaf = Task[Any] | Approval | Signal[Any] | Timer
Group = Sequence | Parallel | Branch | Loop
Element = Leaf | Group
Child = Element | None | bool | Iterable["Child"]

LEAVES: Final = (Task, Approval, Signal, Timer)
GROUPS: Final = (Sequence, Parallel, Branch, Loop)


def collect(children: Iterable[Child]) -> tuple[Element, ...]:
    """Flatten what an author wrote as children; raise InvalidTree for what is no element."""
    found: list[Element] = []
    for child in children:
        given: object = child
        if given is None or isinstance(given, bool):
            continue
        if isinstance(given, LEAVES + GROUPS):
            found.append(given)
        elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
            found.extend(collect(given))
        else:
            raise InvalidTree(
                f"a tree is made of Task, Sequence and the like, not of {type(given).__name__}"
            )
    return tuple(found)


def check_id(id: object, kind: str) -> str:
    """Return an id as it may stand in a path; raise InvalidTree otherwise."""
    if not isinstance(id, str) or not _is_unicode(id) or NODE_ID_PATTERN.fullmatch(id) is None:
        raise InvalidTree(
            f"{kind}({id!r}): an id is 1 to 200 characters, without spaces and slashes"
        )
    if SCOPE_MARK in id or id.endswith(SCOPE_MARK[0]):
        raise InvalidTree(f"{kind}({id!r}): {SCOPE_MARK} in an id is kept for the paths of loops")
    return id


def check_text(text: Any, where: str) -> Any:
    """Return a text that can be sent and stored, or None; raise InvalidTree otherwise."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidTree(f"{where} takes a text, not {type(text).__name__}")
    if "\x00" in text or not _is_unicode(text):
        raise InvalidTree(
            f"{where}: a NUL or half a surrogate pair cannot be stored: {text[:200]!r}"
        )
    return text


def _names(given: Iterable[str], where: str) -> tuple[str, ...]:
    """Return several names; one bare text is a slip, and would be taken for its letters."""
    if isinstance(given, str):
        raise InvalidTree(f"{where} takes a list: [{given!r}]")
    names = tuple(given)
    for name in names:
        check_text(name, where)
        if name is None:
            raise InvalidTree(f"{where} has None among its names")
    return names


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
