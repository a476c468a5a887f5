"""`python -P -m worker`: a pool, told by one line of JSON on its stdin; it ends when its stdin does."""

import os

import uvloop

from smithers.telemetry.logs import configure_logging
from worker.pool import run_pool
from worker.settings import PoolSettings


def main() -> None:
    """Read the settings and run the pool."""
    # Unbuffered: what comes after the line is the other side's life sign, and must stay in the pipe.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("the pool was started without settings: use `smithers worker`")
        line += byte
    settings = PoolSettings.from_json(line)
    configure_logging(settings.log_format, settings.log_level)
    uvloop.run(run_pool(settings))


if __name__ == "__main__":
    main()
