"""What a model says while it says it: gathered, in pieces, and not without end."""

import asyncio
import threading
from pathlib import Path

from smithers.agents import say
from tests.support.tools import lending_tools
from worker.loop_thread import LoopThread
from worker.speech import DROPPED, MAX_PIECE_CHARS, MAX_SPOKEN_CHARS, Speech


async def test_what_is_said_in_a_moment_is_one_piece() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    speech = Speech(heard.put_nowait, LoopThread())
    for word in ("one ", "", "two ", "three"):
        speech.say(word)
    assert heard.empty()
    assert await heard.get() == "one two three"
    speech.flush()
    assert heard.empty()


async def test_a_piece_that_is_full_goes_at_once_and_a_large_one_in_parts() -> None:
    heard: list[str] = []
    speech = Speech(heard.append, LoopThread())
    speech.say("a" * (MAX_PIECE_CHARS - 1))
    assert heard == []
    speech.say("bc")
    assert [len(piece) for piece in heard] == [MAX_PIECE_CHARS, 1]
    speech.say("d" * 3 * MAX_PIECE_CHARS)
    assert [len(piece) for piece in heard[2:]] == [MAX_PIECE_CHARS] * 3


async def test_what_nobody_could_read_is_dropped_and_said_to_be() -> None:
    heard: list[str] = []
    speech = Speech(heard.append, LoopThread())
    for _ in range(3):
        speech.say("a" * (MAX_SPOKEN_CHARS // 2 + 1))
    speech.flush()
    said = "".join(heard)
    assert said == "a" * MAX_SPOKEN_CHARS + DROPPED


async def test_what_is_said_in_threads_is_handed_on_in_the_loops() -> None:
    # So that a timer which is set from another thread is an error.
    asyncio.get_running_loop().set_debug(enabled=True)
    heard: asyncio.Queue[str] = asyncio.Queue()
    threads: set[int] = set()

    def hear(text: str) -> None:
        threads.add(threading.get_ident())
        heard.put_nowait(text)

    speech = Speech(hear, LoopThread())
    await asyncio.to_thread(speech.say, "one")
    assert await heard.get() == "one"
    count = 50
    words = ["b" * 200] * count
    await asyncio.gather(*(asyncio.to_thread(speech.say, word) for word in words))
    speech.flush()
    said = "".join(heard.get_nowait() for _ in range(heard.qsize()))
    assert said == "".join(words)
    assert threads == {threading.get_ident()}


async def test_a_body_may_say_something_from_a_thread(tmp_path: Path) -> None:
    with lending_tools(tmp_path) as (toolbox, records):
        await asyncio.to_thread(say, "hello")
        await toolbox.close()
    assert records.said == ["hello"]
