"""Statements of one pattern: a place or a word that has no counterpart is an error, not a wrong statement."""

import pytest

from smithers.store.patterns import fill


def test_each_place_has_its_word_and_words_are_left_as_they_are():
    filled = fill(
        "SELECT {column} FROM {table} WHERE {column} = '{}' AND {rest}",
        column="a",
        table="t",
        rest="{table}",
    )
    assert filled == "SELECT a FROM t WHERE a = '{}' AND {table}"


@pytest.mark.parametrize(
    "words", [{}, {"column": "a"}, {"column": "a", "table": "t", "tabel": "t"}]
)
def test_a_place_without_a_word_and_a_word_without_a_place_are_refused(words: dict[str, str]):
    with pytest.raises(ValueError, match="places are"):
        fill("SELECT {column} FROM {table}", **words)
