"""A question to an agent, whose model is played, so that there are tokens to count."""

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from smithers import Context, Task, workflow

JUDGE = Agent(TestModel(custom_output_text="good"), name="judge")


@workflow
def judges(_ctx: Context[object]) -> Task:
    return Task("judge", agent=JUDGE, prompt="Is it good?")
