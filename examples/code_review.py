"""Let an agent review Python code below the server's root, with grep and read, and report its findings.

The model here is a script, so that the example needs no key and no network: it looks for handlers of every exception, reads
around each, and judges whether they say why. Put a real one in its place, `Agent("anthropic:…", name="reviewer")`, and
nothing else changes. Needs the extra `agents`.

    smithers up examples/code_review.py --input '{"path": "smithers/tools"}'
"""

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from smithers import Context, Sequence, Task, current_task, workflow
from smithers.tools import grep, read

HANDLER = r"except (Base)?Exception\b"
MAX_FILES = 3
AROUND = 2  # lines read before a handler, and after it


class Request(BaseModel):
    """What to review."""

    path: str = Field(default="smithers", description="A directory below the server's root.")
    ledger: str | None = Field(
        default=None, description="Where each question to the model is noted."
    )
    pause_s: float = Field(default=0, ge=0, le=60, description="How long the model thinks.")


class Finding(BaseModel):
    """One handler that catches every exception."""

    path: str
    line: int
    is_explained: bool


class Review(BaseModel):
    """The reviewer's answer."""

    summary: str
    findings: list[Finding]


@workflow(input=Request)
def code_review(ctx: Context[Request]) -> Sequence:
    """Let the reviewer work, then report its findings as text."""
    request = ctx.input
    return Sequence(
        Task(
            "review",
            agent=reviewer(request.ledger, request.pause_s),
            prompt=f"Review the handlers of exceptions in {request.path}.",
            tools=[grep, read],
            output=Review,
            timeout=600,
        ),
        Task("report", report, needs={"review": "review"}),
    )


def report(review: Review) -> str:
    """Format a review as text."""
    lines = [
        f"{finding.path}:{finding.line}: {'says' if finding.is_explained else 'does not say'} why"
        for finding in review.findings
    ]
    return "\n".join([review.summary, *lines])


@cache
def reviewer(ledger: str | None, pause_s: float) -> Agent[None, str]:
    """Make the agent; one for each pace and ledger."""

    async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        number = sum(isinstance(message, ModelResponse) for message in messages)
        note(ledger, f"asked {number}")
        await asyncio.sleep(pause_s)
        answer = decide(messages, info)
        note(ledger, f"answered {number}")
        return answer

    return Agent(FunctionModel(model, model_name="script"), name="reviewer")


def note(ledger: str | None, line: str) -> None:
    """Write a line down, whatever becomes of this process."""
    if ledger is not None:
        with (current_task().root_dir / Path(ledger)).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def decide(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Grep first, then read around what was found, one place at a time, then answer."""
    parts = [part for message in messages for part in message.parts]
    prompt = next(str(part.content) for part in parts if isinstance(part, UserPromptPart))
    path = prompt.removesuffix(".").rpartition(" in ")[2]
    returned = [part.model_response_object() for part in parts if isinstance(part, ToolReturnPart)]
    if not returned:
        return say("grep", pattern=HANDLER, path=path, glob="*.py")
    found: list[dict[str, Any]] = returned[0]["matches"][:MAX_FILES]
    if len(returned) <= len(found):
        place = found[len(returned) - 1]
        start = max(1, place["line"] - AROUND)
        return say("read", path=place["path"], start_line=start, max_lines=2 * AROUND + 1)
    findings = [
        {"path": place["path"], "line": place["line"], "is_explained": "#" in seen["text"]}
        for place, seen in zip(found, returned[1:], strict=True)
    ]
    summary = f"{len(findings)} handlers of every exception looked at in {path}"
    return say(info.output_tools[0].name, summary=summary, findings=findings)


def say(name: str, **arguments: Any) -> ModelResponse:
    """Answer as models do: with a call of a tool, and a word about it."""
    return ModelResponse(parts=[TextPart(f"I use {name}."), ToolCallPart(name, arguments)])
