"""Outputs: what is kept is JSON that can be read back, and what is not is refused by name."""

import itertools
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator
from typing_extensions import TypedDict

from smithers.errors import InvalidOutput
from smithers.outputs import (
    MAX_MISFITS,
    decode_output,
    encode_output,
    is_plain,
    is_quick,
    weigh,
)


class Article(BaseModel):
    title: str
    words: int = 0
    parts: "list[Article]" = []


@dataclass
class Point:
    x: float
    y: float


class Row(TypedDict):
    name: str


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=False)
    kind: str = Field(alias="type")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation has it
    @property
    def area(self) -> int:
        return self.side**2


class Rude(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def explode(cls, _: int) -> int:
        raise KeyError("boo")


def deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("a\x00b", '"a\\u0000b"'),
        ("\U0001f600", '"\U0001f600"'),
        (10**30, str(10**30)),
        ({1: "x"}, '{"1":"x"}'),
        ((1, 2), "[1,2]"),
        ({7}, "[7]"),
        (b"text", '"text"'),
        (datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
        (UUID(int=0), '"00000000-0000-0000-0000-000000000000"'),
        (Article(title="x"), '{"title":"x","words":0,"parts":[]}'),
        (Point(1, 2), '{"x":1,"y":2}'),
    ],
)
def test_any_json_and_what_has_one_form_in_it_is_kept(value, text):
    assert encode_output(value) == text


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, [{"x": math.nan}], object(), "\ud800", {"\udfff": 1}, b"\xff"],
)
def test_what_is_no_json_is_refused(value):
    with pytest.raises(InvalidOutput, match="is not JSON"):
        encode_output(value)


@pytest.mark.parametrize("value", [math.nan, -math.inf, [{"x": math.inf}]])
def test_a_number_that_json_does_not_have_is_named(value):
    with pytest.raises(InvalidOutput, match="is not JSON: it contains NaN or an infinity"):
        encode_output(value)


@pytest.mark.parametrize("make", [lambda: deep(20_000), endless, lambda: {"x": deep(5000)}])
@pytest.mark.parametrize("model", [None, Any, list, Article])
def test_what_is_nested_without_end_is_refused(make, model):
    with pytest.raises(InvalidOutput):
        encode_output(make(), model)


@pytest.mark.parametrize(
    ("model", "value", "back"),
    [
        (Article, {"title": "x"}, Article(title="x")),
        (Article, Article(title="x", parts=[Article(title="y")]), None),
        (Point, Point(1, 2), None),
        (Point, {"x": "1", "y": 2}, Point(1, 2)),
        (Row, {"name": "x"}, None),
        (int | None, None, None),
        (int | str, "7", None),
        (list[Article], [{"title": "x"}], [Article(title="x")]),
        (set[int], {3, 1}, None),
        (datetime, datetime(2026, 1, 2, tzinfo=UTC), None),
        (bytes, b"text", None),
        (float, 3, 3.0),
        (Aliased, Aliased(type="x"), None),
        (Computed, Computed(side=2), None),
    ],
)
def test_a_model_can_be_read_back_as_itself(model, value, back):
    assert decode_output(encode_output(value, model), model) == (value if back is None else back)


def test_what_is_computed_is_kept_for_readers_that_do_not_know_the_model():
    class Lenient(Computed):
        model_config = ConfigDict(extra="ignore")

    assert decode_output(encode_output(Lenient(side=3), Lenient)) == {"side": 3, "area": 9}


@pytest.mark.parametrize("model", [float, float | None, Point, list[float]])
def test_no_number_that_json_does_not_have_becomes_null_on_its_way(model):
    value: Any = {Point: Point(1, math.nan)}.get(
        model, [math.nan] if model == list[float] else math.inf
    )
    with pytest.raises(InvalidOutput):
        encode_output(value, model)


