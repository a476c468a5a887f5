"""Find what an earlier execution of the same function has put out, for tasks that say so.

The key is the function's, not the source's: an edit of another function of the file forgets nothing, and an edit of this
one is the author's to tell, by `version`. What is found must fit the task's model as it is now: else it is made again.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json

from smithers.errors import InvalidOutput
from smithers.ids import RunId
from smithers.outputs import decode_output, encode_output
from smithers.tree import Cache, CacheScope, Task

NAMELESS: Final = "<"  # in the name of a function that others share: <lambda>, <locals>


@dataclass(frozen=True, slots=True)
class Caching:
    """What a run's tasks need to find outputs."""

    run_id: RunId
    workflow_name: str
    find_cached: Callable[[str], Awaitable[str | None]]

    def key_of(self, task: Task[Any], cache: Cache, needs: Mapping[str, Any]) -> str:
        """Name an output by scope, function, version and what it is made from; raises for what is no JSON."""
        place = {
            CacheScope.RUN: self.run_id,
            CacheScope.WORKFLOW: self.workflow_name,
            CacheScope.GLOBAL: "",
        }[cache.scope]
        parts = [cache.scope, place, *_name_of(task), cache.version, cache.by, needs]
        return hashlib.sha256(to_json(parts)).hexdigest()

    async def find(self, cache_key: str, model: Any) -> str | None:
        """Return an output as its model writes it now; None where there is none that fits."""
        found = await self.find_cached(cache_key)
        if found is None:
            return None
        try:
            return encode_output(decode_output(found, model), model)
        except (InvalidOutput, ValidationError):
            return None


def _name_of(task: Task[Any]) -> tuple[str, str, str]:
    """Name a task's function: by its file and its name, and by its node where others have the same.

    A question to agents is what they are called and asked, in its node.
    """
    if task.ask is not None:
        prompt = task.ask.prompt
        return ",".join(task.ask.names), prompt if isinstance(prompt, str) else "", task.id
    do = task.do
    while isinstance(do, partial):
        do = do.func
    name = getattr(do, "__qualname__", type(do).__qualname__)
    file = getattr(do, "__globals__", {}).get("__file__", "")
    return file, name, task.id if NAMELESS in name else ""
