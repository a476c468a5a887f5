"""A server that speaks OpenAI's wire: chat completions, whole and streamed, with tool calls, usage and errors.

What it says is a test's script, a function of the conversation so far, as a model's answer is: asked the same thing again
it answers the same. It counts what it is asked.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

CHUNK_CHARS: Final = 4
CREATED: Final = 1_700_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """An answer: a text, calls of tools (name and arguments), or both."""

    text: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()
    tokens: tuple[int, int] = (20, 10)  # in, out


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error instead of an answer."""

    status: int


@dataclass(frozen=True, slots=True)
class Question:
    """What the server is asked."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[str]
    is_streamed: bool

    @property
    def step(self) -> int:
        """How often the model has spoken before."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def last(self) -> str:
        """The newest message."""
        return str(self.messages[-1]["content"])


Script = Callable[[Question], Awaitable[Say | Refuse]]


@dataclass(slots=True)
class OpenAiWire:
    """The server, and what it was asked: how often each model each step, and by which way."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    questions: list[Question] = field(default_factory=list)


@asynccontextmanager
async def serving_openai(script: Script) -> AsyncIterator[OpenAiWire]:
    """Serve until the block is left."""
    wire = OpenAiWire()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        question = Question(
            body["model"],
            body["messages"],
            [tool["function"]["name"] for tool in body.get("tools", ())],
            body.get("stream", False),
        )
        wire.questions.append(question)
        wire.asked[f"{question.model} {question.step}"] += 1
        reply = await script(question)
        if isinstance(reply, Refuse):
            error = {
                "message": f"refused with {reply.status}",
                "type": "server_error",
                "code": None,
            }
            headers = {"retry-after-ms": "1"}
            return web.json_response({"error": error}, status=reply.status, headers=headers)
        if not question.is_streamed:
            return web.json_response(_whole(question.model, reply))
        return await _stream(request, question.model, reply)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        wire.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield wire
    finally:
        await runner.cleanup()


def _whole(model: str, reply: Say) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.calls:
        message["tool_calls"] = _calls(reply)
    choice = {"index": 0, "message": message, "finish_reason": _reason(reply)}
    return {**_head(model, "chat.completion"), "choices": [choice], "usage": _usage(reply)}


async def _stream(request: web.Request, model: str, reply: Say) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    head, text = _head(model, "chat.completion.chunk"), reply.text or ""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    pieces = range(0, len(text), CHUNK_CHARS)
    deltas += [{"content": text[start : start + CHUNK_CHARS]} for start in pieces]
    for index, call in enumerate(_calls(reply)):
        begun = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        deltas.append({"tool_calls": [begun]})
        rest = {"index": index, "function": {"arguments": call["function"]["arguments"]}}
        deltas.append({"tool_calls": [rest]})
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": _reason(reply)})
    chunks = [{**head, "choices": [choice]} for choice in choices]
    chunks.append({**head, "choices": [], "usage": _usage(reply)})
    for chunk in chunks:
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": CREATED, "model": model}


def _calls(reply: Say) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(reply.calls)
    ]


def _reason(reply: Say) -> str:
    return "tool_calls" if reply.calls else "stop"


def _usage(reply: Say) -> dict[str, int]:
    given, made = reply.tokens
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
