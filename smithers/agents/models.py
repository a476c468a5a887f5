"""Questions to models, each asked once: an answer is kept before anybody goes on with it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from smithers.engine.turn import TokenUsage
from smithers.outputs import encode_output
from smithers.telemetry.spans import SpanKind
from smithers.telemetry.tracing import MODEL, span
from smithers.tools.once import make_once
from smithers.tools.toolbox import CallStart, find_toolbox

CHAT: Final = "chat"


def say(text: str) -> None:
    """Pass on what a model is saying, as it says it: in a moment it is among the run's events, as NodeOutput.

    From any thread. Where this is called by `ask` of ask_model, an answer that is recalled is not said again.
    """
    find_toolbox().say(text)


async def ask_model(
    model: str,
    request: Mapping[str, Any],
    ask: Callable[[], Awaitable[Any]],
    *,
    read_usage: Callable[[Any], TokenUsage | None] = lambda _answer: None,
) -> Any:
    """Return a model's answer, as plain JSON; it is had from an attempt that died if that was given it.

    `request`, which is JSON, says which question this is: it is recorded, and compared with what an earlier attempt asked
    at this point. `ask` asks. `read_usage` reads from the answer what it has cost.
    """
    start = CallStart(
        tool_name=model,
        input=encode_output(dict(request), what="the request"),
        is_side_effect=False,
        is_idempotent=True,
        kind="model",
    )

    async def body() -> Any:
        attributes = {"gen_ai.operation.name": CHAT, "gen_ai.request.model": model}
        with span(MODEL, attributes, kind=SpanKind.CLIENT) as told:
            answer = await ask()
            usage = read_usage(answer)
            if usage is not None:
                told["gen_ai.usage.input_tokens"] = usage.input_tokens
                told["gen_ai.usage.output_tokens"] = usage.output_tokens
                find_toolbox().report_usage(usage)
        return answer

    return await make_once(start, body)
