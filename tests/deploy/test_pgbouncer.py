"""A server behind PgBouncer, told what docs/scaling.md says."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smithers.client import Client
from tests.support.balancers import DEPLOY, find_program, free_port
from tests.support.plain_postgres import PlainPostgres, scratch
from tests.support.serving import Serving

pytestmark = pytest.mark.timeout(300)  # real processes, on machines that are busy
NOBODY = 65534  # it does not run as root
LIMIT_S = 60
FLOW = """
from smithers import Sequence, Signal, Task, workflow


@workflow
def waits(ctx):
    return Sequence(Task("a", lambda: 1), Signal("go"), Task("b", lambda: 2))
"""


def passed_parameters() -> str:
    """The line for PgBouncer that the page on scaling gives."""
    text = (DEPLOY.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ignore_startup_parameters = .+$", text, re.MULTILINE)
    return line


@contextmanager
def pooling(postgres: PlainPostgres, folder: Path, mode: str) -> Iterator[str]:
    """Run PgBouncer before a Postgres; give the URL through it."""
    port = free_port()
    (folder / "users").write_text('"postgres" ""\n', encoding="utf-8")
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
postgres = host={postgres.host} port={postgres.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = 50
{passed_parameters()}
""",
        encoding="utf-8",
    )
    demoted = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [*demoted, find_program("pgbouncer"), str(folder / "pgbouncer.ini")],
            stdout=log,
            stderr=log,
        )
    try:
        ends = time.monotonic() + LIMIT_S
        while b"process up" not in (folder / "pgbouncer.log").read_bytes():
            assert process.poll() is None, (folder / "pgbouncer.log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def test_a_run_waits_and_goes_on_behind_a_pooler_in_session_mode(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "waits.py").write_text(FLOW, encoding="utf-8")
    with scratch() as data, scratch() as folder:
        folder.chmod(0o755)
        postgres = PlainPostgres(data, host="127.0.0.1", port=free_port())
        postgres.create()
        postgres.start()
        try:
            with pooling(postgres, folder, "session") as url:
                env = {"DATABASE_URL": url, "DATABASE_DIRECT_URL": postgres.dsn()}
                flags = ("--port", "0", "--workers", "1", "--migrate")
                with Serving(root, None, *flags, **env) as server, server.client() as client:
                    client.start("waits.py", run_id="one")
                    until_status(client, "waiting-event")
                    client.signal("one", "go", {})
                    until_status(client, "finished")
        finally:
            postgres.kill()


def until_status(client: Client, wanted: str) -> None:
    ends = time.monotonic() + LIMIT_S
    while (found := client.get("one").status) != wanted:
        assert time.monotonic() < ends, found
        time.sleep(0.1)
