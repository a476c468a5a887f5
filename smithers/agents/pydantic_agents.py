"""Agents of pydantic-ai, made durable by its own interface for that.

Each model request and each call of a function or MCP tool of the agent itself is an operation that pydantic-ai
delegates instead of performing it: it is recorded as a call of the attempt, and made once. Only imported if an author
uses such an agent: the library is the extra `agents`.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import AgentStreamEvent, FunctionToolset, RunContext, Tool
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    DurableOperationBackend,
    DurableOperationId,
    JournalCallableOperationBackend,
    ModelCompactMessagesId,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
)
from pydantic_ai.exceptions import ToolFailed, UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model

from smithers.agents.agent import AgentAnswer, AgentTool
from smithers.agents.models import ask_model, say
from smithers.engine.turn import TokenUsage
from smithers.errors import InvalidOutput
from smithers.outputs import encode_output
from smithers.tools.errors import ToolError
from smithers.tools.once import make_once
from smithers.tools.toolbox import CallStart
from smithers.tree import Ask

TOOLSET_ID: Final = "smithers"
OVERRIDING: Final = "overriding"  # a model that Agent.override has substituted for the agent's
NO_CONFIG: Final = RoleBasedOperationConfig[None](
    model=None, event=None, capability=None, tool=None
)

_RESPONSE: Final = TypeAdapter(ModelResponse)

Body = Callable[[], Awaitable[object]]


class PydanticAgent:
    """An agent of pydantic-ai as a smithers.agents.Agent; pydantic-ai itself returns answers that do not fit."""

    def __init__(self, agent: AbstractAgent[Any, Any], name: str, ask: Ask) -> None:
        self._agent = agent
        self._name = name
        self._ask = ask

    async def run(self, prompt: str, *, output: Any, tools: Sequence[AgentTool]) -> AgentAnswer:
        """Answer; `output` None: with the agent's own output type."""
        digest = sha256(prompt.encode("utf-8", "replace")).hexdigest()
        given = [
            Tool.from_schema(partial(_call, tool), tool.name, tool.description, tool.parameters)
            for tool in tools
        ]
        try:
            result = await self._agent.run(
                prompt,
                output_type=output,
                retries={"output": self._ask.repairs},
                infer_name=False,
                toolsets=[FunctionToolset(given, id=TOOLSET_ID)],
                capabilities=[Durability(self._name, digest, is_streamed=self._ask.is_streamed)],
            )
        except UnexpectedModelBehavior as error:
            if isinstance(error.__cause__, ValidationError):
                raise InvalidOutput(f"{self._name}: {error}: {error.__cause__}") from error
            raise
        return AgentAnswer(result.output)


class Durability(BaseDurabilityCapability[Any]):
    """Delegates an agent run's operations to its attempt."""

    engine_spec = DurabilityEngineSpec(
        engine_name="Smithers",
        durable_unit_noun="call",
        durable_container_noun="attempt",
        codec=JSON_CODEC,
        sequential_tools_in_durable_context=True,  # calls are identified by their numbers
    )
    in_durable_context = True

    def __init__(
        self,
        name: str,
        prompt_digest: str,
        *,
        is_streamed: bool,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        """`models`: those that may be asked in addition to the agent's own."""
        handler = _pass_on if is_streamed else None
        super().__init__(name=name, models=models, event_stream_handler=handler)
        self._prompt_digest = prompt_digest
        self._is_streamed = is_streamed
        self._turns = count(1)  # shared by the copies that pydantic-ai makes of this

    async def for_run(self, ctx: RunContext[Any]) -> AbstractCapability[Any]:
        """Note the model of this run: `Agent.override` may have substituted it for the agent's own."""
        agent, model = ctx.agent, ctx.model
        if agent is None or not isinstance(model, Model):
            return self
        if ctx.model_id is not None or model is agent.model:  # known by its name, or as the agent's
            return self
        knowing = Durability(
            self.name,
            self._prompt_digest,
            is_streamed=self._is_streamed,
            models={OVERRIDING: model},
        )
        return knowing.for_agent(agent)

    def get_durable_operation_backend(self) -> DurableOperationBackend[None]:
        """Return the object that performs operations."""
        return Operations(self.name, self._prompt_digest, self._turns)


class Operations(JournalCallableOperationBackend[None]):
    """Performs operations as recorded calls; an operation of neither a model nor a tool is performed directly."""

    def __init__(self, agent_name: str, prompt_digest: str, turns: Iterator[int]) -> None:
        super().__init__(agent_name=agent_name, config=NO_CONFIG)
        self._agent_name = agent_name
        self._prompt_digest = prompt_digest
        self._turns = turns

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Body,
        cache_key: tuple[object, ...],
        config: None,  # noqa: ARG002 - pydantic-ai's parameter
    ) -> object:
        """Perform one operation; its result is JSON."""
        match operation_id:
            case ModelRequestId() | ModelCompactMessagesId():
                model = operation_id.model_name
                request = {
                    "operation": name,
                    "prompt": self._prompt_digest,
                    "turn": next(self._turns),
                }
                return await self._ask(model, request, body)
            case ToolsetCallToolId():
                tool_name, arguments = cache_key[:2]  # as ToolsetCallToolParams begins
                return await _call_own_tool(str(tool_name), arguments, body)
            case _:
                return await body()

    async def _ask(self, model: str, request: dict[str, Any], body: Body) -> object:
        """Ask a model; the price is looked up in a thread, since the first look-up loads the table for half a second."""
        cost: Decimal | None = None

        async def ask() -> object:
            nonlocal cost
            answer = await body()
            cost = await asyncio.to_thread(_find_cost, answer)
            return answer

        def read_usage(answer: object) -> TokenUsage:
            used = _response_in(answer)["usage"]
            return TokenUsage(
                agent=self._agent_name,
                model=model,
                input_tokens=used["input_tokens"],
                output_tokens=used["output_tokens"],
                cost=cost,
            )

        return await ask_model(model, request, ask, read_usage=read_usage)


async def _pass_on(_ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
    """Emit the text of a model's stream; pydantic-ai calls this while the question is asked, not on a recall."""
    async for event in events:
        match event:
            case PartStartEvent(part=TextPart(content=text)):
                say(text)
            case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                say(text)
            case _:
                pass


async def _call_own_tool(name: str, arguments: object, body: Body) -> object:
    """Call a tool of the agent itself; it counts as not repeatable."""
    start = CallStart(
        tool_name=name,
        input=encode_output(arguments, what="the input"),
        is_side_effect=True,
        is_idempotent=False,
    )
    try:
        return await make_once(start, body)
    except ToolError as error:
        raise ToolFailed(str(error)) from error


async def _call(tool: AgentTool, /, **arguments: Any) -> Any:
    """Call one of our tools, whatever its parameters are called; an error is reported to the model."""
    try:
        return await tool.call(arguments)
    except ToolError as error:
        raise ToolFailed(str(error)) from error


def _response_in(answer: object) -> dict[str, Any]:
    """Return a model's response as pydantic-ai encodes it; a streamed one is nested deeper."""
    written = cast("dict[str, Any]", answer)
    response: dict[str, Any] = written.get("response", written)
    return response


def _find_cost(answer: object) -> Decimal | None:
    """Return a response's cost in dollars; None if genai-prices does not know the model, or it has no name."""
    try:
        response = _RESPONSE.validate_python(_response_in(answer))
        return response.cost().total_price if response.model_name else None
    except Exception:  # noqa: BLE001 - an answer that is paid for is not lost for its price, whatever a table raises
        return None