def test_a_misfit_says_where():
    with pytest.raises(
        InvalidOutput, match="does not fit Article: title: Field required; words: Input should"
    ) as caught:
        encode_output({"words": "many", "parts": [{"title": "x"}]}, Article)
    assert [misfit["loc"] for misfit in caught.value.details] == [["title"], ["words"]]


def test_the_places_of_a_misfit_can_be_sent_and_are_not_too_many():
    with pytest.raises(InvalidOutput) as caught:
        encode_output({"\ud800": "x", (1, 2): "y"}, dict[str, int])
    assert all(isinstance(part, str | int) for part in caught.value.details[0]["loc"])
    with pytest.raises(InvalidOutput) as caught:
        encode_output(["x"] * 1000, list[int])
    assert len(caught.value.details) == MAX_MISFITS
    assert str(caught.value).endswith("and 997 more")


@pytest.mark.parametrize("model", [Rude, object(), [], type("Foreign", (), {})])
def test_a_model_that_breaks_is_the_outputs_fault_not_the_engines(model):
    with pytest.raises(InvalidOutput):
        encode_output({"x": 1}, model)


def test_a_changed_model_is_checked_again():
    article = Article(title="x")
    article.title = 7  # type: ignore[assignment]  # what an author may do unseen
    with pytest.raises(InvalidOutput):
        encode_output(article, Article)


def test_size_is_counted_in_bytes():
    assert encode_output("é" * 4, max_bytes=10) == '"éééé"'
    with pytest.raises(InvalidOutput, match="11 bytes") as caught:
        encode_output("é" * 4 + "x", max_bytes=10)
    assert caught.value.details == {"bytes": 11, "maxBytes": 10}


def test_what_is_far_too_large_is_not_even_written():
    text = "x" * 100_000
    for value in ([text] * 10**6, {"parts": [[text] * 10**6] * 10**6}):
        with pytest.raises(InvalidOutput, match="bytes or more"):
            encode_output(value)
    with pytest.raises(InvalidOutput, match="bytes or more"):
        encode_output([text] * 10**4, list[str])


@pytest.mark.parametrize("make", [itertools.count, lambda: (n for n in "ab"), lambda: iter([])])
@pytest.mark.parametrize("model", [None, list[int]])
def test_nothing_is_taken_of_an_iterator(make, model):
    with pytest.raises(InvalidOutput, match="make a list"):
        encode_output(make(), model)
    with pytest.raises(InvalidOutput):
        encode_output({"deep": [make()]}, model)


@pytest.mark.parametrize(
    ("value", "model"),
    [({"words": "many"}, Article), (object(), None), (iter([]), None), ("x" * 20, None)],
)
def test_a_value_that_is_no_output_is_called_by_its_own_name(value, model):
    with pytest.raises(InvalidOutput, match=r"^the state (does not fit|is not JSON|has )"):
        encode_output(value, model, what="the state", max_bytes=10)


def test_weighing_ends_at_an_iterator_and_takes_nothing_of_it():
    counting = itertools.count()
    assert weigh([counting], 10**9).iterator is itertools.count
    assert not is_quick([counting], list)
    assert next(counting) == 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=150)
@given(JSON)
def test_any_json_comes_back_as_it_was(value):
    text = encode_output(value)
    assert decode_output(text) == value
    assert weigh(value, 10**9).is_plain
    assert weigh(value, 10**9).size <= len(text.encode())


@pytest.mark.parametrize(
    "model", [None, Any, int, str, list[int], dict[str, Any], int | None, list[dict[str, str]]]
)
def test_types_of_python_run_no_authors_code(model):
    assert is_plain(model)


@pytest.mark.parametrize(
    "model", [Article, Point, Row, list[Rude], dict[str, Rude | None], Annotated[int, Field(gt=1)]]
)
def test_a_type_with_an_authors_in_it_may(model):
    assert not is_plain(model)
    assert not is_quick([], model)


def test_what_is_large_or_not_plain_is_not_quick():
    assert is_quick({"a": [1, 2]}, dict[str, Any])
    assert not is_quick("x" * 70_000, str)
    assert not is_quick(Article(title="x"), None)
