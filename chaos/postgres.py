"""A Postgres server as a plain process, to be hurt: killed, restarted, frozen, copied to a standby and promoted.

It listens on 127.0.0.1, so that a proxy can stand before it, with `fsync` and `synchronous_commit` on.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import asyncpg

from bench import processes
from bench.ports import free_port
from smithers.store.embedded.account import ServerAccount, choose_account, run_as
from smithers.store.embedded.binaries import find_binaries

DATABASE = "postgres"
ANSWER_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
LOOK_EVERY_S = 0.05
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "max_wal_size": "512MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_min_messages": "warning",
}
SHUTDOWNS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServer:
    """One server on a directory of its own."""

    def __init__(
        self,
        place: Path,
        *,
        settings: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`place` must be reachable for the account that runs the server of root."""
        self.place = place
        self.port = free_port()
        self.environment = environment or {}
        self._settings = {**SETTINGS, **(settings or {})}
        self._account: ServerAccount = choose_account(place, pgdata=place / "pgdata", name=None)
        self._programs = find_binaries(self._account)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not (self.place / "pgdata" / "PG_VERSION").exists():
            self._create()
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.thaw()
        self.stop("immediate")

    @property
    def dsn(self) -> str:
        """Its address."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def pids(self) -> list[int]:
        """The postmaster and all that it has started; none where it is down."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *processes.descendants(self._process.pid)]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [part for pair in self._settings.items() for part in ("-c", "=".join(pair))]
        with (self.place / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._programs / "postgres"), "-D", str(self.place / "pgdata")),
                    *("-p", str(self.port), *options),
                ],
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_account(),
            )
        self._until_it_answers()

    def stop(self, how: str = "fast") -> None:
        """Have the server shut down, `smart`, `fast` or `immediate`, and wait for its end."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(SHUTDOWNS[how])
            process.wait(STOP_LIMIT_S)

    def kill(self) -> None:
        """Kill the postmaster and all its processes, as a power cut would."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_LIMIT_S)

    def freeze(self) -> None:
        """Stop every process of the server where it stands."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def copy_as_standby(self, place: Path, *, settings: dict[str, str] | None = None) -> Self:
        """Make a standby of this server in `place`; entering it starts it."""
        place.mkdir(parents=True, exist_ok=True)
        if self._account.is_other:
            os.chown(place, self._account.uid, self._account.gid)
        standby = type(self)(place, settings=settings)
        target = place / "pgdata"
        # Beside the server's own program: a copy of it that another account may run has no clients in it.
        client = find_binaries(choose_own_account(place)) / "pg_basebackup"
        subprocess.run(
            [
                *(str(client), "-D", str(target), "-d", f"{self.dsn}?application_name=standby"),
                *("-R", "-X", "stream", "--checkpoint=fast"),
            ],
            check=True,
            capture_output=True,
        )
        if self._account.is_other:
            for directory, _, names in os.walk(target):
                for path in (Path(directory), *(Path(directory, name) for name in names)):
                    os.chown(path, self._account.uid, self._account.gid)
        return standby

    async def promote(self) -> None:
        """Make a standby the primary."""
        connection = await asyncpg.connect(self.dsn)
        try:
            assert await connection.fetchval("SELECT pg_promote(true, 30)")
        finally:
            await connection.close()

    def _create(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        if self._account.is_other:
            os.chown(self.place, self._account.uid, self._account.gid)
        made = run_as(
            self._account,
            [
                *(str(self._programs / "initdb"), "-D", str(self.place / "pgdata")),
                *("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"),
            ],
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb fails: {made.stderr}")

    def _as_account(self) -> dict[str, Any]:
        if not self._account.is_other:
            return {}
        return {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while not asyncio.run(_is_answering(self.dsn)):
            if self._process is None or self._process.poll() is not None:
                said = (self.place / "postgres.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Postgres does not start:\n{said}")
            if time.monotonic() > deadline:
                raise TimeoutError("Postgres does not answer")
            time.sleep(LOOK_EVERY_S)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def choose_own_account(place: Path) -> ServerAccount:
    """Name this process's own account: for programs that need not run as the server's."""
    del place
    return ServerAccount(uid=os.geteuid(), gid=os.getegid(), is_other=False)


def remove(place: Path) -> None:
    """Remove what servers have left in a directory."""
    shutil.rmtree(place, ignore_errors=True)


async def _is_answering(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True
