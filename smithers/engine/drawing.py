"""Encode a mounted tree in Smithers' format: `{kind, tag, props, children}`, props texts, keys sorted. Pure."""

from typing import Any

import orjson

from smithers.engine.facts import NodeKey
from smithers.engine.mount import LoopPath, Mounted, scoped
from smithers.errors import InvalidTree
from smithers.ids import LoopId, TryId
from smithers.states import TryPhase
from smithers.tree import (
    Approval,
    Ask,
    Branch,
    Budget,
    ContinueAsNew,
    Element,
    HumanTask,
    Leaf,
    Loop,
    Parallel,
    Saga,
    Sequence,
    Signal,
    Subflow,
    Task,
    Timer,
    Try,
)


def xml_of(mounted: Mounted, workflow_name: str) -> str:
    """Return a mounted tree as JSON text, keys sorted; raise InvalidTree for a `meta` that is not JSON."""
    try:
        root = _element("workflow", {"name": workflow_name}, [_xml(mounted.tree, mounted, ())])
        if mounted.budget is not None:
            root["children"].append(_budget(mounted.budget.key))
        return orjson.dumps(root, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidTree(f"the tree cannot be written as JSON: {str(error)[:500]}") from error


def _xml(element: Element, mounted: Mounted, path: LoopPath) -> dict[str, Any]:
    match element:
        case (
            Task()  # first: most are
            | Approval()
            | HumanTask()
            | Signal()
            | Timer()
            | Subflow()
            | ContinueAsNew()
            | Budget()
        ):
            return _leaf(element, mounted.keys[element.id])
        case Sequence():
            return _group("sequence", {}, element.children, mounted, path)
        case Parallel():
            limit = element.max_concurrency
            props = {} if limit is None else {"maxConcurrency": str(limit)}
            return _group("parallel", props, element.children, mounted, path)
        case Branch():
            props = {"if": _text(element.when)}
            taken = element.then if element.when else element.otherwise
            return _group("branch", props, taken, mounted, path)
        case Loop():
            iteration = mounted.loops[LoopId(scoped(element.id, path))].fact.iteration
            props = {
                "id": scoped(element.id, path),
                "iteration": str(iteration),
                "maxIterations": str(element.max_iterations),
                "onMaxReached": str(element.on_max_reached),
                "until": _text(element.until),
            }
            return _group(
                "ralph", props, element.children, mounted, (*path, (element.id, iteration))
            )
        case Try() | Saga():
            return _try(element, mounted, path)


def _try(element: Try | Saga, mounted: Mounted, path: LoopPath) -> dict[str, Any]:
    """Encode the parts that are mounted so far."""
    try_id = TryId(scoped(element.id, path))
    phase = mounted.tries[try_id].fact.phase

    def part(tag: str, children: tuple[Element, ...]) -> dict[str, Any]:
        return _group(tag, {}, children, mounted, path)

    if isinstance(element, Saga):
        actions = tuple(leaf for step in element.steps for leaf in step.action)
        parts = [part("saga-actions", actions)]
        if phase not in (TryPhase.BODY, TryPhase.AFTER):
            undoing = tuple(leaf for step in reversed(element.steps) for leaf in step.undo)
            parts.append(part("saga-compensations", undoing))
        props = {"id": try_id, "onFailure": str(element.on_failure)}
        return _element("saga", props, parts)
    parts = [part("tcf-try", element.body)]
    if element.catch and phase in (TryPhase.CATCH, TryPhase.CAUGHT):
        parts.append(part("tcf-catch", element.catch))
    if element.finally_ and phase not in (TryPhase.BODY, TryPhase.CATCH):
        parts.append(part("tcf-finally", element.finally_))
    return _element("try-catch-finally", {"id": try_id}, parts)


def _leaf(element: Leaf, key: NodeKey) -> dict[str, Any]:
    props = {"id": element.id, "nodeId": key.node_id, "iteration": str(key.iteration)}
    if element.label:
        props["label"] = element.label
    tag, more = _tag_of(element)
    return _element(tag, props | more, [])


def _budget(key: NodeKey) -> dict[str, Any]:
    props = {"id": key.node_id, "nodeId": key.node_id, "iteration": str(key.iteration)}
    return _element("budget", props, [])


def _tag_of(element: Leaf) -> tuple[str, dict[str, str]]:
    more: dict[str, str] = {}
    match element:
        case Task():
            tag, more = "task", _task_props(element)
        case Approval():
            tag, more = "approval", _approval_props(element)
        case HumanTask():
            tag, more = "human-task", {"prompt": element.prompt}
        case Signal():
            tag, more = "wait-for-event", _signal_props(element)
        case Subflow():
            tag, more = "subflow", {"workflow": element.workflow.name}
        case ContinueAsNew():
            tag = "continue-as-new"
        case Timer():
            tag, more = "timer", _timer_props(element)
        case Budget():
            raise AssertionError("a budget stands beside the tree")
    return tag, more


def _signal_props(signal: Signal[Any]) -> dict[str, str]:
    props = {"event": signal.event}
    if signal.correlation_id is not None:
        props["correlationId"] = signal.correlation_id
    return props


def _timer_props(timer: Timer) -> dict[str, str]:
    props = {}
    if timer.duration_s is not None:
        props["durationMs"] = str(round(timer.duration_s * 1000))
    if timer.until is not None:
        props["until"] = timer.until.isoformat()
    return props


def _approval_props(approval: Approval) -> dict[str, str]:
    props = {"title": approval.title, "onDeny": str(approval.on_deny)}
    if approval.summary:
        props["summary"] = approval.summary
    if approval.options:
        props |= {"mode": str(approval.mode), "options": ",".join(approval.options)}
    return props


def _task_props(task: Task[Any]) -> dict[str, str]:
    props = {} if task.ask is None else _ask_props(task.ask)
    if task.retries:
        props["retries"] = str(task.retries)
    if task.timeout_s is not None:
        props["timeoutMs"] = str(round(task.timeout_s * 1000))
    if task.heartbeat_timeout_s is not None:
        props["heartbeatTimeoutMs"] = str(round(task.heartbeat_timeout_s * 1000))
    if task.cache is not None:
        props["cache"] = str(task.cache.scope)
    if task.depends_on or task.needs:
        props["dependsOn"] = ",".join([*task.depends_on, *task.needs.values()])
    if task.continue_on_fail:
        props["continueOnFail"] = "true"
    if task.skip_if:
        props["skipIf"] = "true"
    if task.needs_approval:
        props["needsApproval"] = "true"
    for name, value in task.meta.items():
        props[f"meta.{name}"] = value if isinstance(value, str) else orjson.dumps(value).decode()
    return props


def _ask_props(ask: Ask) -> dict[str, str]:
    """Return the agents' names and the prompt's length; the prompt itself is only for readers of the author's file."""
    props = {"agent": ",".join(ask.names)}
    if isinstance(ask.prompt, str):
        props["promptLength"] = str(len(ask.prompt))
    return props


def _group(
    tag: str, props: dict[str, str], children: tuple[Element, ...], mounted: Mounted, path: LoopPath
) -> dict[str, Any]:
    return _element(tag, props, [_xml(child, mounted, path) for child in children])


def _element(tag: str, props: dict[str, str], children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "element", "tag": f"smithers:{tag}", "props": props, "children": children}


def _text(value: bool) -> str:
    return "true" if value else "false"
