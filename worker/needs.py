"""A body's inputs from other nodes: found when an attempt starts, and parsed with their models within it.

A model is its author's code: its time and its errors count for the attempt.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from smithers.engine.progress import Progress
from smithers.errors import InvalidOutput
from smithers.ids import NodeId
from smithers.outputs import decode_output, is_plain, misfits_of, name_of, say_misfits
from smithers.tree import Task
from worker.functions import model_of, taken_model


class Need(NamedTuple):
    """A node's output, JSON text, and the model that parses it; no text: it has no output."""

    node_id: NodeId
    output: str | None
    model: Any


def find_needs(run: Progress, task: Task[Any]) -> dict[str, Need]:
    """Find a task's needs, by the names of its body's arguments.

    An output is parsed with the model that produced it; if there is none, as the body's argument is annotated.
    """
    if not task.needs:
        return {}
    assert run.rendered is not None
    found: dict[str, Need] = {}
    for name, node_id in task.needs.items():
        key = run.rendered.mounted.resolve(node_id, run.facts)
        assert not isinstance(key, str)
        element = run.rendered.mounted.find_element(key)
        made = model_of(element) if isinstance(element, Task) else getattr(element, "output", None)
        model = taken_model(task, name) if made is None else made
        found[name] = Need(key.node_id, run.facts.nodes[key].output, model)
    return found


def are_plain(needs: Mapping[str, Need]) -> bool:
    """Say whether parsing all of them runs none of the author's code."""
    return all(is_plain(need.model) for need in needs.values())


def read_needs(needs: Mapping[str, Need]) -> dict[str, Any]:
    """Return a body's arguments; raise InvalidOutput, without the value, for one that its model rejects."""
    return {name: _read(need) for name, need in needs.items()}


def _read(need: Need) -> Any:
    if need.output is None:
        return None
    try:
        return decode_output(need.output, need.model)
    except ValidationError as error:
        wrong, details = say_misfits(error), misfits_of(error)
    except Exception as error:  # noqa: BLE001 - a validator raises whatever it likes, with what it was given
        wrong, details = type(error).__name__, None
    # Outside the except clauses: their exception shows the value in its traceback.
    raise InvalidOutput(
        f"the output of {need.node_id} does not fit {name_of(need.model)}: {wrong}",
        details=details,
    )
