"""`python -P -m tests.support.unlucky` in place of `worker`: no burial goes as it should, nor does every second birth."""

import itertools
import runpy
from typing import Any

from smithers.ids import WorkerId
from worker import children

_births = itertools.count(1)
_bear = children.bear


async def _sweep(_worker_id: WorkerId) -> None:
    raise RuntimeError("nobody foresaw this")


def _bear_sometimes(*args: Any) -> Any:
    if next(_births) % 2 == 0:
        raise EOFError
    return _bear(*args)


if __name__ == "__main__":
    children.sweep = _sweep
    children.bear = _bear_sometimes
    runpy.run_module("worker", run_name="__main__")
