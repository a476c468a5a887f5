"""Questions to models, each asked once: an answer is committed before it is used."""

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
    """Emit text while a model produces it: soon it is among the run's events, as NodeOutput.

    Callable from any thread. If `ask` of ask_model calls this, a recalled answer is not emitted again.
    """
    find_toolbox().say(text)


async def ask_model(
    model: str,
    request: Mapping[str, Any],
    ask: Callable[[], Awaitable[Any]],
    *,
    read_usage: Callable[[Any], TokenUsage | None] = lambda _answer: None,
) -> Any:
    """Return a model's answer, as plain JSON; if an attempt that died got it, the stored one.

    `request`, which is JSON, identifies the question: it is recorded, and compared with the question of an earlier attempt
    at this point. `ask` asks it. `read_usage` reads the usage from the answer.
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
