"""What a type checker must know of what authors write; read by tests/unit/test_typing.py, never run."""

from typing import Any, assert_type

from pydantic import BaseModel

from smithers import Approval, ApprovalDecision, Context, Sequence, Signal, Task, Workflow, workflow


class Brief(BaseModel):
    topic: str


class Article(BaseModel):
    title: str


async def write(topic: str) -> Article:
    return Article(title=topic)


def count(article: Article) -> int:
    return len(article.title)


@workflow(input=Brief)
def publish(ctx: Context[Brief]) -> Sequence:
    assert_type(ctx.input, Brief)
    assert_type(ctx.output("write", Article), Article)
    assert_type(ctx.output_maybe("write", Article), Article | None)
    assert_type(ctx.latest("write", Article), Article | None)
    assert_type(ctx.output("count", int), int)
    assert_type(ctx.output_maybe("ok", ApprovalDecision), ApprovalDecision | None)
    assert_type(ctx.output("write"), Any)
    article = ctx.output_maybe("write", Article)
    return Sequence(
        Task("write", lambda: write(ctx.input.topic), retries=3),
        Task("count", count, needs={"article": "write"}, output=int),
        Task("plain", 7),
        Signal("go", output=Article),
        article and Task("after", lambda: count(article)),
        [None, False, [Task("nested", "x")], (Task(name, 1) for name in ("p", "q"))],
    )


assert_type(publish, Workflow[Brief])
assert_type(publish.input_model, type[Brief] | None)


@workflow
def bare(ctx: Context[Any]) -> Task[int]:
    assert_type(ctx.input, Any)
    return Task("one", 1)


assert_type(bare, Workflow[Any])


@workflow
def untyped(ctx: Context) -> Task:
    assert_type(ctx.input, Any)
    assert_type(ctx.output("one", int), int)
    return Task("one", 1)


def ask() -> list[Approval]:
    return [
        Approval("ok", title="?", on_deny="continue"),
        Approval("misspelt", title="?", on_deny="contineu"),  # type: ignore[arg-type]  # no such word
    ]


@workflow(name="named")
def named(ctx: Context[Any]) -> list[Task[int]]:
    return [Task("one", 1)]


@workflow(input=Brief)  # type: ignore[arg-type]  # the input is a Brief
def wrong(ctx: Context[Article]) -> None:
    del ctx
