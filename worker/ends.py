"""An attempt's end, from what its body returned or raised, as its run and its trace record it."""

from typing import Any, Final

from smithers.engine.facts import NodeKey, Problem
from smithers.errors import InvalidOutput
from smithers.outputs import encode_output
from smithers.states import AttemptState
from smithers.texts import text_of
from smithers.tools.errors import ToolError
from smithers.tracebacks import author_traceback
from worker.happenings import Aborted, Failed, Finished, Happening, Parked

MAX_ERROR_CHARS: Final = 8_000


def end_returned(key: NodeKey, number: int, value: Any, model: Any) -> Finished | Failed:
    """Return the end of an attempt whose body has returned; a value that does not fit `model` is a failure."""
    try:
        return Finished(key, number, encode_output(value, model))
    except InvalidOutput as error:
        problem = Problem.of(error)
        return Failed(key, number, problem)


def end_raised(key: NodeKey, number: int, error: BaseException) -> Failed:
    """Return the end of an attempt whose body has raised."""
    text = text_of(error)[:MAX_ERROR_CHARS] or type(error).__name__
    code = error.code if isinstance(error, ToolError | InvalidOutput) else None
    details = error.details if isinstance(error, InvalidOutput) else None
    problem = Problem(type(error).__name__, text, code, details, author_traceback(error))
    return Failed(key, number, problem)


def outcome_of(end: Happening) -> tuple[str, str | None]:
    """Return how an attempt ended, and the name of its error: for traces, which contain no content."""
    match end:
        case Failed(_, _, problem):
            return AttemptState.FAILED, problem.name
        case Aborted():
            return AttemptState.CANCELLED, None
        case Parked():
            return AttemptState.PARKED, None
        case _:
            return AttemptState.FINISHED, None
