"""`python -P -m tests.support.impatient` in place of `worker`: the same, but a child may be silent for a shorter time."""

import runpy

from worker import children

if __name__ == "__main__":
    vars(children).update(SILENT_CHILD_S=5.0)
    runpy.run_module("worker", run_name="__main__")
