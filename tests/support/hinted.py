"""`python -P -m tests.support.hinted` in place of `worker`: the same, but no child looks by itself: only hints move it.

Children are forks of this process.
"""

import runpy

from worker import claimer

if __name__ == "__main__":
    vars(claimer).update(MAX_SLEEP_S=3_600.0, NEWS_EVERY_S=3_600.0)
    runpy.run_module("worker", run_name="__main__")
