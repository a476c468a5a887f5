"""Attempts that die anywhere and are begun again: what the next one takes for its own calls, and what it makes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smithers.agents import ask_model
from smithers.agents.agent import AgentTool
from smithers.engine.turn import ToolCall
from smithers.errors import SmithersError
from smithers.states import ToolCallState
from smithers.store.tool_calls import CallPlace, ToolCallRow, digest_of
from smithers.tools import ToolError, current_call, tool
from smithers.tools.tool import Tool
from tests.support.tools import Records, lending_tools, row

Agent = Callable[[], Awaitable[Any]]


class Mortal(Records):
    """Keeps so many starts and ends of calls; then the process has died, and who waits for more waits for ever.

    Or has the attempt stopped at a question for which there is no room; what is told of its calls then is kept.
    """

    def __init__(self, keeps: int, room: int) -> None:
        super().__init__()
        self.died = asyncio.Event()
        self._keeps = keeps
        self._room = room

    def may_ask(self) -> bool:
        self._room -= 1
        if self._room < 0:
            self.died.set()
        return self._room >= 0

    def take_call(self, call: ToolCall, kept: "asyncio.Future[None] | None") -> None:
        if len(self.calls) == self._keeps:
            self.died.set()
            return
        self.calls.append(call)
        if kept is not None:  # in a while, so that others make their calls meanwhile
            asyncio.get_running_loop().call_soon(self._keep, kept)

    def _keep(self, kept: "asyncio.Future[None]") -> None:
        if not (self.died.is_set() or kept.done()):
            kept.set_result(None)


class Node:
    """A node whose attempts die, and what they have left in the database."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[ToolCallRow] = []
        self.attempt = 0

    async def live(self, agent: Agent, keeps: int = 10_000, room: int = 10_000) -> Any:
        """Make an attempt; None where it has died after so many changes were kept, or has stopped after so many questions."""
        records = Mortal(keeps, room)
        self.attempt += 1
        with lending_tools(self.root, tuple(self.rows), records=records):
            body = asyncio.ensure_future(agent())
            death = asyncio.ensure_future(records.died.wait())
            await asyncio.wait([body, death], return_when=asyncio.FIRST_COMPLETED)
            has_died = records.died.is_set()
            for task in (body, death):
                task.cancel()
            ends: list[Any] = [*await asyncio.gather(body, death, return_exceptions=True)]
        self._keep(records.calls)
        if has_died:
            return None
        if isinstance(ends[0], BaseException):
            raise ends[0]
        return ends[0]

    def _keep(self, calls: list[ToolCall]) -> None:
        newest = {call.call_no: call for call in calls}
        for call in newest.values():
            told = call._asdict()
            del told["took_ms"], told["call_no"], told["tool_name"], told["input"]
            size = None if call.output is None else len(call.output)
            self.rows.append(
                row(
                    call.call_no,
                    call.tool_name,
                    call.input or "",
                    **told | {"attempt": self.attempt, "output_bytes": size},
                )
            )


