"""What a body needs is given to it as the model that it was made with, else as the body takes it."""

import gc
import sys
import weakref
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from smithers import Approval, ApprovalDecision, Branch, Saga, Step, Task
from smithers.engine.facts import Problem
from smithers.errors import InvalidOutput
from smithers.outputs import adapter_for
from tests.support.engine import World
from worker.needs import find_needs, read_needs


class Article(BaseModel):
    title: str


class Strange:
    pass


class Leaving:
    @classmethod
    def __get_pydantic_core_schema__(cls, *_how: Any) -> Any:
        raise SystemExit(3)


def write() -> Article:
    return Article(title="Bees")


def write_later() -> "Article":
    return Article(title="Bees")


def write_strangely() -> Strange:
    return Strange()


def one():
    return 1


def leave() -> Leaving:
    return Leaving()


def write_unknown() -> "Nothing":  # type: ignore[name-defined]  # noqa: F821 - it is nowhere
    return None


def needs_of(world: World, node_id: str) -> dict[str, Any]:
    leaf = world.run.find_leaf(world.key(node_id))
    assert leaf is not None
    assert isinstance(leaf.element, Task)
    return read_needs(find_needs(world.run, leaf.element))


@pytest.mark.parametrize(
    "maker",
    [Task("write", one, output=Article), Task("write", write), Task("write", write_later)],
)
def test_a_need_is_read_as_its_maker_says_or_its_function_returns(maker):
    world = World(lambda _: [maker, Task("use", 1, needs={"made": "write"})]).begin()
    world.finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": Article(title="Bees")}


@pytest.mark.parametrize("do", [lambda: 1, write_strangely, write_unknown, leave])
def test_a_need_is_plain_json_where_its_maker_names_no_model(do):
    world = World(lambda _: [Task("write", do), Task("use", 1, needs={"made": "write"})]).begin()
    world.finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": {"title": "Bees"}}


def take(made: Article) -> str:
    return made.title


async def take_later(made: "Article") -> str:
    return made.title


def take_with(prefix: str, made: Article) -> str:
    return prefix + made.title


class Taker:
    made: int

    def __call__(self, made: Article) -> str:
        return made.title

    def take(self, made: Article) -> str:
        return made.title


TAKERS = [take, take_later, partial(take_with, "a "), Taker(), Taker().take]


@pytest.mark.parametrize("taker", TAKERS)
def test_a_need_whose_maker_names_no_model_is_read_as_its_taker_says(taker):
    makes, takes = Task("write", lambda: 1), Task("use", taker, needs={"made": "write"})
    world = World(lambda _: [makes, takes]).begin().finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": Article(title="Bees")}


def test_a_prompt_gets_what_it_needs_as_it_says():
    agent = SimpleNamespace(run=print)
    asks = Task("use", agent=agent, prompt=take, needs={"made": "write"})
    world = World(lambda _: [Task("write", lambda: 1), asks]).begin()
    world.finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": Article(title="Bees")}


def take_plainly(made: dict[str, str]) -> str:
    return made["title"]


def take_strangely(made: Strange) -> None: ...


def take_unknown(made: "Nothing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - it is nowhere


def test_a_need_is_read_as_its_maker_says_where_its_taker_says_otherwise():
    takes = Task("use", take_plainly, needs={"made": "write"})
    world = World(lambda _: [Task("write", write), takes]).begin()
    world.finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": Article(title="Bees")}


@pytest.mark.parametrize("taker", [lambda made: made, take_strangely, take_unknown, print])
def test_a_need_is_plain_json_where_its_taker_names_no_model_either(taker):
    makes, takes = Task("write", lambda: 1), Task("use", taker, needs={"made": "write"})
    world = World(lambda _: [makes, takes]).begin().finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"made": {"title": "Bees"}}


MODULE = """
from __future__ import annotations

from pydantic import BaseModel


class Page(BaseModel):
    title: str

    def shout(self) -> str:
        return self.title.upper()


def take(made: Page) -> str:
    return made.shout()
"""


def test_a_function_that_was_looked_at_is_freed_with_its_module(monkeypatch):
    def use() -> weakref.ref[Any]:
        module = ModuleType("author")
        monkeypatch.setitem(sys.modules, "author", module)
        exec(MODULE, vars(module))
        makes, takes = Task("write", lambda: 1), Task("use", module.take, needs={"made": "write"})
        world = World(lambda _: [makes, takes]).begin().finish("write", value={"title": "Bees"})
        assert needs_of(world, "use")["made"].shout() == "BEES"
        return weakref.ref(module.take)

    taker = use()
    monkeypatch.undo()
    adapter_for.cache_clear()
    gc.collect()
    assert taker() is None


def test_a_need_that_its_taker_does_not_take_is_told_by_its_node():
    makes, takes = Task("write", lambda: 1), Task("use", take, needs={"made": "write"})
    world = World(lambda _: [makes, takes]).begin().finish("write", value={"name": "Bees"})
    with pytest.raises(InvalidOutput, match="the output of write does not fit Article: "):
        needs_of(world, "use")


def test_a_decision_that_is_needed_is_read_as_its_taker_says():
    def act(said: ApprovalDecision) -> None: ...

    world = World(lambda _: [Approval("ok", title="?"), Task("use", act, needs={"said": "ok"})])
    world.begin().approve("ok")
    assert needs_of(world, "use")["said"].approved is True


def test_what_undoes_gets_what_was_made_as_its_own_function_says():
    def build(_: Any) -> Any:
        undo = Task("undo", take, needs={"made": "a"})
        return Saga("s", Step(Task("a", lambda: 1), undo), Step(Task("b", 1)))

    world = World(build).begin().finish("a", value={"title": "Bees"})
    world.fail("b", Problem("E", "no"))
    assert needs_of(world, "undo") == {"made": Article(title="Bees")}


def test_a_decision_that_is_needed_is_plain_json_where_nobody_says_more():
    world = World(lambda _: [Approval("ok", title="?"), Task("use", 1, needs={"said": "ok"})])
    world.begin().approve("ok")
    assert needs_of(world, "use")["said"]["approved"] is True


def test_a_need_is_read_as_its_model_where_its_maker_is_in_a_branch_not_taken_any_more():
    def build(ctx: Any) -> Any:
        has_written = ctx.output_maybe("write") is not None
        return [Branch(not has_written, Task("write", write)), Task("use", 1, needs={"a": "write"})]

    world = World(build).begin().finish("write", value={"title": "Bees"})
    assert needs_of(world, "use") == {"a": Article(title="Bees")}


@pytest.mark.parametrize("end", [World.cancel, lambda world: world.fail("b", Problem("E", "no"))])
def test_what_undoes_gets_what_was_made_as_its_model(end):
    def build(_: Any) -> Any:
        undo = Task("undo", 1, needs={"a": "a"})
        return Saga("s", Step(Task("a", write), undo), Step(Task("b", 1)))

    world = World(build).begin().finish("a", value={"title": "Bees"})
    end(world)
    assert needs_of(world, "undo") == {"a": Article(title="Bees")}
