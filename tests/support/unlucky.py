"""`python -P -m tests.support.unlucky` in place of `worker`: no burial goes as it should, nor does every second birth."""

import itertools
import runpy
from typing import Any

from smithers.ids import WorkerId
from worker import children
from worker.forked import start_child

_births = itertools.count(1)


async def _sweep(_worker_id: WorkerId) -> None:
    raise RuntimeError("nobody foresaw this")


def _start_sometimes(*args: Any) -> Any:
    if next(_births) % 2 == 0:
        raise EOFError
    return start_child(*args)


if __name__ == "__main__":
    vars(children).update(sweep=_sweep, start_child=_start_sometimes)
    runpy.run_module("worker", run_name="__main__")
