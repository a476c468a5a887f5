"""Find the output of an earlier execution of the same function, for tasks with `cache`.

The key is the function's, not the source's: an edit of another function in the file invalidates nothing, and the author
declares an edit of this one by `version`. A stored output must fit the task's present model: otherwise it is made again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from smithers.errors import InvalidOutput
from smithers.ids import RunId
from smithers.outputs import decode_output, encode_output
from smithers.tree import Cache, CacheScope, Task

KEY_VERSION: Final = 2  # version of the key's format: outputs under other formats are not found


class Caching(NamedTuple):
    """Finds outputs for a run's tasks; `find_cached` takes a key, and the age in seconds that an output is younger than."""

    run_id: RunId
    workflow_name: str
    find_cached: Callable[[str, float | None], Awaitable[str | None]]

    def key_of(self, task: Task[Any], cache: Cache, needs: Mapping[str, Any]) -> str:
        """Return an output's key from scope, function, version and inputs; raises for inputs that are not JSON."""
        place = {
            CacheScope.RUN: self.run_id,
            CacheScope.WORKFLOW: self.workflow_name,
            CacheScope.GLOBAL: "",
        }[cache.scope]
        name = _name_of(task, self.workflow_name)
        parts = [KEY_VERSION, cache.scope, place, name, cache.version, cache.by, needs]
        return hashlib.sha256(to_json(parts)).hexdigest()


def fit_found(found: str, model: Any) -> str | None:
    """Return an output as its model encodes it now; None if the model rejects it."""
    try:
        return encode_output(decode_output(found, model), model)
    except Exception:  # noqa: BLE001 - a validator raises whatever it likes; then the output is made again
        return None


def _name_of(task: Task[Any], workflow_name: str) -> list[Any]:
    """Name what a task does; if its name is not unique, the node id is part of the key.

    A question to agents is identified by their names and the prompt.
    """
    node = [workflow_name, task.id]
    if task.ask is not None:
        prompt = task.ask.prompt
        asked = prompt if isinstance(prompt, str) else _name_function(prompt)[0]
        return [task.ask.names, asked, *node]
    name, is_its_alone = _name_function(task.do)
    return name if is_its_alone else [*name, *node]


def _name_function(do: Any) -> tuple[list[Any], bool]:
    """Name a function by its file, its name and a partial's arguments; say whether that name is unique.

    It is for functions that their module knows by that name; not for lambdas, methods, decorated functions and objects.
    """
    given: list[tuple[str, str | None]] = []
    while isinstance(do, partial):
        given += [("", _json_of(value)) for value in do.args]
        given += [(name, _json_of(value)) for name, value in sorted(do.keywords.items())]
        do = do.func
    code = do.__func__ if isinstance(do, MethodType) else do
    if not isinstance(code, FunctionType):
        return ["", type(do).__qualname__, given], False
    is_its_alone = code is do and code.__globals__.get(code.__qualname__) is code
    is_its_alone = is_its_alone and all(text is not None for _, text in given)
    return [code.__globals__.get("__file__", ""), code.__qualname__, given], is_its_alone


def _json_of(value: Any) -> str | None:
    try:
        return encode_output(value)
    except InvalidOutput:
        return None
