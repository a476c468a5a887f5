"""Strict JSON: what two readers could take for two things is refused, and nothing makes the parser recurse or crawl."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bodies import MAX_DEPTH, bracket_depth, parse_object, write_json
from gateway.errors import InvalidJson, InvalidRequest

REFUSED = [
    b"hello", b"{", b'{"a":1,}', b'{/*x*/"a":1}', b'{"a":1}x', b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":Infinity}',
    b'{"a":1e999}', b'{"a":-1e999}', b'{"a":007}', b'{"a":0x1}', b'{"a":"\x01"}', b'{"a":"\n"}', b'{"a":"\\u12"}',
    b'{"a":1}\0', b'{"a":"\xff"}', b'{"a":"\xe9"}', '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32"),
    b'\xef\xbb\xbf{"a":1}', b'{"a":1,"a":2}', b'{"b":{"a":1,"\\u0061":2}}', b'{"a":"\\ud800"}', b'{"\\uDFFF":1}',
    b'{"a":"\\ud83d\\ud83d\\ude00"}', b'{"a":"\xed\xa0\x80"}', b'{"a":' + b"1" * 400 + b"}",
    b'{"a":' + b"1" * 5000 + b"}", b'{"a":' + b"1" * 400 + b".5}", b"'a'", b"{'a':1}", b'{"a":+1}', b'{"a":.5}', b'{"a":1.}',
    b'{"a":tru}', b'{"a" 1}', b"{a:1}", b'\xc2\xa0{"a":1}', b'{"a":"' + b"[" * 100,
]  # fmt: skip


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:30]))
def test_what_is_no_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises((InvalidJson, InvalidRequest)) as caught:
        parse_object(body)
    assert body.decode("utf-8", "replace")[:20] not in str(caught.value)


@pytest.mark.parametrize("body", [b"[]", b"null", b"true", b'"x"', b"1", b'[{"a":1}]'])
def test_a_body_that_is_no_object_is_refused_as_such(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_object(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b" {} \r\n\t", {}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b'{"a":"\\u0000"}', {"a": "\0"}),
        (b'{"a":123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b'{"a":1e308,"b":-0.0}', {"a": 1e308, "b": -0.0}),
        (b'{"a":"' + b"[" * 100 + b'"}', {"a": "[" * 100}),
        (b'{"a":"\\\\","b":"\\"[[[["}', {"a": "\\", "b": '"[[[['}),
    ],
)
def test_odd_but_strict_json_is_read(body: bytes, value: dict[str, Any]) -> None:
    assert parse_object(body) == value
    assert json.loads(write_json(parse_object(body))) == value


def nested(depth: int, leaf: str = "") -> bytes:
    return ('{"a":' + "[" * (depth - 1) + leaf + "]" * (depth - 1) + "}").encode()


def test_thirty_two_levels_are_the_most_and_scalars_count() -> None:
    parse_object(nested(MAX_DEPTH))
    parse_object(nested(MAX_DEPTH - 1, "1"))
    for body in (nested(MAX_DEPTH + 1), nested(MAX_DEPTH, "1")):
        with pytest.raises(InvalidRequest) as caught:
            parse_object(body)
        assert caught.value.details == {"maxDepth": MAX_DEPTH}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000, b"]" * 1_000_000, b"[]" * 500_000, b'{"a":' * 200_000, b'["' * 500_000, b'"\\' * 500_000,
        b"[" * 500_000 + b"]" * 500_000, b'{"a":' + b"[{}]," * 200_000, b'"' * 1_000_000, b'{"' + b'\\"' * 500_000,
    ],
    ids=lambda body: repr(body[:6]),
)  # fmt: skip
def test_a_hostile_body_is_refused_in_no_time(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises((InvalidJson, InvalidRequest)):
        parse_object(body)
    assert time.process_time() - began < 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)  # fmt: skip


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(VALUES, st.integers(0, 40), st.booleans())
def test_what_a_strict_writer_writes_is_read_as_it_was_unless_it_nests_too_deeply(
    value: object, levels: int, is_ascii: bool
) -> None:
    for _ in range(levels):
        value = [value]
    body = json.dumps({"a": value}, ensure_ascii=is_ascii).encode()
    brackets = depth_of({"a": value})
    if body.count(b"[") + body.count(b"{") >= MAX_DEPTH:
        assert bracket_depth(body) == min(brackets, MAX_DEPTH + 1)
    try:
        read = parse_object(body)
    except InvalidRequest:
        assert brackets >= MAX_DEPTH
    else:
        assert brackets <= MAX_DEPTH
        assert read == {"a": value}
        assert json.loads(write_json(read)) == read
