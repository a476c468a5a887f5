"""A run's progress for people: a live list of nodes on a terminal, elsewhere a line for each event.

`ProgressView` is the state from the events so far; the two displays show it, on stderr: stdout is for the result.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from smithers.cli.console import STYLES, open_console
from smithers.states import NodeState
from smithers.texts import printable

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from smithers.client import Event

MARKS: Final = {
    NodeState.PENDING: ("○", "."),
    NodeState.IN_PROGRESS: ("●", ">"),
    NodeState.WAITING_APPROVAL: ("?", "?"),
    NodeState.WAITING_EVENT: ("?", "?"),
    NodeState.WAITING_TIMER: ("◷", "~"),
    NodeState.FINISHED: ("✓", "+"),
    NodeState.FAILED: ("✗", "x"),
    NodeState.CANCELLED: ("⊘", "x"),
    NodeState.SKIPPED: ("◌", "-"),
}
STATES: Final = {
    "NodePending": NodeState.PENDING,
    "NodeStarted": NodeState.IN_PROGRESS,
    "NodeRetrying": NodeState.PENDING,
    "NodeWaitingApproval": NodeState.WAITING_APPROVAL,
    "NodeWaitingEvent": NodeState.WAITING_EVENT,
    "NodeWaitingTimer": NodeState.WAITING_TIMER,
    "NodeFinished": NodeState.FINISHED,
    "NodeFailed": NodeState.FAILED,
    "NodeCancelled": NodeState.CANCELLED,
    "NodeSkipped": NodeState.SKIPPED,
}
RUN_WORDS: Final = {
    "RunStarted": "running",
    "RunFinished": "finished",
    "RunFailed": "failed",
    "RunCancelled": "cancelled",
    "RunAutoResumed": "resumed: its worker died",
    "WorkflowReloaded": "continues with its edited source",
}
REFRESHES_PER_S: Final = 12
LINES_KEPT: Final = 8  # lines of the terminal that are not for nodes


@dataclass(slots=True)
class NodeLine:
    """A node as displayed."""

    name: str
    state: NodeState = NodeState.PENDING
    attempt: int = 0
    began_ms: int | None = None
    ended_ms: int | None = None
    remark: str = ""

    def took_s(self, now_ms: float) -> float | None:
        """The duration of the newest attempt, in seconds."""
        if self.began_ms is None:
            return None
        return max((self.ended_ms or now_ms) - self.began_ms, 0) / 1000


class ProgressView:
    """A run's state from its events so far."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[str, int], NodeLine] = {}
        self._children: dict[tuple[str, int], str] = {}  # by the subflow's node: its run
        self.run_word = "starting"
        self.began_ms: int | None = None
        self.last_ms = 0

    def take(self, event: "Event") -> NodeLine | None:
        """Apply an event; return its node."""
        self.began_ms = self.began_ms or event.timestamp_ms
        self.last_ms = event.timestamp_ms
        if event.type in RUN_WORDS:
            self.run_word = RUN_WORDS[event.type]
        elif event.type == "RunStatusChanged":
            self.run_word = str(event.field("status"))
        elif event.type == "SubflowStarted" and event.node_id is not None:
            place = (event.node_id, event.iteration or 0)
            self._children[place] = str(event.field("childRunId"))
        state = STATES.get(event.type)
        if state is None or event.node_id is None:
            return None
        return self._take_node(event, event.node_id, state)

    def _take_node(self, event: "Event", node_id: str, state: NodeState) -> NodeLine:
        iteration = event.iteration or 0
        name = printable(node_id if iteration == 0 else f"{node_id} · {iteration + 1}")
        node = self.nodes.setdefault((node_id, iteration), NodeLine(name))
        if state is NodeState.IN_PROGRESS or (state.is_waiting and node.began_ms is None):
            node.began_ms, node.ended_ms = event.timestamp_ms, None
        elif state.is_settled or state is NodeState.CANCELLED:
            node.ended_ms = event.timestamp_ms
        if event.type == "NodeStarted":
            node.attempt = event.attempt or 1
        node.remark = printable(_remark(event, self._children.get((node_id, iteration))))
        node.state = state
        return node

    def count(self) -> str:
        """Count the nodes by state."""
        counts = Counter(node.state for node in self.nodes.values())
        return ", ".join(f"{counts[state]} {state}" for state in NodeState if counts[state])


def _remark(event: "Event", child: str | None = None) -> str:
    error = event.field("error")
    if error:
        return f"{error.get('name')}: {error.get('message')}".splitlines()[0]
    match event.type:
        case "NodeRetrying":
            return f"attempt {event.attempt} is next"
        case "NodeWaitingEvent":
            awaited = f"the signal {event.field('signalName')}"
            return f"waits for {f'its run {child} to end' if child else awaited}"
        case "NodeWaitingApproval":
            return "waits for a person"
        case "NodeCancelled":
            return str(event.field("reason") or "")
        case _:
            return ""


