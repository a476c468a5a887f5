"""`python -P -m tests.support.unreleased` in place of `worker`: in each child the first release finds no database."""

import itertools
import os
import runpy
from typing import Any

from smithers.errors import StoreUnavailable
from smithers.store import claims

_tries = itertools.count(1)
_release_runs = claims.release_runs


async def _release_later(*args: Any) -> Any:
    if next(_tries) == 1:
        os.write(2, b'{"event": "release_lost"}\n')
        raise StoreUnavailable("the database is away")
    return await _release_runs(*args)


if __name__ == "__main__":
    vars(claims).update(release_runs=_release_later)
    runpy.run_module("worker", run_name="__main__")
