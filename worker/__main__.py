"""`python -P -m worker`: a pool; its settings are one line of JSON on stdin, and it ends when its stdin does."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from worker.fork_server import open_fork_server

if TYPE_CHECKING:
    from worker.settings import PoolSettings


def main() -> None:
    """Read the settings and run the pool."""
    fork_server = open_fork_server()  # before anything else is imported: it loads concurrently
    import uvloop

    import smithers.telemetry.without_rich  # noqa: F401 - before structlog
    from smithers.telemetry.logs import configure_logging
    from worker.pool import run_pool
    from worker.settings import PoolSettings

    # Unbuffered: the pipe's end is the parent's life sign, so nothing after the line may be read here.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("the pool was started without settings: use `smithers worker`")
        line += byte
    settings = PoolSettings.from_json(line)
    configure_logging(settings.log_format, settings.log_level)
    with _share(settings):
        uvloop.run(run_pool(settings, fork_server))


def _share(settings: "PoolSettings") -> AbstractContextManager[object]:
    """Hold a share of the embedded Postgres, so that the pool can drain even if the process that started both was killed."""
    if settings.embedded_data_dir is None:
        return nullcontext()
    from smithers.store.embedded import open_embedded_postgres

    return open_embedded_postgres(Path(settings.embedded_data_dir))


if __name__ == "__main__":
    main()
