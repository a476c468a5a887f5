"""`python -P -m tests.support.crashing` in place of `worker` or `bench.gateway`: the same, until it dies where it is told to.

CRASH_POINT names a point ("child commit after"), CRASH_HITS a file: each time a process passes the point it adds a byte
there, and at CRASH_AT bytes it ends with `os._exit`, as if by kill -9: nothing is flushed, closed or told to anybody.
The product knows nothing of this: the functions that speak to Postgres are wrapped from outside, before anybody has taken
them by name. Children are forks of this process, so the points are in them too.
"""

import functools
import os
import runpy
from collections.abc import Awaitable, Callable
from typing import Any

from smithers.store import claims, commits, outside, owners, starts

CODE = 137
PARTS = {"gateway": "bench.gateway", "pool": "worker", "child": "worker"}
Call = Callable[..., Awaitable[Any]]
Filter = Callable[..., bool]


def is_ending(is_wanted: Callable[[Any], bool]) -> Filter:
    """Pass groups in which some turn ends in a status of this kind."""

    def is_it(_connection: Any, _worker_id: Any, changes: Any) -> bool:
        return any(
            change.turn.ending is not None and is_wanted(change.turn.ending.status)
            for change in changes
        )

    return is_it


def any_call(*_args: Any, **_kwargs: Any) -> bool:
    return True


# Both sides of every commit of the product: the module, the function that makes it, and which of its calls count.
POINTS: dict[str, tuple[Any, str, Filter]] = {
    "gateway start": (starts, "start_runs", any_call),
    "gateway start-with-key": (starts, "start_with_key", any_call),
    "gateway decide": (outside, "_decide_rows", any_call),
    "gateway signal": (outside, "_send_rows", any_call),
    "gateway cancel": (outside, "cancel_run", any_call),
    "gateway resume": (outside, "resume_run", any_call),
    "child claim": (claims, "claim_runs", any_call),
    "child commit": (commits, "_commit_group", any_call),
    "child park": (commits, "_commit_group", is_ending(lambda status: status.is_parked)),
    "child end": (commits, "_commit_group", is_ending(lambda status: status.is_terminal)),
    "child release": (claims, "release_runs", any_call),
    "child acquit": (claims, "acquit_run", any_call),
    "child time-out": (outside, "_decide_rows", any_call),
    "pool register": (owners, "register_worker", any_call),
    "pool beat": (owners, "beat", any_call),
    "pool bury": (owners, "bury_worker", any_call),
}


def install(point: str, hits_path: str, at: int) -> None:
    """Wrap the function of a point; `at` counts from 1, over all processes that share the file."""
    name, _, side = point.rpartition(" ")
    module, function, is_counted = POINTS[name]
    call: Call = getattr(module, function)

    def pass_by() -> None:
        fd = os.open(hits_path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b".")
        if os.fstat(fd).st_size == at:
            os._exit(CODE)
        os.close(fd)

    @functools.wraps(call)
    async def crashing(*args: Any, **kwargs: Any) -> Any:
        is_it = is_counted(*args, **kwargs)
        if is_it and side == "before":
            pass_by()
        # A claim that took nothing has committed nothing.
        answer = await call(*args, **kwargs)
        if is_it and side == "after" and answer != []:
            pass_by()
        return answer

    setattr(module, function, crashing)


if __name__ == "__main__":
    install(os.environ["CRASH_POINT"], os.environ["CRASH_HITS"], int(os.environ["CRASH_AT"]))
    runpy.run_module(PARTS[os.environ["CRASH_POINT"].split()[0]], run_name="__main__")
