"""Determine what another version of a workflow would do to a waiting run: its builder is called, no task is run.

A run keeps its version until it is resumed with another one; this predicts what that would do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from smithers.engine.drawing import xml_of
from smithers.engine.facts import Facts, NodeKey
from smithers.engine.frames import hash_of
from smithers.engine.mount import Mounted
from smithers.engine.rendering import Guard, build_renderer
from smithers.errors import InvalidInput, WorkflowError
from smithers.states import NodeState
from smithers.store.run_facts import LoadedRun
from smithers.store.workflows import ParkedRun
from smithers.workflow import Workflow

OPEN_STATES = frozenset({NodeState.PENDING, NodeState.IN_PROGRESS}) | {
    state for state in NodeState if state.is_waiting
}


class Effect(StrEnum):
    """What would happen to a run."""

    GOES_ON = "goes-on"  # the same tree
    CHANGES = "changes"  # another tree, by which it can go on
    FAILS = "fails"  # no tree, or its input does not fit any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What would happen to one run, and why."""

    effect: Effect
    lost: tuple[NodeKey, ...] = ()  # running or waiting, and not in the new tree: to be cancelled
    added: tuple[NodeKey, ...] = ()  # in the new tree, and never seen before
    reason: str | None = None


def check_run(
    run: ParkedRun, loaded: LoadedRun, workflow: Workflow[Any], *, guard: Guard
) -> Forecast:
    """Render a parked run with another version of its workflow; `guard` limits the builder's time."""
    try:
        renderer = build_renderer(
            workflow,
            run_id=run.run_id,
            input_json=run.input,
            auth_json=run.auth,
            carried_json=run.carried,
            config_json=run.config,
            guard=guard,
        )
        mounted = renderer.render(loaded.facts, loaded.facts.loop_paths()).mounted
    except (InvalidInput, WorkflowError) as error:
        return Forecast(effect=Effect.FAILS, reason=str(error))
    if hash_of(xml_of(mounted, workflow.name)) == loaded.xml_hash:
        return Forecast(effect=Effect.GOES_ON)
    return _compare(mounted, loaded.facts)


def _compare(mounted: Mounted, facts: Facts) -> Forecast:
    leaves: Mapping[NodeKey, Any] = mounted.leaves
    lost = [
        key for key, fact in facts.nodes.items() if fact.state in OPEN_STATES and key not in leaves
    ]
    return Forecast(
        effect=Effect.CHANGES,
        lost=tuple(sorted(lost)),
        added=tuple(key for key in leaves if key not in facts.nodes),
    )
