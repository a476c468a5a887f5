"""What a model says while it says it: gathered, in pieces, and not without end."""

import asyncio

from worker.speech import DROPPED, MAX_PIECE_CHARS, MAX_SPOKEN_CHARS, Speech


async def test_what_is_said_in_a_moment_is_one_piece() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    speech = Speech(heard.put_nowait)
    for word in ("one ", "", "two ", "three"):
        speech.say(word)
    assert heard.empty()
    assert await heard.get() == "one two three"
    speech.flush()
    assert heard.empty()


async def test_a_piece_that_is_full_goes_at_once_and_a_large_one_in_parts() -> None:
    heard: list[str] = []
    speech = Speech(heard.append)
    speech.say("a" * (MAX_PIECE_CHARS - 1))
    assert heard == []
    speech.say("bc")
    assert [len(piece) for piece in heard] == [MAX_PIECE_CHARS, 1]
    speech.say("d" * 3 * MAX_PIECE_CHARS)
    assert [len(piece) for piece in heard[2:]] == [MAX_PIECE_CHARS] * 3


async def test_what_nobody_could_read_is_dropped_and_said_to_be() -> None:
    heard: list[str] = []
    speech = Speech(heard.append)
    for _ in range(3):
        speech.say("a" * (MAX_SPOKEN_CHARS // 2 + 1))
    speech.flush()
    said = "".join(heard)
    assert said == "a" * MAX_SPOKEN_CHARS + DROPPED
