"""`python -P -m tests.support.silent` in place of `worker`: the same, but what a commit does not tell is never told.

Children are forks of this process.
"""

import runpy

from smithers.store import untold

if __name__ == "__main__":
    vars(untold).update(LATE_S=3_600.0, LAST_S=0.0)
    runpy.run_module("worker", run_name="__main__")
