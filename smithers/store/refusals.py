"""Refusals by the state of the rows: one class for each answer that a caller distinguishes.

StoreError
└── Refused
    ├── RunNotFound      no run with this id
    │   └── NothingToResume  … when it was to be resumed: Smithers has a code of its own for that
    ├── NodeNotFound     the run has no such node
    ├── RunExists        the id is taken: another start won
    ├── RunNotActive     the run has ended (or became another one): nothing to cancel, signal or resume
    ├── NodeNotWaiting   the node is not waiting, or was decided the other way
    ├── NotAllowed       the credential may not decide this
    ├── DecisionMisfit   the decision does not fit the question
    ├── FormMisfit       the value does not fit the form
    ├── LivesElsewhere   the run is in a database of its workflow's own; here is only its mirror
    └── KeyReused        the idempotency key stands for another request
"""

from typing import Any

from smithers.errors import StoreError


class Refused(StoreError):
    """Nothing was written; repeating the call gives the same answer."""


class RunNotFound(Refused):
    """There is no run with this id."""

    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__(
            "No run with this id exists; it may have been removed after its retention time."
        )


class NothingToResume(RunNotFound):
    """There is no run with this id to resume."""

    code = "RUN_NOT_FOUND"


class NodeNotFound(Refused):
    """The run, or the node in it, does not exist."""

    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no such node in a run of this id.")


class RunExists(Refused):
    """Another start took the id first."""

    code = "RUN_ALREADY_EXISTS"

    def __init__(self) -> None:
        super().__init__(
            "This run id is taken, by a run that exists or did. "
            'Choose another, or send "resume": true.'
        )


class RunNotActive(Refused):
    """The run has ended."""

    code = "RUN_NOT_ACTIVE"

    def __init__(self) -> None:
        super().__init__("The run is not active any more.")


class NodeNotWaiting(Refused):
    """The node is not waiting (any more)."""

    code = "NODE_NOT_WAITING"

    def __init__(self) -> None:
        super().__init__("The node is not waiting for this decision; it may have been decided.")


class NotAllowed(Refused):
    """Others may decide this."""

    code = "FORBIDDEN"

    def __init__(self) -> None:
        super().__init__("This credential may not decide this approval.")


class LivesElsewhere(Refused):
    """The run's row here is a mirror, which only the mirror may write."""

    code = "UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "The run lives in its workflow's own database, which this server does not know: here it can only be read."
        )


class DecisionMisfit(Refused):
    """The question asked for one of the options, for all of them in an order, or for none."""

    code = "INVALID_REQUEST"

    def __init__(self, *, mode: str, options: list[str]) -> None:
        expected: dict[str, object] = {"mode": mode}
        text = "This asks for a yes or a no: there are no options to choose from."
        if mode != "approve":
            is_one = mode == "select"
            field, shape = ("selected", "one") if is_one else ("ranked", "all, best first,")
            expected |= {"field": field, "options": options}
            text = f'decision must be {{"{field}": …}} with {shape} of the options.'
        super().__init__(text)
        self.details = {"expected": expected}


class FormMisfit(Refused):
    """The value does not fit the form's schema."""

    code = "INVALID_REQUEST"

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        """`errors`: why not, as {path, message}."""
        super().__init__("The value does not fit the form.")
        self.details = {"errors": errors}


class KeyReused(Refused):
    """The key was used before, with another request."""

    code = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request.")


def refuse_at_node(outcome: str | None) -> StoreError:
    """Translate a function's refusal of a decision or a form's answer into an error."""
    match outcome:
        case "not-found":
            return NodeNotFound()
        case "not-waiting":
            return NodeNotWaiting()
        case "forbidden":
            return NotAllowed()
        case _:
            return StoreError(f"unexpected outcome {outcome!r} from the database")
