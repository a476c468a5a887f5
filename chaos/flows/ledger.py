"""Write down, outside the database, that a body began or ended: the witness of what was really done."""

import json
import os
import time

from smithers import current_task

# CLOCK_REALTIME_COARSE: chaos leaves it alone when it moves a host's clock. It is a tick late at most.
TRUE_CLOCK = 5


def mark(what: str) -> None:
    """Append one line to the ledger, whole or not at all."""
    task = current_task()
    line = {
        "at": time.clock_gettime(TRUE_CLOCK),
        "shown": time.time(),
        "what": what,
        "run": task.run_id,
        "node": task.node_id,
        "iteration": task.iteration,
        "attempt": task.attempt,
        "pid": os.getpid(),
    }
    fd = os.open(task.root_dir / "ledger.jsonl", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.write(fd, (json.dumps(line) + "\n").encode())
    finally:
        os.close(fd)
