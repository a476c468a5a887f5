"""Answer a task's question: agents in order, validated answers, and a list of calls that must not be repeated."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import structlog

from smithers.agents.agent import Agent, AgentTool
from smithers.errors import InvalidOutput
from smithers.outputs import encode_output, is_quick
from smithers.telemetry.tracing import AGENT, span
from smithers.tools.toolbox import PreviousCall, find_toolbox
from smithers.tree import Ask, name_of

MAX_TOLD_CALLS: Final = 50
MAX_TOLD_CHARS: Final = 1_000  # of a call's input, and of its output
TOLD: Final = (
    "Earlier attempts at this have already made the calls below, whose effects stand. Do not repeat one unless you have "
    "found out that it was not done."
)
LEFT_OUT: Final = "- {count:,} earlier calls are not listed here."
MISFIT: Final = "You answered:\n{answer}\n\nThat does not fit: {error}\nAnswer again."

LOG: Final = structlog.get_logger(__name__)


async def answer(ask: Ask, prompt: Any, model: Any) -> Any:
    """Return the first agent's answer that fits `model` (None: any JSON); raises the last agent's error.

    InvalidOutput: after `ask.repairs` more answers still none fitted.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a text, not {type(prompt).__name__}")
    told = _tell(find_toolbox().told_calls)
    tools = [AgentTool(tool) for tool in ask.tools]
    *others, last = ask.agents
    for agent in others:
        try:
            return await _ask(agent, ask, prompt + told, model, tools)
        except Exception as error:  # noqa: BLE001 - whatever an agent raises, the next one is asked
            LOG.warning("agent_failed", agent=name_of(agent), error=type(error).__name__)
    return await _ask(last, ask, prompt + told, model, tools)


async def _ask(given: Any, ask: Ask, prompt: str, model: Any, tools: Sequence[AgentTool]) -> Any:
    name = name_of(given)
    agent = _adapt(given, name, ask)
    text = prompt
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
    with span(AGENT, attributes):
        for left in reversed(range(ask.repairs + 1)):
            found = await agent.run(text, output=model, tools=tools)
            for usage in found.usage:
                find_toolbox().report_usage(usage)
            try:
                await _check(found.value, model)
            except InvalidOutput as error:
                if not left:
                    raise
                text = f"{prompt}\n\n{_describe_misfit(found.value, error)}"
            else:
                return found.value
    raise AssertionError("the last turn returns or raises")


async def _check(value: Any, model: Any) -> None:
    """Raise InvalidOutput for an answer that does not fit; a model with code of its author does not block the loop."""
    check = partial(encode_output, value, model)
    if is_quick(value, model):
        check()
    else:
        await find_toolbox().run_in_thread(check)


def _adapt(agent: Any, name: str, ask: Ask) -> Agent:
    """Return an agent of this package's interface; a caller with an agent of pydantic-ai has loaded that library."""
    library = sys.modules.get("pydantic_ai")
    if library is None or not isinstance(agent, library.agent.AbstractAgent):
        own: Agent = agent
        return own
    from smithers.agents.pydantic_agents import PydanticAgent

    return PydanticAgent(agent, name, ask)


def _describe_misfit(value: Any, error: InvalidOutput) -> str:
    try:
        answer = encode_output(value)
    except InvalidOutput:
        answer = repr(value)
    wrong = str(error) if error.details is None else f"{error}: {encode_output(error.details)}"
    return MISFIT.format(answer=answer[:MAX_TOLD_CHARS], error=wrong)


def _tell(calls: Sequence[PreviousCall]) -> str:
    """Return the end of a prompt: the calls that must not be repeated."""
    done = [call for call in calls if call.is_side_effect and not call.is_idempotent]
    if not done:
        return ""
    told = done[-MAX_TOLD_CALLS:]
    left_out = [LEFT_OUT.format(count=len(done) - len(told))] if len(done) > len(told) else []
    return "\n".join(["", "", TOLD, *left_out, *map(_tell_call, told)])


def _tell_call(call: PreviousCall) -> str:
    came_to = call.output or call.error or "nobody knows what it came to"
    given = (call.input or "…")[:MAX_TOLD_CHARS]
    return f"- {call.tool_name} {given}: {call.state}, {came_to[:MAX_TOLD_CHARS]}"
