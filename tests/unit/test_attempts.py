"""Attempts: each that was begun is reported once, and an author's models are held against its time, not its child's."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from smithers import Cache, Task, current_task
from smithers.engine.facts import Facts, NodeKey
from smithers.engine.mount import mount
from smithers.engine.turn import Start
from smithers.ids import NodeId, RunId
from smithers.store.tool_calls import CallPlace
from smithers.tools.toolbox import CallStart, find_toolbox
from smithers.tree import Sequence
from worker.attempt import Attempt
from worker.attempts import Attempts, PastCalls
from worker.bodies import Bodies
from worker.caching import Caching
from worker.happenings import Aborted, Beaten, Failed, Finished, Happening
from worker.needs import Need
from worker.settings import PoolSettings
from worker.toolboxes import open_workshop

KEY = NodeKey(NodeId("t"), 0)
HELD: ContextVar[object] = ContextVar("held")
ZERO = Need(NodeId("zero"), "0", None)
CALL_START = CallStart(tool_name="send", input="{}", is_side_effect=True, is_idempotent=False)


class Picky(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def refuse(cls, n: int) -> int:
        if threading.current_thread() is threading.main_thread():
            raise AssertionError("this is the loop's thread")
        if n == 1:
            raise KeyError(f"secret {n}")
        if n == 2:
            raise ValueError("not two")
        if n == 3:
            current_task().cancelled.wait(60)
        return n


class Stage:
    """One run's attempts, and what they report."""

    def __init__(self, bodies: Bodies) -> None:
        self.reported: asyncio.Queue[Happening] = asyncio.Queue()
        self.cached: dict[str, str] = {}
        run_id = RunId("r")
        self.attempts = Attempts(
            run_id,
            bodies,
            self.reported.put_nowait,
            PastCalls(self._list_calls, self._find_output),
            Caching(run_id, "w", self._find_cached),
            trace=None,
        )

    def start(self, task: Task[Any], needs: dict[str, Need] | None = None) -> None:
        leaf = mount(Sequence(task), Facts()).leaves[KEY]
        self.attempts.start(
            Start(leaf, 1),
            needs=needs or {},
            last_heartbeat=None,
            is_budget_spent=lambda _more_ms: False,
        )

    async def end(self) -> Happening:
        return await asyncio.wait_for(self.reported.get(), 60)

    async def _list_calls(self, _node_id: NodeId, _iteration: int) -> list[Any]:
        return []

    async def _find_output(self, _node_id: NodeId, _iteration: int, _place: CallPlace) -> None:
        return None

    async def _find_cached(self, key: str, _ttl_s: float | None) -> str | None:
        return self.cached.get(key)


@pytest.fixture
async def abandoned() -> list[str]:
    return []


