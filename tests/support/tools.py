"""Tools as a task's body has them, without a run around them: what they record is kept in a list."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smithers.current import CURRENT, CurrentTask
from smithers.engine.turn import TokenUsage, ToolCall
from smithers.ids import NodeId, RunId
from smithers.source.beneath import RootDirectory
from smithers.store.tool_calls import CallPlace, ToolCallRow
from smithers.tools.toolbox import TOOLBOX
from worker.loop_thread import LoopThread
from worker.sandbox.commands import Commands, SandboxPolicy
from worker.sandbox.jail import HIDDEN
from worker.sandbox.own_code import find_closed
from worker.toolboxes import AttemptToolbox, ToolThreads, Workshop


class Records:
    """What a toolbox says of its calls; each start is kept at once."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.usage: list[TokenUsage] = []
        self.said: list[str] = []

    def take_call(self, call: ToolCall, kept: "asyncio.Future[None] | None") -> None:
        self.calls.append(call)
        if kept is not None:
            kept.set_result(None)

    def report_usage(self, usage: TokenUsage) -> None:
        self.usage.append(usage)

    def may_ask(self) -> bool:
        return True

    def speak(self, text: str) -> None:
        self.said.append(text)

    def on_stuck(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        return [f"{call.call_no} {call.tool_name} {call.state}" for call in self.calls]


def row(call_no: int, name: str, given: str, **more: Any) -> ToolCallRow:
    """A call of an attempt that was lost: a tool's with effects that are not to be had twice, unless more is said."""
    known: dict[str, Any] = {
        "attempt": 1,
        "parent_call_no": 0,
        "beside_call_no": None,
        "kind": "tool",
        "state": "finished",
        "is_side_effect": True,
        "is_idempotent": False,
        "input_bytes": 1,
        "input_digest": None,
        "output": None,
        "output_bytes": None,
        "error": None,
        "started_ms": 0,
        "finished_ms": 0,
        "is_recallable": True,
    }
    return ToolCallRow(**(known | {"call_no": call_no, "tool_name": name, "input": given} | more))


@contextmanager
def lending_tools(
    root: Path,
    previous: tuple[ToolCallRow, ...] = (),
    *,
    records: Records | None = None,
    outputs: Mapping[CallPlace, str] = MappingProxyType({}),
) -> Iterator[tuple[AttemptToolbox, Records]]:
    """Let tools be called until the block is left; `outputs`: of previous calls, where they are left out."""
    records = records or Records()
    current = CurrentTask(
        run_id=RunId("r"),
        node_id=NodeId("n"),
        iteration=0,
        attempt=1,
        root_dir=root,
        _send_heartbeat=lambda data: None,
    )

    async def find_output(place: CallPlace) -> str:
        return outputs[place]

    commands = Commands(SandboxPolicy(root=root))
    threads = ToolThreads()
    with RootDirectory(root, hidden=HIDDEN, closed=find_closed(root.resolve())) as beneath:
        workshop = Workshop(root=beneath, commands=commands, threads=threads)
        toolbox = AttemptToolbox(workshop, records, previous, find_output, LoopThread())
        tokens = CURRENT.set(current), TOOLBOX.set(lambda: toolbox)
        try:
            yield toolbox, records
        finally:
            commands.close()
            threads.close()
            CURRENT.reset(tokens[0])
            TOOLBOX.reset(tokens[1])


def swap_for_ever(stop: Path, one: Path, other: Path) -> None:
    """Exchange two names as fast as the kernel lets us, until a file is there: the work of a process."""
    import ctypes

    exchange, libc = 2, ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    while not stop.exists():
        for _ in range(1000):
            libc.renameat2(-100, names[0], -100, names[1], exchange)
