"""`smithers serve` with more than one database, and with none."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smithers.client import BadRequest, Client, ServerFailed
from smithers.store.embedded import open_temporary_postgres
from smithers.store.schema import upgrade_schema
from tests.support.serving import (
    LIMIT_S,
    Serving,
    find_processes,
    is_event,
    serving,
    until_none,
)
from tests.support.waiting import until

FLAGS = ("--port", "0", "--workers", "1", "--drain-timeout", "1")
ORDERS = """
from smithers import Approval, Sequence, Task, workflow


@workflow(database="ORDERS")
def orders(ctx):
    return Sequence(
        Task("take", lambda: ctx.input["what"]),
        Approval("pay", title="Paid?"),
        Task("send", lambda: "sent " + ctx.output("take")),
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("root")
    (place / "orders.py").write_text(ORDERS)
    return place


@pytest.fixture
def orders() -> Iterator[str]:
    postgres = open_temporary_postgres()
    upgrade_schema(postgres.dsn)
    yield postgres.dsn
    postgres.close()


def start(client: Client) -> str:
    """Start a run; a worker that is new may not have described the workflow within the time that a start waits."""
    ends = time.monotonic() + LIMIT_S
    while True:
        try:
            return client.start("orders.py", {"what": "tea"})
        except ServerFailed as error:
            if error.code != "NO_WORKER" or time.monotonic() > ends:
                raise


def wait_for(client: Client, run_id: str, status: str) -> None:
    for event in client.stream(run_id):
        if event.type == "RunStatusChanged" and event.field("status") == status:
            return


def until_listed(client: Client, run_id: str, status: str) -> None:
    """Wait until the list, which comes from the mirror, shows a run with a status."""

    def is_listed() -> bool:
        listed = client.list_runs(limit=5)
        return [row.status for row in listed if row.run_id == run_id] == [status]

    until(is_listed, f"the run is listed as {status}")


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_workflow_runs_in_the_database_that_it_names(
    root: Path, orders: str, by_flag: bool
) -> None:
    flags = ("--workflow-database", f"ORDERS={orders}") if by_flag else ()
    env = {} if by_flag else {"ORDERS": orders}
    with serving(root, *FLAGS, *flags, **env) as server:
        with server.client() as client:
            run_id = start(client)
            wait_for(client, run_id, "waiting-approval")
            until_listed(client, run_id, "waiting-approval")
            (approval,) = client.list_approvals()
            client.approve(run_id, approval.node_id)
            run = client.wait(run_id)
            assert (run.status, run.output) == ("finished", "sent tea")
            until_listed(client, run_id, "finished")
        server.talk.until(is_event("mirrored"))
        secret = orders.partition("host=")[2].partition("&")[0]
        assert not [line for line in server.talk.lines if secret in line]
        for pid in find_processes(server.mark):
            if pid != server.process.pid:
                assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        assert server.stop() == 0
    until_none(server.mark)


def test_after_kill_9_the_pools_of_all_databases_end(root: Path, orders: str) -> None:
    with serving(root, *FLAGS, ORDERS=orders) as server:
        with server.client() as client:
            wait_for(client, start(client), "waiting-approval")
        server.talk.until(is_event("own_pool_starts"))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        until_none(server.mark)


def test_a_database_that_is_not_known_is_named(root: Path) -> None:
    with (
        serving(root, *FLAGS) as server,
        server.client() as client,
        pytest.raises(BadRequest, match="ORDERS"),
    ):
        start(client)


def test_without_a_database_all_works_but_lists_and_nothing_stays(flows: Path) -> None:
    with Serving(flows, None, *FLAGS, "--no-database") as server:
        data = Path(server.started["data"])
        with server.client() as client:
            run_id = client.start("flows.py:asks", {})
            wait_for(client, run_id, "waiting-approval")
            client.approve(run_id, "go")
            assert client.wait(run_id).output == "gone"
            with pytest.raises(BadRequest) as caught:
                client.list_runs(limit=5)
            assert caught.value.code == "DB_NOT_CONFIGURED"
        assert data.is_dir()
        assert server.stop() == 0
    until_none(server.mark)
    assert not data.exists()


def test_without_a_database_a_kill_9_leaves_nothing_that_the_next_start_does_not_remove(
    flows: Path,
) -> None:
    with Serving(flows, None, *FLAGS, "--no-database") as killed:
        data = Path(killed.started["data"])
        killed.stop(signal.SIGKILL)
    until_none(killed.mark)
    until_none(str(data))
    with Serving(flows, None, *FLAGS, "--no-database") as server:
        assert not data.exists()
        assert server.stop() == 0
