"""What a body needs of other nodes: found by its names when an attempt starts, and read as their models within it.

A model is its author's code: what it takes, and what it raises, is the attempt's.
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
    """A node's output, JSON text, and the model that it is read as; no text: it put nothing out."""

    node_id: NodeId
    output: str | None
    model: Any


def find_needs(run: Progress, task: Task[Any]) -> dict[str, Need]:
    """Find what a task needs, by the names of its body's arguments.

    It is read as the model that it was made with; where its maker names none, as the body's argument is annotated.
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
    """Say whether all of it is read without a line of its author's code."""
    return all(is_plain(need.model) for need in needs.values())


def read_needs(needs: Mapping[str, Need]) -> dict[str, Any]:
    """Return the arguments that a body gets; raise InvalidOutput, without the value, for what its model does not take."""
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
    # Outside of the clauses: what was raised there shows the value in its traceback.
    raise InvalidOutput(
        f"the output of {need.node_id} does not fit {name_of(need.model)}: {wrong}",
        details=details,
    )
