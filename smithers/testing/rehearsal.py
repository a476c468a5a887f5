"""A test's side of a rehearsal: plain calls, each of which waits for the stage's answer."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from smithers.durations import Duration, seconds
from smithers.engine.children import child_run_id, next_run_id
from smithers.engine.facts import NodeKey
from smithers.ids import NodeId, RunId, new_run_id
from smithers.outputs import encode_output
from smithers.states import RunStatus
from smithers.store import node_reads, reads
from smithers.store.embedded.temporary import open_temporary_postgres
from smithers.store.refusals import RunNotFound
from smithers.store.schema import upgrade_schema
from smithers.testing.stage import (
    MAX_LISTED,
    People,
    Person,
    Question,
    Saying,
    Stage,
    open_stage,
)
from smithers.workflow import Workflow
from worker.loops import BodyLoop

WAIT_LIMIT_S: Final = 30.0
MAX_LISTED_BYTES: Final = 1 << 30  # of the nodes of a run, without their outputs

Result = TypeVar("Result")


class Rehearsal:
    """An environment to run workflows in; creating one starts a Postgres, so share it in a session-scoped fixture."""

    def __init__(self, root_dir: str | os.PathLike[str] = ".") -> None:
        """`root_dir`: the directory below which tools work."""
        self._root_dir = Path(root_dir).resolve()
        self._stage: Stage
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._exits: AsyncExitStack

    def __enter__(self) -> Self:
        self._postgres = open_temporary_postgres()
        try:
            upgrade_schema(self._postgres.dsn)
            self._loop = BodyLoop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="rehearsal", daemon=True
            )
            self._thread.start()
            self._exits = AsyncExitStack()
            self._stage = self._do(open_stage(self._exits, self._postgres.dsn, self._root_dir))
        except BaseException:
            self._postgres.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            self._do(self._exits.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        finally:
            self._postgres.close()

    def start(
        self,
        workflow: Workflow[Any],
        input: Mapping[str, Any] | None = None,
        *,
        people: People | None = None,
        run_id: str | None = None,
        user: str | None = None,
        scopes: Sequence[str] = (),
    ) -> "RehearsedRun":
        """Start a run; `people`: the answers that these nodes get as soon as they ask.

        The run's code sees the caller's present context variables, including an `Agent.override`.
        Raises pydantic's ValidationError for an input that does not fit the workflow's model.
        """
        if workflow.input_model is not None:
            workflow.input_model.model_validate(dict(input or {}))
        run = RunId(run_id) if run_id is not None else new_run_id()
        auth = json.dumps({"user": user, "scopes": list(scopes)})
        given = json.dumps(dict(input or {}))
        self._do(self._stage.start(workflow, run, given, auth, copy_context()))
        return RehearsedRun(run, self._stage, self._do, dict(people or {}))

    def advance(self, by: Duration) -> None:
        """Move the clock ahead: timers fire, waits expire, back-offs end. Time-outs of running bodies are not affected."""
        self._do(self._stage.advance(seconds(by, "Rehearsal.advance()")))

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class RehearsedRun:
    """A run on a rehearsal's stage. Its properties are read from the database each time."""

    def __init__(
        self,
        run_id: RunId,
        stage: Stage,
        do: Callable[[Coroutine[Any, Any, Any]], Any],
        people: People,
    ) -> None:
        self.run_id = run_id
        self._stage = stage
        self._do = do
        self._people = people

    def wait(self, limit_s: float = WAIT_LIMIT_S) -> Self:
        """Wait until the run has ended, or can only be moved from outside; raises RehearsalTimeout."""
        self._do(self._stage.until_at_rest(self.run_id, self._people, limit_s))
        return self

    @property
    def status(self) -> RunStatus:
        """The run's status."""
        status: RunStatus = self._detail().life.status
        return status

    @property
    def output(self) -> Any:
        """The run's output, as plain JSON."""
        return _parsed(self._detail().output)

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the run failed: name, message, code, details, traceback."""
        error: dict[str, Any] | None = _parsed(self._detail().error)
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        """The run's events, as the stream would send them."""
        events: list[dict[str, Any]] = self._do(self._stage.events(self.run_id))
        return events

    @property
    def questions(self) -> list[Question]:
        """The run's open questions to people."""
        questions: list[Question] = self._do(self._stage.questions(self.run_id))
        return questions

    def states(self) -> dict[str, str]:
        """Return each node's state by its id; for a node in a loop, that of its newest iteration."""
        nodes = self._nodes()
        return {node.node_id: node.state for node in nodes}

    def attempts(self, node_id: str) -> int:
        """Count a node's attempts, in all iterations."""
        return sum(node.attempt for node in self._nodes() if node.node_id == node_id)

    def say(
        self, node_id: str, saying: Saying, *, by: str | None = None, scopes: Sequence[str] = ()
    ) -> None:
        """Answer a question, as people would: see People. A refusal is raised.

        `by`: the user whose token has these scopes; without one anybody may answer, as on a server without tokens.
        """
        person = Person() if by is None else Person(by, tuple(scopes))
        self._do(self._stage.say(self.run_id, NodeId(node_id), saying, person))

    def signal(
        self,
        name: str,
        data: Any = {},  # noqa: B006 - handed on as it is
        *,
        correlation_id: str | None = None,
    ) -> None:
        """Send a signal."""
        sent = encode_output(data, what="the signal's data")
        self._do(self._stage.signal(self.run_id, name, sent, correlation_id))

    def cancel(self) -> None:
        """Cancel the run."""
        self._do(self._stage.cancel(self.run_id))

    def resume(self) -> None:
        """Resume a failed or cancelled run, with the caller's present context variables."""
        self._do(self._stage.resume(self.run_id, copy_context()))

    def child(self, node_id: str, *, iteration: int = 0, people: People | None = None) -> Self:
        """Return the run that a Subflow of this run has started; `people` as for start.

        Before it has started, reading it raises RunNotFound.
        """
        key = NodeKey(NodeId(node_id), iteration)
        return self._other(child_run_id(self.run_id, key), people)

    def next(self, *, people: People | None = None) -> Self:
        """Return this run's continuation, if its status is `continued`; `people` as for start."""
        return self._other(next_run_id(self.run_id), people)

    def _other(self, run_id: RunId, people: People | None) -> Self:
        return type(self)(run_id, self._stage, self._do, dict(people or {}))

    def _detail(self) -> reads.RunDetail:
        found: reads.RunDetail | None = self._do(reads.find_run(self._stage.pool, self.run_id))
        if found is None:
            raise RunNotFound
        return found

    def _nodes(self) -> list[node_reads.NodeRow]:
        listed = node_reads.list_nodes(
            self._stage.pool,
            self.run_id,
            after=None,
            limit=MAX_LISTED,
            max_bytes=0,
            page_bytes=MAX_LISTED_BYTES,
        )
        nodes: list[node_reads.NodeRow] = self._do(listed)[0]
        return sorted(nodes, key=lambda node: node.iteration)


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)
