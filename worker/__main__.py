"""`python -P -m worker`: a pool; its settings are one line of JSON on stdin, and it ends when its stdin does."""

import os
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import uvloop

import smithers.telemetry.without_rich  # noqa: F401 - before structlog
from smithers.collector import settle_collector
from smithers.telemetry.logs import configure_logging
from worker.fork_server import open_fork_server
from worker.pool import run_pool
from worker.settings import PoolSettings


def main() -> None:
    """Fork the fork server, read the settings, and run the pool."""
    settle_collector()  # memory shared by all forks is not traversed, and so not copied, by each
    # Before there are threads, connections or an event loop.
    with closing(open_fork_server()) as fork_server:
        settings = _read_settings()
        configure_logging(settings.log_format, settings.log_level)
        with _share(settings):
            uvloop.run(run_pool(settings, fork_server))


def _read_settings() -> PoolSettings:
    # Unbuffered: the pipe's end is the parent's life sign, so nothing after the line may be read here.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("the pool was started without settings: use `smithers worker`")
        line += byte
    return PoolSettings.from_json(line)


def _share(settings: PoolSettings) -> AbstractContextManager[object]:
    """Hold a share of the embedded Postgres, so that the pool can drain even if the process that started both was killed."""
    if settings.embedded_data_dir is None:
        return nullcontext()
    from smithers.store.embedded import open_embedded_postgres

    return open_embedded_postgres(Path(settings.embedded_data_dir))


if __name__ == "__main__":
    main()
