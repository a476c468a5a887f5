"""What a body needs is given to it as the model that it was made with, wherever its maker stands by now."""

from typing import Any

import pytest
from pydantic import BaseModel

from smithers import Approval, Branch, Saga, Step, Task
from smithers.engine.facts import Problem
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
    [Task("write", lambda: 1, output=Article), Task("write", write), Task("write", write_later)],
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


def test_a_decision_that_is_needed_is_plain_json():
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
