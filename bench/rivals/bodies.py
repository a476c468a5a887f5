"""What the nodes do, the same for every rival as in bench/flows; imports nothing of this repository."""

import asyncio
import os
from typing import Any


async def first() -> int:
    return 1


async def add_one(number: int) -> int:
    return number + 1


async def echo(number: int) -> int:
    return number


async def prepare() -> str:
    return "ready"


async def publish() -> str:
    return "published"


async def step(run_id: str, number: int, given: dict[str, Any]) -> int:
    """Take a while, then write into the ledger: one write with O_APPEND, a line or none."""
    await asyncio.sleep(given["step_s"])
    ledger = os.open(given["ledger"], os.O_WRONLY | os.O_APPEND)
    os.write(ledger, f"{run_id} s{number}\n".encode())
    os.close(ledger)
    return number
