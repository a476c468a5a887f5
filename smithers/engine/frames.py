"""Trees as Smithers' wire has them, and as rows: whole every so often, otherwise as a difference.

A difference is what stands between the longest common start and the longest common end of two texts: one changed place
costs its own length, however large the tree. Pure.
"""

import hashlib
from typing import Any, Final

import orjson

from smithers.engine.facts import NodeKey
from smithers.engine.mount import Mounted, key_in, scoped
from smithers.engine.turn import FrameDraft
from smithers.errors import InvalidTree
from smithers.ids import LoopId
from smithers.tree import (
    Approval,
    Branch,
    Element,
    Leaf,
    Loop,
    Parallel,
    Sequence,
    Signal,
    Task,
    Timer,
)

KEYFRAME: Final = "keyframe"
DELTA: Final = "delta"
KEYFRAME_EVERY: Final = 20

LoopPath = tuple[tuple[str, int], ...]


def xml_of(mounted: Mounted, workflow_name: str) -> str:
    """Return a mounted tree as the wire's JSON text, keys sorted; raise InvalidTree for a `meta` that is no JSON."""
    try:
        root = _element("workflow", {"name": workflow_name}, [_xml(mounted.tree, mounted, ())])
        return orjson.dumps(root, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidTree(f"the tree cannot be written as JSON: {str(error)[:500]}") from error


def hash_of(xml_json: str) -> str:
    """Return the sha-256 of a frame's text, in hex."""
    return hashlib.sha256(xml_json.encode()).hexdigest()


def next_frame(frame_no: int, xml_json: str, previous: str | None) -> FrameDraft:
    """Describe a tree's row: as a difference to the one before, unless a whole one is due or not much longer."""
    if previous is not None and frame_no % KEYFRAME_EVERY != 1:
        body = make_delta(previous, xml_json)
        if len(body) * 2 < len(xml_json):
            return FrameDraft(frame_no, hash_of(xml_json), DELTA, body)
    return FrameDraft(frame_no, hash_of(xml_json), KEYFRAME, xml_json)


class FrameLog:
    """The newest frame of a run, and what the next one is compared with."""

    def __init__(self, frame_no: int, xml_hash: str | None) -> None:
        """Take up after a frame of which only number and hash are known: the next one will be whole."""
        self.frame_no = frame_no
        self._hash = xml_hash
        self._xml: str | None = None
        self._next_xml: str | None = None

    def next(self, xml_json: str) -> FrameDraft | None:
        """Describe a tree's row; None where the tree is what it was."""
        if hash_of(xml_json) == self._hash:
            return None
        self._next_xml = xml_json
        return next_frame(self.frame_no + 1, xml_json, self._xml)

    def commit(self, frame: FrameDraft) -> None:
        """Take in that the frame that was described last is stored."""
        self.frame_no, self._hash, self._xml = frame.frame_no, frame.xml_hash, self._next_xml


def make_delta(previous: str, current: str) -> str:
    """Return `[start, end, middle]` as JSON text: keep so many characters of both ends, and put middle between."""
    shorter = min(len(previous), len(current))
    start = _common(shorter, lambda size: previous[:size] == current[:size])
    rest = shorter - start
    end = _common(rest, lambda size: size == 0 or previous[-size:] == current[-size:])
    return orjson.dumps([start, end, current[start : len(current) - end]]).decode()


def apply_delta(previous: str, body: str) -> str:
    """Return the text that make_delta was given as current."""
    start, end, middle = orjson.loads(body)
    return f"{previous[:start]}{middle}{previous[len(previous) - end :] if end else ''}"


def restore(previous: str | None, encoding: str, body: str) -> str:
    """Return the whole text of a row; `previous` is that of the row before, needed for a difference only."""
    if encoding == KEYFRAME:
        return body
    if previous is None:
        raise ValueError("a difference needs the frame before it")
    return apply_delta(previous, body)


def mounted_tasks(xml_json: str) -> list[NodeKey]:
    """List the leaves of a frame in tree order."""
    found: list[NodeKey] = []
    stack = [orjson.loads(xml_json)]
    while stack:
        element = stack.pop()
        props = element["props"]
        if "nodeId" in props:
            found.append(NodeKey(props["nodeId"], int(props["iteration"])))
        stack.extend(reversed(element["children"]))
    return found


def _common(limit: int, is_same: Any) -> int:
    """Find by bisection the largest size up to `limit` at which two ends are the same."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_same(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _xml(element: Element, mounted: Mounted, path: LoopPath) -> dict[str, Any]:
    match element:
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
        case _:
            key = key_in(element.id, path)
            props = {"id": element.id, "nodeId": key.node_id, "iteration": str(key.iteration)}
            if element.label:
                props["label"] = element.label
            return _leaf(element, props)


def _leaf(element: Leaf, props: dict[str, str]) -> dict[str, Any]:
    match element:
        case Task():
            return _element("task", props | _task_props(element), [])
        case Approval():
            props |= {"title": element.title, "onDeny": str(element.on_deny)}
            if element.summary:
                props["summary"] = element.summary
            return _element("approval", props, [])
        case Signal():
            props["event"] = element.event
            if element.correlation_id is not None:
                props["correlationId"] = element.correlation_id
            return _element("wait-for-event", props, [])
        case Timer():
            if element.duration_s is not None:
                props["durationMs"] = str(round(element.duration_s * 1000))
            if element.until is not None:
                props["until"] = element.until.isoformat()
            return _element("timer", props, [])


def _task_props(task: Task[Any]) -> dict[str, str]:
    props: dict[str, str] = {}
    if task.retries:
        props["retries"] = str(task.retries)
    if task.timeout_s is not None:
        props["timeoutMs"] = str(round(task.timeout_s * 1000))
    if task.depends_on or task.needs:
        props["dependsOn"] = ",".join([*task.depends_on, *task.needs.values()])
    for name in ("continue_on_fail", "skip_if", "needs_approval"):
        if getattr(task, name):
            props[_camel(name)] = "true"
    for name, value in task.meta.items():
        props[f"meta.{name}"] = value if isinstance(value, str) else orjson.dumps(value).decode()
    return props


def _group(
    tag: str, props: dict[str, str], children: tuple[Element, ...], mounted: Mounted, path: LoopPath
) -> dict[str, Any]:
    return _element(tag, props, [_xml(child, mounted, path) for child in children])


def _element(tag: str, props: dict[str, str], children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "element", "tag": f"smithers:{tag}", "props": props, "children": children}


def _text(value: bool) -> str:
    return "true" if value else "false"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
