"""What the rows answer instead of doing what was asked: one class for each answer that a caller tells apart.

StoreError
└── Refused
    ├── RunNotFound      no run of this name
    │   └── NothingToResume  … when it was to be resumed: Smithers has a code of its own for that
    ├── NodeNotFound     the run has no such node
    ├── RunExists        the name is taken: somebody else's start won
    ├── RunNotActive     the run has ended (or became another one): nothing to cancel, signal or resume
    ├── NodeNotWaiting   the node asks nothing of anybody, or was decided the other way
    ├── NotAllowed       the credential may not decide this
    └── KeyReused        the idempotency key stands for another request
"""

from smithers.errors import StoreError


class Refused(StoreError):
    """Nothing was written; asking again answers the same."""


class RunNotFound(Refused):
    """There is no run of this name."""

    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no run of this id.")


class NothingToResume(RunNotFound):
    """There is no run of this name, and it was to be resumed."""

    code = "RUN_NOT_FOUND"


class NodeNotFound(Refused):
    """The run, or the node in it, is not there."""

    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is no such node in a run of this id.")


class RunExists(Refused):
    """Another start took the name first."""

    code = "RUN_ALREADY_EXISTS"

    def __init__(self) -> None:
        super().__init__('A run of this id exists. Choose another id, or send "resume": true.')


class RunNotActive(Refused):
    """The run has ended."""

    code = "RUN_NOT_ACTIVE"

    def __init__(self) -> None:
        super().__init__("The run is not active any more.")


class NodeNotWaiting(Refused):
    """Nobody is asked anything there (any more)."""

    code = "NODE_NOT_WAITING"

    def __init__(self) -> None:
        super().__init__("The node is not waiting for this decision; it may have been decided.")


class NotAllowed(Refused):
    """Others may decide this."""

    code = "FORBIDDEN"

    def __init__(self) -> None:
        super().__init__("This credential may not decide this approval.")


class KeyReused(Refused):
    """The key came before, with another request."""

    code = "IDEMPOTENCY_KEY_REUSED"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request.")
