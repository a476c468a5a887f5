"""The leaves that wait for something outside the run: a person, a signal, time."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Generic

from typing_extensions import TypeVar

from smithers.durations import Duration
from smithers.errors import InvalidTree
from smithers.tree.checks import (
    check_choice,
    check_correlation_id,
    check_duration,
    check_id,
    check_names,
    check_signal_name,
    check_text,
    check_truth,
)
from smithers.tree.policies import (
    ApprovalMode,
    ApprovalModeWord,
    OnDeny,
    OnDenyWord,
    OnTimeout,
    OnTimeoutWord,
)
from smithers.tree.reprs import show_id

Output = TypeVar("Output", default=Any)


class Approval:
    """A leaf at which a person decides; its output is an ApprovalDecision."""

    __slots__ = (
        "allowed_scopes",
        "allowed_users",
        "depends_on",
        "id",
        "label",
        "mode",
        "on_deny",
        "options",
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
        mode: ApprovalMode | ApprovalModeWord = ApprovalMode.APPROVE,
        options: Iterable[str] = (),
        on_deny: OnDeny | OnDenyWord = OnDeny.FAIL,
        timeout: Duration | None = None,
        allowed_users: Iterable[str] | None = None,
        allowed_scopes: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Ask `title`. A `timeout` that expires counts as a denial by `system:timeout`.

        `mode`: "approve" asks for yes or no, "select" for one of `options`, "rank" for all of them in an order.
        `allowed_users`, `allowed_scopes`: who may decide, by the credential; if both are given, both must match.
        """
        self.id = check_id(id, "Approval")
        self.title = check_text(title, f"Approval({id!r}, title=...)") or id
        self.summary = check_text(summary, f"Approval({id!r}, summary=...)")
        self.mode = check_choice(ApprovalMode, mode, f"Approval({id!r}, mode=...)")
        self.options = check_names(options, f"Approval({id!r}, options=...)")
        if (self.mode is ApprovalMode.APPROVE) == bool(self.options):
            raise InvalidTree(f"Approval({id!r}): options= goes with mode='select' or 'rank'")
        if len(set(self.options)) < len(self.options):
            raise InvalidTree(f"Approval({id!r}, options=...) names one option twice")
        self.on_deny = check_choice(OnDeny, on_deny, f"Approval({id!r}, on_deny=...)")
        self.timeout_s = check_duration(timeout, f"Approval({id!r}, timeout=...)")
        self.allowed_users = _allowed(allowed_users, f"Approval({id!r}, allowed_users=...)")
        self.allowed_scopes = _allowed(allowed_scopes, f"Approval({id!r}, allowed_scopes=...)")
        self.depends_on = check_names(depends_on, f"Approval({id!r}, depends_on=...)")
        self.skip_if = check_truth(skip_if, f"Approval({id!r}, skip_if=...)")
        self.label = check_text(label, f"Approval({id!r}, label=...)")

    __repr__ = show_id


class HumanTask(Generic[Output]):
    """A leaf at which a person fills in a form; the completed form is its output."""

    __slots__ = (
        "allowed_scopes",
        "allowed_users",
        "depends_on",
        "id",
        "label",
        "on_timeout",
        "output",
        "prompt",
        "skip_if",
        "timeout_s",
    )

    def __init__(
        self,
        id: str,
        *,
        prompt: str,
        output: type[Output],
        timeout: Duration | None = None,
        on_timeout: OnTimeout | OnTimeoutWord = OnTimeout.FAIL,
        allowed_users: Iterable[str] | None = None,
        allowed_scopes: Iterable[str] | None = None,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Ask `prompt`. The form is the JSON Schema of `output`: an answer that does not fit it is refused."""
        self.id = check_id(id, "HumanTask")
        self.prompt = check_text(prompt, f"HumanTask({id!r}, prompt=...)") or id
        self.output = output
        self.timeout_s = check_duration(timeout, f"HumanTask({id!r}, timeout=...)")
        self.on_timeout = check_choice(OnTimeout, on_timeout, f"HumanTask({id!r}, on_timeout=...)")
        self.allowed_users = _allowed(allowed_users, f"HumanTask({id!r}, allowed_users=...)")
        self.allowed_scopes = _allowed(allowed_scopes, f"HumanTask({id!r}, allowed_scopes=...)")
        self.depends_on = check_names(depends_on, f"HumanTask({id!r}, depends_on=...)")
        self.skip_if = check_truth(skip_if, f"HumanTask({id!r}, skip_if=...)")
        self.label = check_text(label, f"HumanTask({id!r}, label=...)")

    __repr__ = show_id


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
        on_timeout: OnTimeout | OnTimeoutWord = OnTimeout.FAIL,
        depends_on: Iterable[str] = (),
        skip_if: object = False,
        label: str | None = None,
    ) -> None:
        """Wait for the signal named `event` (default: the id); an earlier one counts, and each is taken once."""
        self.id = check_id(id, "Signal")
        self.event = check_signal_name(event or id, f"Signal({id!r}, event=...)")
        self.output = output
        self.correlation_id = check_correlation_id(
            correlation_id, f"Signal({id!r}, correlation_id=...)"
        )
        self.timeout_s = check_duration(timeout, f"Signal({id!r}, timeout=...)")
        self.on_timeout = check_choice(OnTimeout, on_timeout, f"Signal({id!r}, on_timeout=...)")
        self.depends_on = check_names(depends_on, f"Signal({id!r}, depends_on=...)")
        self.skip_if = check_truth(skip_if, f"Signal({id!r}, skip_if=...)")
        self.label = check_text(label, f"Signal({id!r}, label=...)")

    __repr__ = show_id


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
        """Sleep for `duration` from when the timer is reached, or `until` a datetime with a time zone."""
        if (duration is None) == (until is None):
            raise InvalidTree(f"Timer({id!r}) takes either duration= or until=")
        if until is not None and until.tzinfo is None:
            raise InvalidTree(f"Timer({id!r}, until=...): a moment needs a time zone")
        self.id = check_id(id, "Timer")
        self.duration_s = check_duration(duration, f"Timer({id!r}, duration=...)")
        self.until = until
        self.depends_on = check_names(depends_on, f"Timer({id!r}, depends_on=...)")
        self.skip_if = check_truth(skip_if, f"Timer({id!r}, skip_if=...)")
        self.label = check_text(label, f"Timer({id!r}, label=...)")

    __repr__ = show_id


def _allowed(names: Iterable[str] | None, where: str) -> tuple[str, ...] | None:
    return None if names is None else check_names(names, where)
