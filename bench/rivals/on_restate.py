"""Restate: its server, alone with its own log on disk, calls these services; two processes of hypercorn, as documented.

It is spoken to directly: the three calls of front.py are its own ingress.
"""

from typing import Any

import bodies
import restate
from restate import Workflow, WorkflowContext, WorkflowSharedContext

three = Workflow("three")
chain = Workflow("chain")
gate = Workflow("gate")
steps = Workflow("steps")


@three.main("run")
async def run_three(ctx: WorkflowContext, _given: dict[str, Any]) -> int:
    number = await ctx.run_typed("first", bodies.first)
    number = await ctx.run_typed("second", bodies.add_one, number=number)
    return await ctx.run_typed("third", bodies.add_one, number=number)


@chain.main("run")
async def run_chain(ctx: WorkflowContext, given: dict[str, Any]) -> int:
    for number in range(given["count"]):
        await ctx.run_typed(f"n{number}", bodies.echo, number=number)
    return given["count"]


@gate.main("run")
async def run_gate(ctx: WorkflowContext, _given: dict[str, Any]) -> str:
    await ctx.run_typed("prepare", bodies.prepare)
    await ctx.promise("ok").value()
    return await ctx.run_typed("publish", bodies.publish)


@gate.handler("approve")
async def approve(ctx: WorkflowSharedContext, _given: dict[str, Any]) -> str:
    await ctx.promise("ok").resolve("yes")
    return "yes"


@steps.main("run")
async def run_steps(ctx: WorkflowContext, given: dict[str, Any]) -> int:
    for number in range(given["count"]):
        await ctx.run_typed(f"s{number}", bodies.step, run_id=ctx.key(), number=number, given=given)
    return given["count"]


app = restate.app([three, chain, gate, steps])
