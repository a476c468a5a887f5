"""Describe a version of a workflow's source, without running it: for a throwaway process.

An author's errors are part of the answer, never exceptions. The answer fits into the
database and into a response: no NUL, no lone surrogate, no path outside the root, bounded text.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from smithers.source.closure import SourceBundle
from smithers.source.errors import ImportFailed, SourceError
from smithers.source.loading import load_workflow
from smithers.texts import encodable
from smithers.tracebacks import author_message, author_traceback, without_paths
from smithers.workflow import Workflow

MAX_ERROR_CHARS: Final = 8_000
TRACEBACK_LINES: Final = 12
# An odd number of backslashes: with an even one it is the text of an escape, not a character.
ESCAPED_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a start needs to know about a workflow; if `error` is set, nothing else is."""

    workflow_name: str | None
    input_schema: dict[str, Any] | None  # JSON Schema; None: any object
    queue: str | None
    isolation: str | None
    database: str | None
    error: str | None  # for HTTP answers; it names file and line
    traceback: str | None = None  # for operators: it quotes the source
    is_accident: bool = False  # the describing process failed, independent of the source

    def to_json(self) -> str:
        """Return the description as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the result of to_json."""
        return cls(**json.loads(text))


def describe(bundle: SourceBundle, workflow_name: str | None) -> Description:
    """Load a version and describe one of its workflows; executes the author's code."""
    try:
        workflow = load_workflow(bundle, workflow_name)
    except ImportFailed as error:
        return _misfit(error.reason, error.traceback)
    except SourceError as error:
        return _misfit(error.reason)
    try:
        return _describe(workflow)
    except Exception as error:  # noqa: BLE001 - pydantic runs the author's code to make a schema
        reason = f"the input model of {workflow.name!r} has no JSON schema: {author_message(error)}"
        return _misfit(reason, author_traceback(error))


def _describe(workflow: Workflow[Any]) -> Description:
    model = workflow.input_model
    description = Description(
        workflow_name=workflow.name,
        input_schema=None if model is None else model.model_json_schema(),
        queue=workflow.queue,
        isolation=workflow.isolation,
        database=workflow.database,
        error=None,
    )
    text = description.to_json()
    text.encode()
    if ESCAPED_NUL.search(text):
        raise ValueError("it contains a NUL character")
    return Description.from_json(text)


def _misfit(error: str, traceback: str | None = None) -> Description:
    return Description(
        workflow_name=None,
        input_schema=None,
        queue=None,
        isolation=None,
        database=None,
        error=_fit(error),
        traceback=None if traceback is None else _fit(_last_lines(traceback)),
    )


def _fit(text: str) -> str:
    text = encodable(without_paths(text).replace("\0", "\\0"))
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "…"


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-TRACEBACK_LINES:])
