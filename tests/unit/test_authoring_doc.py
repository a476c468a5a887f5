"""What docs/authoring.md shows runs as it stands there."""

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from smithers import Workflow
from smithers.engine.facts import Problem, written_id
from smithers.outputs import adapter_for
from smithers.states import NodeState, RunStatus
from smithers.tree import Task
from tests.support.engine import World
from worker.functions import model_of
from worker.needs import find_needs, read_needs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "authoring.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
SIGNALS = {"paid": {"amount": 7}}

# What each example's tasks put out, by its workflow's name.
EXPECTED: dict[str, dict[str, Any]] = {
    "publish-article": {"publish": "/articles/bees"},
    "measure-all": {"measure-ant": 3, "measure-wasp": 4, "sum": 7},
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


def run_to_end(workflow: Workflow[Any], failing: str | None = None) -> World:
    """Run an example; the node `failing` fails."""
    given = workflow.input_model(topic="bees") if workflow.input_model else None
    world = World(workflow, input=given).begin()
    for _ in range(100):
        if world.is_over:
            break
        perform(world, failing)
    ends = (RunStatus.FINISHED, RunStatus.CONTINUED)
    assert world.rows.status in ends, world.rows.error
    return world


def perform(world: World, failing: str | None) -> None:
    """Do what is due: run a body, say yes, send a signal, let time pass."""
    for key in sorted(world.running):
        if key.node_id == failing:
            world.fail(key, Problem("LookupError", "fully booked"))
            return
        leaf = world.run.find_leaf(key)
        assert leaf is not None
        assert isinstance(leaf.element, Task)
        _run_body(world, leaf.element, key)
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
    needs = read_needs(find_needs(world.run, task))
    try:
        value = task.do(**needs) if callable(task.do) else task.do
        value = asyncio.run(value) if inspect.iscoroutine(value) else value
    except ZeroDivisionError as error:
        world.fail(key, Problem("ZeroDivisionError", str(error)))
        return
    model = model_of(task)
    world.finish(key, value=adapter_for(model).validate_python(value) if model else value)


@pytest.mark.parametrize(
    "workflow", [load(example) for example in EXAMPLES], ids=lambda found: found.name
)
def test_an_example_runs_to_its_end(workflow):
    world = run_to_end(workflow)
    for node, output in EXPECTED[workflow.name].items():
        assert world.output(node) == output


def test_what_the_example_of_a_saga_has_booked_is_given_back():
    (trip,) = (found for found in map(load, EXAMPLES) if found.name == "trip")
    world = run_to_end(trip, failing="hotel")
    assert world.output("return-flight") == "6 given back"
    assert world.state("return-hotel") is NodeState.SKIPPED
    assert world.output("apologise") == "no trip: fully booked"


def test_every_example_is_looked_at():
    assert len(EXAMPLES) == len(EXPECTED)
