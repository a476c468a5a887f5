"""Let a model summarize the parts of a text, one question for each, within a budget: when it is spent, a person is asked.

The model here is a script that takes each part's first sentence, so that the example needs no key and no network; what it
uses up is counted in words. Put a real one in its place in `ask`, and nothing else changes.

    smithers up examples/summaries.py --input '{"parts": ["One. More.", "Two. More.", "Three. More."]}'
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from smithers import Budget, Context, Task, workflow
from smithers.agents import AgentAnswer, AgentTool, TokenUsage, ask_model, say

PARTS = [
    "A run is a row. It costs nothing while it waits.",
    "A model is asked once. Its answer is kept before anybody goes on with it.",
    "A budget is a promise. Nobody is asked for money that was not granted.",
]


class Request(BaseModel):
    """The parts to summarize."""

    parts: list[str] = Field(default=PARTS, min_length=1, max_length=100)


class Summarizer:
    """An agent that asks its model about one part after another; answered questions are not asked again."""

    name = "summarizer"

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts

    async def run(self, prompt: str, *, output: Any, tools: Sequence[AgentTool]) -> AgentAnswer:  # noqa: ARG002 - an agent's parameters
        """Return a sentence for each part."""
        return AgentAnswer([await self._sum_up(prompt, part) for part in self._parts])

    async def _sum_up(self, prompt: str, part: str) -> Any:
        async def ask() -> dict[str, Any]:
            text = part.partition(". ")[0].rstrip(".") + "."
            say(text + "\n")  # a real model says it bit by bit
            return {"text": text, "read": len(part.split()), "written": len(text.split())}

        request = {"prompt": prompt, "part": part}
        answer = await ask_model("script", request, ask, read_usage=self._read_usage)
        return answer["text"]

    def _read_usage(self, answer: Any) -> TokenUsage:
        return TokenUsage(
            agent=self.name,
            model="script",
            input_tokens=answer["read"],
            output_tokens=answer["written"],
        )


@workflow(input=Request, budget=Budget(tokens=30))
def summaries(ctx: Context[Request]) -> Task[list[str]]:
    """Summarize all parts."""
    return Task(
        "sum-up",
        agent=Summarizer(ctx.input.parts),
        prompt="Say it in one sentence.",
        output=list[str],
    )
