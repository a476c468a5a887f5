"""Encoded trees as rows: periodically whole, otherwise as a difference.

A difference is the text between the longest common prefix and the longest common suffix of two texts: one change
costs its own length, however large the tree. Pure.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import orjson

from smithers.engine.facts import NodeKey
from smithers.engine.turn import FrameDraft

KEYFRAME: Final = "keyframe"
DELTA: Final = "delta"
KEYFRAME_EVERY: Final = 20


def hash_of(xml_json: str) -> str:
    """Return the sha-256 of a frame's text, in hex."""
    return hashlib.sha256(xml_json.encode()).hexdigest()


def encode_frame(frame_no: int, xml_json: str, previous: str | None) -> tuple[str, str]:
    """Return a row's encoding and body: the difference, unless the whole text is due, or at most twice as long.

    `previous`: the text of the row before; None: it is not known here.
    """
    if previous is not None and frame_no % KEYFRAME_EVERY != 1:
        body = make_delta(previous, xml_json)
        if len(body) * 2 < len(xml_json):
            return DELTA, body
    return KEYFRAME, xml_json


class FrameLog:
    """The newest committed frame of a run, with which the next one is compared: numbers have no gaps."""

    def __init__(self, frame_no: int, xml_hash: str | None) -> None:
        """Continue after a frame of which only number and hash are known: the next one will be whole."""
        self.frame_no = frame_no
        self._hash = xml_hash
        self._xml: str | None = None
        self._next_xml: str | None = None

    def next(self, xml_json: str) -> FrameDraft | None:
        """Return a tree's row; None if the tree is unchanged."""
        xml_hash = hash_of(xml_json)
        if xml_hash == self._hash:
            return None
        self._next_xml, frame_no = xml_json, self.frame_no + 1
        return FrameDraft(frame_no, xml_hash, *encode_frame(frame_no, xml_json, self._xml))

    def commit(self, frame: FrameDraft) -> None:
        """Record that the last returned frame is committed."""
        self.frame_no, self._hash, self._xml = frame.frame_no, frame.xml_hash, self._next_xml


def make_delta(previous: str, current: str) -> str:
    """Return `[start, end, middle]` as JSON text: keep this many characters of both ends, and put middle between."""
    shorter = min(len(previous), len(current))
    start = _common(shorter, lambda size: previous[:size] == current[:size])
    rest = shorter - start
    end = _common(rest, lambda size: size == 0 or previous[-size:] == current[-size:])
    return orjson.dumps([start, end, current[start : len(current) - end]]).decode()


def apply_delta(previous: str, body: str) -> str:
    """Return the text that make_delta was given as current."""
    start, end, middle = orjson.loads(body)
    return f"{previous[:start]}{middle}{previous[len(previous) - end :] if end else ''}"


def restore(previous: str, encoding: str, body: str) -> str:
    """Return the whole text of a row; `previous`: the text of the row before, which a keyframe does not need."""
    return body if encoding == KEYFRAME else apply_delta(previous, body)


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


def _common(limit: int, is_same: Callable[[int], bool]) -> int:
    """Find by bisection the largest size up to `limit` at which two ends are the same."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_same(middle):
            low = middle
        else:
            high = middle - 1
    return low
