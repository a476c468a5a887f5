"""A Postgres of the wheel that listens on TCP, as one of somebody else's would: for hosts of their own, and for drills."""

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from smithers.store.embedded.account import choose_account, clean_environment, run_as
from smithers.store.embedded.binaries import find_binaries, wheel_bin_dir

LIMIT_S: Final = 60


class PlainPostgres:
    """A data directory, and the server on it while it is started."""

    def __init__(self, folder: Path, *, host: str, port: int, prefix: Sequence[str] = ()) -> None:
        """`prefix`: words before the server's command, such as `ip netns exec NAME`."""
        self.data = folder / "data"
        self.host = host
        self.port = port
        self._prefix = tuple(prefix)
        self._account = choose_account(folder, pgdata=self.data, name=None)
        self._bin = find_binaries(self._account)
        self._log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{self.host}:{self.port}/{database}"

    def create(self) -> None:
        """Make the cluster; whoever reaches the port may come in."""
        self.data.mkdir(mode=0o700)
        self.own()
        words = [str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres", "--auth=trust"]
        made = run_as(self._account, [*words, "--no-sync"])
        assert made.returncode == 0, made.stderr
        for line in ("host all all all trust", "host replication all all trust"):
            with (self.data / "pg_hba.conf").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def own(self) -> None:
        """Hand the directory, which root may have made, to the server's account."""
        if self._account.is_other:
            for place, _, files in os.walk(self.data):
                for path in (Path(place), *(Path(place) / name for name in files)):
                    os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        words = [str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        words += ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={self.data}"]
        other = self._account
        demote = ["setpriv", f"--reuid={other.uid}", f"--regid={other.gid}", "--clear-groups"]
        with self._log.open("ab") as log:
            said_before = log.tell()  # an earlier start said that it was ready
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    *(demote if other.is_other else []),
                    *words,
                    "-c",
                    "max_connections=200",
                ],
                env=clean_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        ends = time.monotonic() + LIMIT_S
        while b"ready to accept connections" not in self._log.read_bytes()[said_before:]:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < ends, self._log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server as a crash of its host does; nothing more is written."""
        if self._process is not None:
            children = _children(self._process.pid) if self._process.poll() is None else []
            for pid in (self._process.pid, *children):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._process.wait(LIMIT_S)
            self._process = None
            # The next server refuses to start while one of them still has the shared memory.
            ends = time.monotonic() + LIMIT_S
            while any(_is_alive(pid) for pid in children):
                assert time.monotonic() < ends, children
                time.sleep(0.01)

    def run_tool(self, name: str, *words: str) -> None:
        """Run one of Postgres' own tools against the server, to its end."""
        place = ["-h", self.host, "-p", str(self.port), "-U", "postgres"]
        done = subprocess.run(
            [*self._prefix, str(wheel_bin_dir() / name), *place, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=clean_environment(),
        )
        assert done.returncode == 0, (name, done.stderr)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
