"""`python -P -m tests.support.hinted` in place of `worker`: the same, but no child looks by itself: only hints move it.

A child process imports its parent's main module, which is this one.
"""

import runpy

from worker import claimer

if __name__ in {"__main__", "__mp_main__"}:
    claimer.MAX_SLEEP_S = claimer.NEWS_EVERY_S = 3_600.0
    if __name__ == "__main__":
        runpy.run_module("worker", run_name="__main__")
