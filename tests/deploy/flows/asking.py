"""A question to an agent whose model is played: what the image's extra `agents` is for."""

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from smithers import Task, workflow

AGENT = Agent(TestModel(custom_output_text="an answer"), name="played")


@workflow
def asking(_ctx):
    return Task("ask", agent=AGENT, prompt="Are you there?")