class Post:
    """Tools whose effects are written down, with the key that each was had under."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.keys: list[str] = []
        self.mail = AgentTool(self._make(self._mail, "mail"))
        self.charge = AgentTool(self._make(self._charge, "charge", idempotent=True))

    def _make(self, function: Any, name: str, **options: Any) -> Tool[..., Any]:
        return tool(name=name, **options)(function)

    async def _mail(self, to: str) -> str:
        """Send a letter."""
        self.notes.append(to)
        return f"{to} has it"

    async def _charge(self, whom: str, amount: int) -> str:
        """Take money."""
        self.keys.append(current_call().idempotency_key)
        return f"{whom} has paid {amount}"

    async def ask(self, question: str, **more: Any) -> Any:
        async def answer() -> str:
            self.notes.append(question)
            return f"of {question}"

        return await ask_model("m", {"question": question, **more}, answer)


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def send(post: Post, *names: str) -> list[str]:
    return [await post.mail.call({"to": name}) for name in names]


async def test_chains_of_calls_at_once_are_recalled_wherever_the_process_died(
    tmp_path: Path,
) -> None:
    chains = (("a1", "a2", "a3"), ("b1",), ("c1", "c2"))
    for keeps in range(13):
        post, node = Post(), Node(tmp_path)

        async def agent(post: Post = post) -> list[list[str]]:
            return await asyncio.gather(*(send(post, *chain) for chain in chains))

        assert (await node.live(agent, keeps) is None) == (keeps < 12)
        had = list(post.notes)
        open_calls = [row for row in node.rows if row.state == ToolCallState.STARTED]
        if open_calls:
            with pytest.raises(SmithersError, match="nobody knows whether it was done"):
                await node.live(agent)
        else:
            assert await node.live(agent) == [
                [f"{name} has it" for name in chain] for chain in chains
            ]
        assert len(set(post.notes)) == len(post.notes), keeps
        assert post.notes[: len(had)] == had


async def test_questions_at_once_are_each_asked_once_over_two_deaths(tmp_path: Path) -> None:
    async def follow(post: Post, name: str, count: int) -> list[str]:
        return [await post.ask(f"{name}{number}") for number in range(count)]

    for first in range(2, 14):
        for second in range(2, 14 - first):
            post, node = Post(), Node(tmp_path)

            async def agent(post: Post = post) -> list[list[str]]:
                chains = (follow(post, "a", 3), follow(post, "b", 2), follow(post, "c", 2))
                return [*await asyncio.gather(*chains)]

            await node.live(agent, first)
            await node.live(agent, second)
            answered = {row.output for row in node.rows if row.state == ToolCallState.FINISHED}
            asked = len(post.notes)
            found = await node.live(agent)
            again = post.notes[asked:]
            assert not {f'"of {question}"' for question in again} & answered
            assert [len(chain) for chain in found] == [3, 2, 2]


async def test_calls_one_after_another_whose_order_is_swapped_are_another_way(
    node: Node, post: Post
) -> None:
    await node.live(lambda: send(post, "a", "b", "c"), 4)
    with pytest.raises(SmithersError, match='"to":"a"') as told:
        await node.live(lambda: send(post, "b", "a"))
    assert '"to":"b"' in str(told.value)
    assert post.notes == ["a", "b"]


async def test_calls_at_once_whose_order_is_swapped_are_recalled(node: Node, post: Post) -> None:
    await node.live(lambda: asyncio.gather(send(post, "a", "x"), send(post, "b")), 4)
    found = await node.live(lambda: asyncio.gather(send(post, "b"), send(post, "a")))
    assert found == [["b has it"], ["a has it"]]
    assert post.notes == ["a", "b"]


@pytest.mark.parametrize("is_at_once", [False, True])
async def test_of_what_was_done_for_another_prompt_the_agent_is_told(
    node: Node, post: Post, is_at_once: bool
) -> None:
    async def follow(prompt: str, name: str) -> list[str]:
        await post.ask(f"{prompt}: {name}")
        return await send(post, name)

    async def agent(prompt: str) -> Any:
        if is_at_once:
            return await asyncio.gather(follow(prompt, "a"), follow(prompt, "b"))
        return [await follow(prompt, "a"), await follow(prompt, "b")]

    await node.live(lambda: agent("old"), 8 if is_at_once else 6)
    assert "a" in post.notes
    with pytest.raises(SmithersError, match=r'"to":"a"'):
        await node.live(lambda: agent("new"))
    assert post.notes.count("a") == 1
    assert "new: a" in post.notes


async def test_a_model_that_answers_differently_leaves_other_calls_at_once_alone(
    node: Node, post: Post
) -> None:
    async def answer() -> str:
        return "a1"

    async def follow_model() -> list[str]:
        return await send(post, await ask_model("m", {}, answer))

    node.rows = [
        row(1, "mail", '{"to":"b1"}', output='"b1 has it"'),
        row(2, "m", "{}", kind="model", state="started", is_side_effect=False, beside_call_no=1),
        row(3, "mail", '{"to":"b2"}', output='"b2 has it"', beside_call_no=2),
    ]
    assert await node.live(lambda: asyncio.gather(send(post, "b1", "b2"), follow_model())) == [
        ["b1 has it", "b2 has it"],
        ["a1 has it"],
    ]
    assert post.notes == ["a1"]


async def test_what_a_tool_has_called_is_not_taken_for_the_agents_own(
    node: Node, post: Post
) -> None:
    """The same call, made by the agent itself for the first time, is made; whatever it is, and has a number of its own."""

    @tool(name="fix", side_effect=True, idempotent=False)
    async def fix() -> str:
        """Look, then mend."""
        await look()
        await mend()
        return "mended"

    @tool(side_effect=False)
    async def look() -> str:
        """Look."""
        return "FAIL" if "mended" not in post.notes else "pass"

    @tool
    async def mend() -> None:
        """Mend."""
        post.notes.append("mended")

    async def agent() -> Any:
        await post.ask("first")
        await AgentTool(fix).call({})
        await post.ask("second")
        return [await AgentTool(look).call({}), await AgentTool(mend).call({})]

    # The start and the end of the question, of fix, and of the two calls within it; not the start of the second question.
    assert await node.live(agent, 8) is None
    assert [(row.call_no, row.tool_name, row.parent_call_no) for row in node.rows] == [
        (1, "m", 0),
        (2, "fix", 0),
        (3, "look", 2),
        (4, "mend", 2),
    ]
    assert await node.live(agent, 1) is None  # the second question has begun
    assert await node.live(agent) == ["pass", None]
    assert post.notes == ["first", "mended", "second", "second", "second", "mended"]
    assert [(row.attempt, row.call_no, row.tool_name) for row in node.rows[4:]] == [
        *[(2, 5, "m")],
        *[(3, 5, "m"), (3, 6, "look"), (3, 7, "mend")],
    ]


async def test_what_a_tool_asks_is_recalled_where_the_tool_is_called_again(
    node: Node, post: Post
) -> None:
    @tool(name="sum_up", idempotent=True)
    async def sum_up() -> str:
        """Ask, and charge for it."""
        answers = [await post.ask("one")]
        await post.charge.tool("ann", 5)
        answers.append(await post.ask("two"))
        return " ".join(answers)

    async def agent() -> Any:
        found = await AgentTool(sum_up).call({})
        await post.charge.call({"whom": "ann", "amount": 5})
        return found

    # Kept: the start of sum_up, the first question and the charge; not the start of the second question.
    assert await node.live(agent, 5) is None
    assert await node.live(agent) == "of one of two"
    assert post.notes == ["one", "two", "two"]
    assert [(row.attempt, row.call_no, row.parent_call_no) for row in node.rows] == [
        *[(1, 1, 0), (1, 2, 1), (1, 3, 1)],
        *[(2, 1, 0), (2, 3, 1), (2, 4, 1), (2, 5, 0)],
    ]
    first, again, own = post.keys
    assert first == again
    assert own == first.removesuffix("1") + "2"


async def test_a_call_that_is_open_is_made_again_under_its_key_and_its_number(
    node: Node, post: Post
) -> None:
    @tool(name="look_up", side_effect=False)
    async def look_up(name: str) -> str:
        """Charge for a look."""
        return await post.charge.tool(name, 1)

    async def agent() -> Any:
        await AgentTool(look_up).call({"name": "ann"})
        await post.charge.call({"whom": "ann", "amount": 1})
        return await post.charge.call({"whom": "bob", "amount": 1})

    await node.live(agent, 5)  # the agent's own charge is open
    await node.live(agent)
    assert [row.call_no for row in node.rows] == [1, 2, 3, 3, 4]
    within, first, again, other = post.keys
    assert first == again
    assert len({within, first, other}) == 3


async def test_keys_tell_calls_apart_also_after_a_plain_retry(node: Node, post: Post) -> None:
    @tool(idempotent=True)
    async def order(items: dict[str, int]) -> None:
        """Order."""
        post.keys.append(current_call().idempotency_key)

    async def charge(*names: str) -> None:
        for name in names:
            await post.charge.call({"whom": name, "amount": 5})

    await node.live(lambda: charge("ann"))
    node.rows.clear()  # that attempt has failed: nothing of it is recalled
    await node.live(lambda: charge("bob", "ann", "ann"))
    ann, bob, ann_again, ann_twice = post.keys
    assert ann == ann_again
    assert len({ann, bob, ann_twice}) == 3
    await node.live(lambda: AgentTool(order).call({"items": {"a": 1, "b": 2**70}}))
    await node.live(lambda: AgentTool(order).call({"items": {"b": 2**70, "a": 1}}))
    assert post.keys[-1] == post.keys[-2]


async def test_a_call_that_was_refused_keeps_its_key_for_when_it_is_made(
    node: Node, post: Post
) -> None:
    @tool
    async def pay() -> str:
        """Pay, which is not to be done twice."""
        post.keys.append(current_call().idempotency_key)
        return "paid"

    async def agent() -> Any:
        try:
            return await AgentTool(pay).call({})
        except SmithersError:
            return await AgentTool(pay).call({})

    await node.live(agent, 1)  # died while it paid
    assert await node.live(agent) == "paid"  # was told so, and found out that it had not
    node.rows.pop()
    assert await node.live(agent) == "paid"  # as if it had died before that was kept
    assert len(post.keys) == 3
    assert len(set(post.keys)) == 1


async def test_a_call_that_was_cancelled_is_as_open_as_one_whose_process_died(
    node: Node, post: Post
) -> None:
    cut_off = {"state": "failed", "error": '{"name":"CancelledError","message":"CancelledError"}'}
    node.rows = [
        row(1, "charge", '{"whom":"ann","amount":5}', is_idempotent=True, **cut_off),
        row(2, "mail", '{"to":"a"}', **cut_off),
    ]

    async def agent() -> Any:
        paid = await post.charge.call({"whom": "ann", "amount": 5})
        with pytest.raises(ToolError, match="nobody knows whether it was done"):
            await send(post, "a")
        return paid

    assert await node.live(agent) == "ann has paid 5"
    assert post.notes == []
    assert [(row.call_no, row.tool_name, row.state) for row in node.rows[2:]] == [
        (1, "charge", "finished"),
        (2, "mail", "failed"),
    ]


async def test_what_was_begun_at_once_with_a_question_that_was_held_is_made_once(
    node: Node, post: Post
) -> None:
    mailed = asyncio.Event()

    async def ask_late() -> Any:
        await mailed.wait()
        return await post.ask("late")

    async def mail() -> Any:
        found = await asyncio.gather(send(post, "a"), send(post, "b"))
        mailed.set()
        return found

    async def agent() -> Any:
        return await asyncio.gather(
            ask_late(), mail(), post.charge.call({"whom": "z", "amount": 1})
        )

    assert await node.live(agent, room=0) is None
    assert post.notes == ["a", "b"]
    found = await node.live(agent)
    assert found == ["of late", [["a has it"], ["b has it"]], "z has paid 1"]
    assert post.notes == ["a", "b", "late"]


async def test_a_call_that_was_stopped_before_it_was_made_is_made_by_the_next_attempt(
    node: Node, post: Post
) -> None:
    async def agent() -> Any:
        return await asyncio.gather(post.ask("q"), send(post, "a"))

    assert await node.live(agent, room=0) is None
    assert post.notes == []
    assert [(row.tool_name, row.state) for row in node.rows] == [
        ("m", "failed"),
        ("mail", "failed"),
    ]
    assert all("TOOL_CALL_NOT_MADE" in (row.error or "") for row in node.rows)
    assert await node.live(agent) == ["of q", ["a has it"]]
    assert [row.call_no for row in node.rows] == [1, 2, 1, 2]


async def test_of_what_was_not_made_no_agent_is_told(node: Node, post: Post) -> None:
    await node.live(lambda: asyncio.gather(post.ask("q"), send(post, "a")), room=0)
    failed = tuple(replace(row, is_recallable=False) for row in node.rows)
    with lending_tools(node.root, failed) as (toolbox, _):
        assert toolbox.told_calls == ()
    assert await node.live(lambda: send(post, "b")) == ["b has it"]


async def test_an_agent_is_told_the_same_however_many_calls_it_recalls(node: Node) -> None:
    failed = row(1, "mail", '{"to":"z"}', is_recallable=False)
    lost = tuple(row(number, "mail", '{"to":"a"}', attempt=2) for number in range(1, 1002))
    for rows in ((failed,), (failed, *lost)):
        with lending_tools(node.root, rows) as (toolbox, _):
            assert [call.input for call in toolbox.told_calls] == ['{"to":"z"}']


async def test_an_output_that_is_left_out_is_read_when_its_call_is_recalled(
    tmp_path: Path, post: Post
) -> None:
    rows = tuple(row(number, "mail", f'{{"to":"{number}"}}', output_bytes=3) for number in (1, 2))
    outputs = {CallPlace(1, number): f'"{number} has it"' for number in (1, 2)}
    with lending_tools(tmp_path, rows, outputs=outputs) as (_, records):
        assert await send(post, "1", "2") == ["1 has it", "2 has it"]
    assert records.calls == []
    assert post.notes == []


def brief(number: int, name: str, given: str) -> ToolCallRow:
    return row(number, name, given[:3], input_digest=digest_of(given), output_bytes=7)


async def test_a_call_is_recalled_by_the_digest_of_its_input(tmp_path: Path, post: Post) -> None:
    charge = {"whom": "a", "amount": 1}
    rows = (brief(1, "charge", '{"whom":"a","amount":1}'), brief(2, "mail", '{"to":"a"}'))
    outputs = {CallPlace(1, 1): '"paid"', CallPlace(1, 2): '"a has it"'}
    with lending_tools(tmp_path, rows, outputs=outputs):
        assert await post.charge.call(charge) == "paid"
        assert await send(post, "a") == ["a has it"]
        assert (post.keys, post.notes) == ([], [])
        await post.charge.call(charge)
    assert post.keys[0].endswith("/2")  # the first was counted


async def test_of_an_abandoned_call_an_agent_is_told_what_is_known_of_it(
    tmp_path: Path, post: Post
) -> None:
    with (
        lending_tools(tmp_path, (brief(1, "mail", '{"to":"a"}'),)),
        pytest.raises(ToolError, match=r'- \{"t: finished, an answer of 7 bytes'),
    ):
        await send(post, "b")


async def test_calls_that_do_not_say_within_which_they_were_made_may_be_a_tools(
    tmp_path: Path, post: Post
) -> None:
    unknown = {"parent_call_no": None}
    rows = (
        row(1, "mail", '{"to":"a"}', output='"a has it"', **unknown),
        row(2, "bash", "{}", output="0", **unknown),
        row(3, "mail", '{"to":"b"}', output='"b has it"', **unknown),
        row(4, "bash", "{}", output="0", **unknown),
    )
    with lending_tools(tmp_path, rows) as (_, records):
        assert await send(post, "a", "b") == ["a has it", "b has it"]
        assert await post.ask("c") == "of c"
    assert records.lines == ["4 m started", "4 m finished"]