@pytest.fixture
async def stage(tmp_path: Path, abandoned: list[str]) -> AsyncIterator[Stage]:
    settings = PoolSettings(dsn="", direct_dsn="", root_dir=str(tmp_path), worker_count=1)
    with ExitStack() as exits:
        bodies = Bodies(
            threads=exits.enter_context(ThreadPoolExecutor(max_workers=4)),
            workshop=exits.enter_context(open_workshop(settings)),
            root_dir=tmp_path,
            on_abandoned=abandoned.append,
        )
        opened = Stage(bodies)
        yield opened
        await opened.attempts.drop()


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_an_attempt_that_is_stopped_before_its_first_step_has_ended(
    stage: Stage, abandoned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempts.GIVE_UP_S", 3600.0)
    stage.start(Task("t", for_ever))
    stage.attempts.abort(KEY, "unmounted")
    assert await stage.end() == Aborted(KEY, 1, "unmounted")
    assert stage.attempts.count == 0
    assert abandoned == []


async def test_what_is_dropped_before_its_first_step_is_gone(stage: Stage) -> None:
    stage.start(Task("t", for_ever))
    await stage.attempts.drop()
    assert stage.attempts.count == 0
    await stage.attempts.drop()


async def test_one_that_is_stopped_later_has_ended_once(stage: Stage) -> None:
    stage.start(Task("t", for_ever))
    await asyncio.sleep(0)
    stage.attempts.abort(KEY, "unmounted")
    assert await stage.end() == Aborted(KEY, 1, "unmounted")
    await asyncio.sleep(0)
    assert stage.reported.empty()


@pytest.mark.parametrize("error", [None, LookupError])
async def test_what_an_attempt_held_is_freed_at_its_end(
    stage: Stage, error: type[Exception] | None
) -> None:
    class Held:
        pass

    async def work() -> None:
        HELD.set(held := Held())
        seen.append(weakref.ref(held))
        del held  # a traceback has the frame
        if error is not None:
            raise error("no such page")

    seen: list[weakref.ref[Held]] = []
    gc.disable()  # nobody waits for the collector
    try:
        stage.start(Task("t", work, timeout=3600, heartbeat_timeout=3600))
        await stage.end()
        async with asyncio.timeout(60):
            while seen[0]() is not None:
                await asyncio.sleep(0)
    finally:
        gc.enable()


async def test_a_body_that_is_being_stopped_gets_closed_tools(stage: Stage) -> None:
    async def work() -> None:
        try:
            await for_ever()
        finally:
            with pytest.raises(asyncio.CancelledError):
                await find_toolbox().recall(CALL_START)
            refused.append(CALL_START)

    refused: list[CallStart] = []
    stage.start(Task("t", work))
    await asyncio.sleep(0)
    stage.attempts.abort(KEY, "unmounted")
    await stage.end()
    assert refused == [CALL_START]


async def test_what_outlives_an_attempt_gets_closed_tools(stage: Stage) -> None:
    async def outlive() -> None:
        await is_over.wait()
        with pytest.raises(asyncio.CancelledError):
            await find_toolbox().recall(CALL_START)

    async def work() -> None:
        left.append(asyncio.create_task(outlive()))

    is_over, left = asyncio.Event(), list[asyncio.Task[None]]()
    stage.start(Task("t", work))
    await stage.end()
    is_over.set()
    await left[0]


async def test_the_newest_heartbeat_is_told_with_the_end(stage: Stage) -> None:
    async def work() -> None:
        for page in range(50):
            current_task().heartbeat(page)
        raise RuntimeError("it broke")

    stage.start(Task("t", work))
    told = [await stage.end() for _ in range(3)]
    assert told[:2] == [Beaten(KEY, 1, "0"), Beaten(KEY, 1, "49")]
    assert isinstance(told[2], Failed)


async def test_nothing_holds_an_attempt_that_has_ended_for_as_long_as_it_might_have_taken(
    stage: Stage,
) -> None:
    stage.start(Task("t", asyncio.sleep, timeout=3600, heartbeat_timeout=3600), {"delay": ZERO})
    assert await stage.end() == Finished(KEY, 1, "null")
    async with asyncio.timeout(60):
        # By its type alone: objects of other tests may raise where they are asked for their class.
        while any(type(found) is Attempt for found in gc.get_objects()):
            await asyncio.sleep(0)
            gc.collect()


@pytest.mark.parametrize(
    ("n", "name", "code", "wrong"),
    [
        (1, "InvalidOutput", "INVALID_OUTPUT", "KeyError"),
        (2, "InvalidOutput", "INVALID_OUTPUT", "n: Value error, not two"),
        (3, "TimeoutError", "TASK_TIMEOUT", "took longer"),
    ],
)
async def test_what_a_model_makes_of_a_need_is_the_attempts(
    stage: Stage, n: int, name: str, code: str, wrong: str
) -> None:
    need = Need(NodeId("a"), f'{{"n": {n}}}', Picky)
    stage.start(Task("t", lambda v: v.n, timeout=0.2 if n == 3 else 30), {"v": need})
    end = await stage.end()
    assert isinstance(end, Failed)
    assert (end.problem.name, end.problem.code) == (name, code)
    assert wrong in end.problem.message
    assert "secret" not in f"{end.problem}"
    assert "input_value" not in f"{end.problem}"


async def test_what_a_need_is_read_as_is_what_its_model_makes_of_it(stage: Stage) -> None:
    needs = {"v": Need(NodeId("a"), '{"n": 7}', Picky), "w": Need(NodeId("b"), None, Picky)}
    stage.start(Task("t", lambda v, w: [v.n, w]), needs)
    assert await stage.end() == Finished(KEY, 1, "[7,null]")


@pytest.mark.parametrize(("n", "came_out"), [(1, 8), (2, 8), (7, 7)])
async def test_what_was_kept_and_does_not_fit_is_made_again(
    stage: Stage, n: int, came_out: int
) -> None:
    async def make() -> Any:
        return {"n": 8}

    task = Task("t", make, output=Picky, cache=Cache())
    assert task.cache is not None
    key = Caching(RunId("r"), "w", stage._find_cached).key_of(task, task.cache, {})
    stage.cached[key] = f'{{"n": {n}}}'
    stage.start(task)
    end = await stage.end()
    assert isinstance(end, Finished)
    assert end.output == f'{{"n":{came_out}}}'
    assert (end.cached is None) == (came_out == n)


async def test_a_list_of_models_is_judged_in_a_thread(stage: Stage) -> None:
    async def make() -> list[dict[str, int]]:
        return [{"n": 8}]

    stage.start(Task("t", make, output=list[Picky]))
    assert await stage.end() == Finished(KEY, 1, '[{"n":8}]')


class Text(str):
    __slots__ = ()

    def encode(self, *_how: str) -> bytes:
        raise AttributeError


def syntax_error(**fields: Any) -> SyntaxError:
    error = SyntaxError("odd", ("f.py", 1, 1, "x"))
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class Bottomless(Exception):
    def __getattr__(self, name: str) -> Any:
        return self.payload[name]


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Untextual(Exception):
    def __str__(self) -> str:
        return Text("x")


class Faceless(Exception):
    @property  # type: ignore[misc]  # what an author may do
    def __class__(self) -> Any:
        raise KeyError


@pytest.mark.parametrize(
    "make_error",
    [
        Bottomless,
        Exiting,
        Untextual,
        Faceless,
        partial(syntax_error, offset="far"),
        partial(syntax_error, text=b"x"),
    ],
)
async def test_an_attempt_ends_however_its_exception_defies_a_description(
    stage: Stage, make_error: Callable[[], Exception]
) -> None:
    def refuse() -> None:
        raise make_error()

    stage.start(Task("t", refuse, timeout=3600))
    end = await stage.end()
    assert isinstance(end, Failed)
    assert end.problem.name in {type(make_error()).__name__, "KeyError"}
    assert stage.attempts.count == 0


async def test_a_traceback_begins_with_the_authors_own_code(stage: Stage) -> None:
    def refuse() -> None:
        raise LookupError("no such page")

    stage.start(Task("t", refuse))
    end = await stage.end()
    assert isinstance(end, Failed)
    assert end.problem.traceback is not None
    _, first, *_, last = end.problem.traceback.splitlines()
    assert first.endswith("in refuse")
    assert last == "LookupError: no such page"


async def test_a_value_of_pythons_own_types_has_ended_at_once(stage: Stage) -> None:
    stage.start(Task("t", [1, "two"], output=list[int | str]))
    assert stage.reported.get_nowait() == Finished(KEY, 1, '[1,"two"]')


async def test_a_value_is_held_against_its_authors_model_in_a_thread(stage: Stage) -> None:
    stage.start(Task("t", {"n": 8}, output=Picky, cache=Cache()))
    end = await stage.end()
    assert isinstance(end, Finished)
    assert end.output == '{"n":8}'


async def test_a_model_that_wants_the_process_to_end_ends_the_attempt_of_a_value(
    stage: Stage,
) -> None:
    class Ending(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def leave(cls, n: int) -> int:
            raise SystemExit(n)

    stage.start(Task("t", {"n": 3}, output=Ending))
    end = await stage.end()
    assert isinstance(end, Failed)
    assert end.problem.name == "SystemExit"


async def test_a_value_that_is_an_iterator_is_no_output(stage: Stage) -> None:
    stage.start(Task("t", iter([1])))
    end = await stage.end()
    assert isinstance(end, Failed)
    assert end.problem.code == "INVALID_OUTPUT"