class PlainDisplay:
    """One line for each event, with the seconds since the run's start."""

    def __init__(self) -> None:
        self.progress = ProgressView()
        self._console = open_console(is_stderr=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def end(self) -> None:
        """End the display."""

    def say(self, text: str) -> None:
        """Say something that is no event."""
        self._console.print(printable(text), markup=False)

    def pause(self) -> None:
        """Release the terminal; does nothing here."""

    def unpause(self) -> None:
        """Take the terminal back."""

    def show(self, event: "Event") -> None:
        """Show an event."""
        node = self.progress.take(event)
        for text in self._describe(event, node):
            began_ms = self.progress.began_ms or event.timestamp_ms
            self._console.print(
                f"{(event.timestamp_ms - began_ms) / 1000:8.2f}s  {printable(text)}", markup=False
            )

    def _describe(self, event: "Event", node: NodeLine | None) -> Iterator[str]:
        if event.type == "NodeOutput":
            for line in str(event.field("text")).splitlines():
                yield f"{event.node_id} | {line}"
        elif event.type in RUN_WORDS or event.type == "RunStatusChanged":
            remark = _remark(event)
            yield f"run {self.progress.run_word}" + (f": {remark}" if remark else "")
        elif node is not None and event.type != "NodePending":
            attempt = f", attempt {node.attempt}" if node.attempt > 1 else ""
            remark = f": {node.remark}" if node.remark else ""
            yield f"{node.name} {node.state}{attempt}{remark}"


class LiveDisplay:
    """A list of nodes that is redrawn as they change; tasks' output scrolls above it."""

    def __init__(self, title: str) -> None:
        self.progress = ProgressView()
        self._title = printable(title)
        self._console: Console = open_console(is_stderr=True)
        self._began_s = time.monotonic()
        self._is_unicode = (self._console.encoding or "").lower().startswith("utf")
        self._live = self._make_live()

    def _make_live(self) -> "Live":
        from rich.live import Live

        return Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESHES_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def end(self) -> None:
        """End the display, and leave the last list on the screen."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a message above the list."""
        self._console.print(printable(text), markup=False)

    def pause(self) -> None:
        """Release the terminal for a question: the list disappears, and reappears below it."""
        self._live.transient = True
        self._live.stop()

    def unpause(self) -> None:
        """Draw again, below the text written meanwhile."""
        self._live = self._make_live()  # a used one would erase the lines above it
        self._live.start()

    def show(self, event: "Event") -> None:
        """Show an event."""
        from rich.text import Text

        self.progress.take(event)
        if event.type == "NodeOutput":
            for line in str(event.field("text")).splitlines():
                self._console.print(
                    Text(printable(f"  {event.node_id} │ {line}"), style="dim"), soft_wrap=True
                )

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        word = self.progress.run_word
        elapsed_s = time.monotonic() - self._began_s
        head = Text.assemble(
            (self._title, "bold"),
            "  ",
            (word, STYLES.get(word, "")),
            f"  {elapsed_s:.1f} s",
            style="",
        )
        if not self.progress.nodes:
            return Group(head)
        return Group(head, self._table(), Text(f"  {self.progress.count()}", style="dim"))

    def _table(self) -> "Table":
        from rich.table import Table

        room = max(self._console.height - LINES_KEPT, 5)
        shown, hidden = choose_lines(list(self.progress.nodes.values()), room)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for node in shown:
            table.add_row(self._mark(node), _cut(node.name), self._took(node), _cut(_detail(node)))
        if hidden:
            table.add_row("", f"… {hidden} more", "", "")
        return table

    def _mark(self, node: NodeLine) -> "Text":
        from rich.text import Text

        pretty, plain = MARKS[node.state]
        if node.state is NodeState.IN_PROGRESS and self._is_unicode:
            frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
            pretty = frames[int(time.monotonic() * REFRESHES_PER_S) % len(frames)]
        return Text(f"  {pretty if self._is_unicode else plain}", style=STYLES[node.state])

    def _took(self, node: NodeLine) -> str:
        # The server's clock: its last timestamp plus the time since then.
        took_s = node.took_s(time.time() * 1000)
        return "" if took_s is None else f"{took_s:.2f} s"


def choose_lines(nodes: list[NodeLine], room: int) -> tuple[list[NodeLine], int]:
    """Return the nodes that fit, in their order, and the number of the others.

    Running nodes and those that need somebody come first, then failed ones, then the last to end, then those not begun.
    """
    if len(nodes) <= room:
        return nodes, 0
    ranks = {NodeState.FAILED: 1, NodeState.CANCELLED: 1, NodeState.PENDING: 3}

    def rank(numbered: tuple[int, NodeLine]) -> tuple[int, int]:
        number, node = numbered
        is_busy = node.state is NodeState.IN_PROGRESS or node.state.is_waiting
        order = number if node.state is NodeState.PENDING else -(node.ended_ms or 0)
        return (0 if is_busy else ranks.get(node.state, 2), order)

    best = sorted(enumerate(nodes), key=rank)[: room - 1]
    return [node for _, node in sorted(best, key=lambda pair: pair[0])], len(nodes) - len(best)


def _cut(text: str) -> "Text":
    """Return a cell that is cut where its column, the first to shrink, has no room for it."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


def _detail(node: NodeLine) -> str:
    attempt = f"attempt {node.attempt}" if node.attempt > 1 else ""
    return "  ".join(filter(None, (attempt, node.remark)))


Display = PlainDisplay | LiveDisplay


def open_display(title: str) -> Display:
    """Return the display that suits this process's stderr."""
    console = open_console(is_stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(title)
    return PlainDisplay()
