"""What an output is kept under: two functions that may differ never share a key."""

from functools import partial, wraps
from typing import Any

import pytest

from smithers import Cache, Task
from smithers.ids import RunId
from worker.caching import Caching, fit_found


def fetch(place: str = "", *, size: int = 1) -> str:
    return place * size


def traced(function: Any) -> Any:
    @wraps(function)
    def trace(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return trace


class Client:
    def __init__(self, place: str) -> None:
        self.place = place

    def get(self) -> str:
        return self.place

    def __call__(self) -> str:
        return self.place


def bind(place: str) -> Any:
    def fetch() -> str:
        return place

    return fetch


fetch_traced = traced(fetch)


async def find_nothing(_key: str, _ttl_s: float | None) -> str | None:
    return None


def key(do: Any, node_id: str = "n", *, workflow: str = "w", **cache: Any) -> str:
    task = Task(node_id, do, cache=Cache(**cache))
    assert task.cache is not None
    return Caching(RunId("r"), workflow, find_nothing).key_of(task, task.cache, {})


def test_a_functions_output_is_for_all_nodes_that_call_it():
    assert key(fetch, "a") == key(fetch, "b")
    assert key(fetch, "a", scope="global") == key(fetch, "b", scope="global", workflow="other")
    assert key(fetch) != key(fetch, version=2)


def test_what_a_partial_gives_is_in_the_key():
    assert key(partial(fetch, "x"), "a") == key(partial(fetch, "x"), "b")
    given = [
        partial(fetch),
        partial(fetch, "x"),
        partial(fetch, "y"),
        partial(fetch, "x", size=1),
        partial(fetch, "x", size=2),
        partial(fetch, place="x"),
    ]
    assert len({key(do) for do in given}) == len(given)
    assert key(partial(fetch, place="x", size=2)) == key(partial(fetch, size=2, place="x"))


def test_an_argument_that_is_no_json_makes_it_the_nodes_and_the_others_still_count():
    do: Any = fetch
    north, south = (partial(do, object(), place) for place in ("north", "south"))
    assert key(north, "a") != key(north, "b")
    assert key(north, "a") != key(south, "a")


@pytest.mark.parametrize(
    "do",
    [Client("x").get, Client("x"), bind("x"), lambda: fetch("x"), fetch_traced, str.upper],
    ids=["method", "object", "closure", "lambda", "decorated", "built in"],
)
def test_what_has_no_name_of_its_own_is_its_nodes(do: Any):
    assert key(do, "a") == key(do, "a")
    assert key(do, "a") != key(do, "b")
    assert key(do, scope="global") != key(do, scope="global", workflow="other")


def test_a_question_is_its_nodes_agents_and_prompt():
    class Asked:
        name = "asked"

        async def run(self, prompt: str, *, output: Any, tools: Any) -> Any: ...

    def ask(node_id: str, prompt: Any, workflow: str = "w") -> str:
        task = Task(node_id, agent=Asked(), prompt=prompt, cache=Cache(scope="global"))
        assert task.cache is not None
        return Caching(RunId("r"), workflow, find_nothing).key_of(task, task.cache, {})

    asked = [ask("a", "one"), ask("a", "two"), ask("b", "one"), ask("a", "one", "other")]
    by_function = [ask("a", fetch), ask("a", bind)]
    assert len({*asked, *by_function}) == 6
    assert ask("a", fetch) == ask("a", fetch)


def test_what_is_found_and_breaks_its_model_is_made_again():
    class Broken:
        @classmethod
        def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
            raise KeyError("boo")

    assert fit_found('{"a": 1}', None) == '{"a":1}'
    assert fit_found('"x"', int) is None
    assert fit_found('"x"', Broken) is None
