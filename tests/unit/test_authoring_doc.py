"""What docs/authoring.md shows runs as it stands there."""

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from smithers import Workflow
from smithers.engine.facts import Problem, written_id
from smithers.outputs import adapter_for, decode_output
from smithers.states import NodeState, RunStatus
from smithers.tree import Task
from tests.support.engine import World

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "authoring.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
SIGNALS = {"paid": {"amount": 7}}

# What each example's tasks put out, by its workflow's name.
EXPECTED = {
    "publish-article": {"publish": "/articles/bees"},
    "gather": {"merge": [1, 2], "report": "audited"},
    "refine": {"print": "xxx"},
    "settle": {"ship": "shipped for 7"},
    "trip": {"hotel": {"number": 5}, "tidy": "tidied"},
    "watch-shops": {"check-north": 5, "continue-as-new": {"round": 1}},
}


def load(example: str) -> Workflow[Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "authoring.md", "exec", dont_inherit=True), names)
    if isinstance(chosen := names["workflow"], Workflow):
        return chosen
    (found,) = (value for value in names.values() if isinstance(value, Workflow))
    return found


def perform(world: World) -> None:
    """Do what is due: run a body, say yes, send a signal, let time pass."""
    for key in sorted(world.running):
        _run_body(world, world.run.find_leaf(key).element, key)
        return
    for key, fact in sorted(world.rows.nodes.items()):
        if fact.state is NodeState.WAITING_APPROVAL:
            world.approve(key)
            return
        if fact.kind == "subflow" and fact.state is NodeState.WAITING_EVENT:
            world.end_child(key, value=5)
            return
        if fact.state is NodeState.WAITING_EVENT:
            world.signal(key.node_id, SIGNALS[written_id(key.node_id)])
            return
    assert world.try_next()


def _run_body(world: World, task: Task[Any], key: Any) -> None:
    needs = {}
    for name, node_id in task.needs.items():
        needed = world.run.rendered.mounted.resolve(node_id, world.run.facts)
        model = world.run.find_leaf(needed).element.output
        needs[name] = decode_output(world.run.facts.nodes[needed].output, model)
    try:
        value = task.do(**needs) if callable(task.do) else task.do
        value = asyncio.run(value) if inspect.iscoroutine(value) else value
    except ZeroDivisionError as error:
        world.fail(key, Problem("ZeroDivisionError", str(error)))
        return
    world.finish(
        key, value=adapter_for(task.output).validate_python(value) if task.output else value
    )


@pytest.mark.parametrize(
    "workflow", [load(example) for example in EXAMPLES], ids=lambda found: found.name
)
def test_an_example_runs_to_its_end(workflow):
    given = workflow.input_model(topic="bees") if workflow.input_model else None
    world = World(workflow, input=given).begin()
    for _ in range(100):
        if world.is_over:
            break
        perform(world)
    ends = (RunStatus.FINISHED, RunStatus.CONTINUED)
    assert world.rows.status in ends, world.rows.error
    for node, output in EXPECTED[workflow.name].items():
        assert world.output(node) == output


def test_every_example_is_looked_at():
    assert len(EXAMPLES) == len(EXPECTED)
