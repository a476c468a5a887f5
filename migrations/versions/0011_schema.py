"""The schema of the first release: the tables, and the functions that write them.

Ten migrations came before it while there was no release, and left the same: a database that is at 0011 by them goes on from
here, and one that is at an older schema has no way on. `smithers/store/tables.py` says what the columns mean.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Integer, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID

revision = "0011"
down_revision = None
branch_labels = None
depends_on = None

VACUUM = {"autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_threshold": 1000}
HOT = {"fillfactor": 70} | VACUUM
CLOCK = "clock.sql"  # before the tables, whose defaults ask it
# After the tables. A file has the types that its function takes, and comes before the others that take them.
FUNCTIONS = (
    *("event_v1.sql", "add_event_v1.sql"),
    *("require_replicated_v1.sql", "notify_v1.sql", "tell_v1.sql"),
    *("start_runs_v1.sql", "start_and_tell_v4.sql"),
    *("is_allowed_v1.sql", "fits_options_v1.sql", "decide_approval_v4.sql", "take_run_v1.sql"),
    *("decide_and_tell_v3.sql", "send_signal_v2.sql", "signal_and_tell_v3.sql"),
    *("read_form_v1.sql", "decide_form_v1.sql", "answer_form_v2.sql"),
    *("cancel_run_v1.sql", "cancel_run_v2.sql", "resume_run_v1.sql", "resume_run_v2.sql"),
    *("tell_parent_v1.sql", "end_kin_v2.sql", "hold_kin_v1.sql"),
    *("change_child_v1.sql", "hold_children_v1.sql", "commit_turns_v5.sql"),
    *("fail_crashed_v1.sql", "bury_worker_v2.sql", "refuse_tombstones_v1.sql"),
)
# For the way down.
TYPES = (
    *("run_start_v1", "decision_v1", "decided_v1", "signal_v1", "signalled_v1"),
    *("run_change_v2", "event_change_v1", "node_change_v1", "attempt_change_v1"),
    *("frame_change_v1", "loop_change_v1", "approval_change_v1", "signal_change_v1"),
    *("try_change_v1", "tool_call_change_v2", "child_change_v1", "cached_output_change_v1"),
)
TABLES = (
    *("runs", "run_requests", "nodes", "attempts", "events", "frames", "approvals", "signals"),
    *("loops", "tries", "children", "tool_calls", "cached_outputs", "workers"),
    *("workflow_sources", "workflow_descriptions", "stream_keys", "idempotency_keys"),
    *("tombstones", "own_databases"),
)


def upgrade() -> None:
    _run_file(CLOCK)
    _create_runs()
    _create_run_requests()
    _create_nodes_and_attempts()
    _create_history()
    _create_questions()
    _create_parts_of_trees()
    _create_calls_and_outputs()
    _create_workers()
    _create_sources()
    _create_keys_and_names()
    for name in FUNCTIONS:
        _run_file(name)


def downgrade() -> None:
    for name in TABLES:
        op.drop_table(name, schema="smithers")
    for name in FUNCTIONS:
        op.execute(f"DROP ROUTINE smithers.{Path(name).stem}")
    for name in TYPES:
        op.execute(f"DROP TYPE smithers.{name}")
    op.execute("DROP FUNCTION smithers.from_ms, smithers.to_ms, smithers.clock")


def _run_file(name: str) -> None:
    """Create what one file has; a released file is never edited, its successor is a new one."""
    sql = Path(__file__).parents[1].joinpath("functions", name).read_text(encoding="utf-8")
    # The driver itself: a file has many statements, and SQLAlchemy prepares what it runs, one at a time.
    op.get_bind().connection.run_async(lambda driver: driver.execute(sql))


def _table(name: str, *parts: sa.schema.SchemaItem, key: str, storage: object = None) -> None:
    """Create a table; `key`: the columns of its primary key, with spaces between them."""
    primary = sa.PrimaryKeyConstraint(*key.split(), name=op.f(f"{name}_pkey"))
    op.create_table(name, *parts, primary, schema="smithers", postgresql_with=storage)


def _index(table: str, name: str, *columns: str, where: str | None = None) -> None:
    keys = [text(column) for column in columns]
    op.create_index(name, table, keys, schema="smithers", postgresql_where=where and text(where))


def _name(name: str, *, nullable: bool = False) -> Column[str]:
    """Compared by its bytes: cheaper, and an index over it depends on no version of a collation."""
    return Column(name, Text(collation="C"), nullable=nullable)


def _moment(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _created_now() -> Column[object]:
    now = text("smithers.clock()")
    return Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False)


def _create_runs() -> None:
    _table(
        "runs",
        _name("run_id"),
        Column("status", Text, nullable=False),
        Column("queue", Text, server_default="default", nullable=False),
        Column("priority", SmallInteger, server_default="0", nullable=False),
        _moment("due_at"),
        Column("owner_id", UUID),
        Column("epoch", BigInteger, server_default="0", nullable=False),
        Column("era", Integer, server_default="0", nullable=False),
        Column("commit_no", BigInteger, server_default="0", nullable=False),
        Column("last_seq", BigInteger, nullable=False),
        Column("last_frame_no", Integer, server_default="0", nullable=False),
        Column("crash_count", SmallInteger, server_default="0", nullable=False),
        Column("is_solo", Boolean, server_default="false", nullable=False),
        _moment("lost_heartbeat_at"),
        _moment("cancel_requested_at"),
        _moment("created_at", nullable=False),
        _moment("started_at"),
        _moment("finished_at"),
        Column("error", Text),
        _name("output_node_id", nullable=True),
        Column("output_iteration", Integer),
        _name("parent_run_id", nullable=True),
        Column("is_parent", Boolean),
        Column("has_cleanup", Boolean),
        _name("database", nullable=True),
        Column("mirrored_seq", BigInteger),
        sa.CheckConstraint(
            "mirrored_seq IS NULL OR (mirrored_seq = last_seq AND due_at IS NULL)",
            name=op.f("runs_mirror_check"),
        ),
        key="run_id",
        storage=HOT,
    )
    _index_runs()


def _index_runs() -> None:
    is_due = "owner_id IS NULL AND due_at IS NOT NULL"
    for name, condition in (
        ("runs_claimable_idx", f"{is_due} AND NOT is_solo AND crash_count = 0"),
        ("runs_solo_idx", f"{is_due} AND (is_solo OR crash_count > 0)"),
        ("runs_suspect_idx", f"{is_due} AND NOT is_solo AND crash_count > 0"),
    ):
        _index("runs", name, "queue", "priority DESC", "due_at", where=condition)
    _index("runs", "runs_status_created_at_run_id_idx", "status", "created_at", "run_id")
    _index("runs", "runs_owner_id_idx", "owner_id", where="owner_id IS NOT NULL")
    _index("runs", "runs_finished_at_idx", "finished_at", where="finished_at IS NOT NULL")
    _index("runs", "runs_reserved_idx", "database", where="mirrored_seq = '-1'::integer")


def _create_run_requests() -> None:
    _table(
        "run_requests",
        _name("run_id"),
        Column("workflow_name", Text, nullable=False),
        Column("workflow_path", Text, nullable=False),
        Column("workflow_export", Text),
        Column("source_hash", Text, nullable=False),
        Column("input", Text, nullable=False),
        Column("config", Text, nullable=False),
        Column("auth", Text),
        Column("trace_context", Text),
        _name("parent_run_id", nullable=True),
        _moment("created_at", nullable=False),
        Column("carried", Text),
        key="run_id",
    )
    by_workflow = "run_requests_workflow_name_created_at_run_id_idx"
    _index("run_requests", by_workflow, "workflow_name", "created_at", "run_id")
    _index("run_requests", "run_requests_created_at_run_id_idx", "created_at", "run_id")
    _index("run_requests", "run_requests_source_hash_idx", "source_hash")


def _create_nodes_and_attempts() -> None:
    _table(
        "nodes",
        _name("run_id"),
        _name("node_id"),
        Column("iteration", Integer, nullable=False),
        Column("kind", Text, nullable=False),
        Column("label", Text),
        Column("state", Text, nullable=False),
        Column("attempt", Integer, server_default="0", nullable=False),
        Column("failures", Integer, server_default="0", nullable=False),
        _moment("created_at", nullable=False),
        _moment("started_at"),
        _moment("finished_at"),
        _moment("due_at"),
        Column("wait", Text),
        _name("loop_id", nullable=True),
        Column("heartbeat", Text),
        Column("output", Text),
        Column("error", Text),
        key="run_id node_id iteration",
        storage=HOT,
    )
    _table(
        "attempts",
        _name("run_id"),
        _name("node_id"),
        Column("iteration", Integer, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("state", Text, nullable=False),
        Column("worker_id", UUID),
        _moment("started_at"),
        _moment("finished_at", nullable=False),
        Column("error", Text),
        key="run_id node_id iteration attempt",
    )


def _create_history() -> None:
    _table(
        "events",
        _name("run_id"),
        Column("seq", BigInteger, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("payload", Text, nullable=False),
        key="run_id seq",
    )
    _table(
        "frames",
        _name("run_id"),
        Column("frame_no", Integer, nullable=False),
        _moment("created_at", nullable=False),
        Column("xml_hash", Text, nullable=False),
        Column("encoding", Text, nullable=False),
        Column("body", Text, nullable=False),
        key="run_id frame_no",
    )


def _create_questions() -> None:
    _table(
        "approvals",
        _name("run_id"),
        _name("node_id"),
        Column("iteration", Integer, nullable=False),
        Column("status", Text, nullable=False),
        Column("request", Text, nullable=False),
        _moment("requested_at", nullable=False),
        _moment("decided_at"),
        Column("decided_by", Text),
        Column("note", Text),
        Column("decision", Text),
        key="run_id node_id iteration",
    )
    is_open = "status = 'requested'"
    _index("approvals", "approvals_open_idx", "requested_at", "run_id", where=is_open)
    _table(
        "signals",
        _name("run_id"),
        Column("seq", BigInteger, nullable=False),
        Column("signal_name", Text, nullable=False),
        Column("correlation_id", Text),
        Column("data", Text, nullable=False),
        Column("signal_id", Text),
        Column("received_by", Text),
        _moment("received_at", nullable=False),
        _name("consumed_by", nullable=True),
        Column("consumed_iteration", Integer),
        sa.UniqueConstraint("run_id", "signal_id", name=op.f("signals_run_id_signal_id_key")),
        key="run_id seq",
    )


def _create_parts_of_trees() -> None:
    _table(
        "loops",
        _name("run_id"),
        _name("loop_id"),
        Column("iteration", Integer, nullable=False),
        Column("is_done", Boolean, nullable=False),
        key="run_id loop_id",
    )
    _table(
        "tries",
        _name("run_id"),
        _name("try_id"),
        Column("phase", Text, nullable=False),
        Column("is_done", Boolean, nullable=False),
        Column("problem", Text),
        key="run_id try_id",
    )
    of_child = op.f("children_run_id_child_run_id_key")
    _table(
        "children",
        _name("run_id"),
        _name("node_id"),
        Column("iteration", Integer, nullable=False),
        _name("child_run_id"),
        Column("status", Text),
        Column("output", Text),
        Column("error", Text),
        _moment("ended_at"),
        sa.UniqueConstraint("run_id", "child_run_id", name=of_child),
        key="run_id node_id iteration",
    )


def _create_calls_and_outputs() -> None:
    _table(
        "tool_calls",
        _name("run_id"),
        _name("node_id"),
        Column("iteration", Integer, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("call_no", Integer, nullable=False),
        Column("kind", Text, nullable=False),
        Column("tool_name", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("is_side_effect", Boolean, nullable=False),
        Column("is_idempotent", Boolean, nullable=False),
        Column("input", Text),
        Column("output", Text),
        Column("error", Text),
        _moment("started_at", nullable=False),
        _moment("finished_at"),
        Column("parent_call_no", Integer),
        Column("beside_call_no", Integer),
        key="run_id node_id iteration attempt call_no",
    )
    _table(
        "cached_outputs",
        _name("cache_key"),
        Column("output", Text, nullable=False),
        _name("run_id"),
        _name("node_id"),
        _moment("created_at", nullable=False),
        _moment("expires_at"),
        key="cache_key",
    )
    _index("cached_outputs", "cached_outputs_created_at_idx", "created_at")
    expires = "expires_at IS NOT NULL"
    _index("cached_outputs", "cached_outputs_expires_at_idx", "expires_at", where=expires)


def _create_workers() -> None:
    _table(
        "workers",
        Column("worker_id", UUID, nullable=False),
        Column("pool_id", UUID, nullable=False),
        Column("boot_id", Text, nullable=False),
        Column("pid_namespace", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("process_start", Text, nullable=False),
        Column("queues", ARRAY(Text), nullable=False),
        _moment("started_at", nullable=False),
        _moment("heartbeat_at", nullable=False),
        _moment("dead_at"),
        Column("death", Text),
        key="worker_id",
    )
    _index("workers", "workers_alive_idx", "heartbeat_at", where="dead_at IS NULL")


def _create_sources() -> None:
    bundle = Column("bundle", Text, nullable=False)
    _table("workflow_sources", _name("source_hash"), bundle, _created_now(), key="source_hash")
    _table(
        "workflow_descriptions",
        _name("source_hash"),
        Column("workflow_export", Text, nullable=False),
        Column("description", Text),
        _created_now(),
        key="source_hash workflow_export",
    )
    wanted = "workflow_descriptions_wanted_idx"
    _index("workflow_descriptions", wanted, "created_at", where="description IS NULL")


def _create_keys_and_names() -> None:
    _table(
        "stream_keys",
        Column("key_no", SmallInteger, autoincrement=False, nullable=False),
        Column("secret", sa.LargeBinary, nullable=False),
        _created_now(),
        key="key_no",
    )
    _table(
        "idempotency_keys",
        Column("idempotency_key", Text, nullable=False),
        Column("request_hash", Text, nullable=False),
        _name("run_id"),
        _created_now(),
        key="idempotency_key",
    )
    _index("idempotency_keys", "idempotency_keys_run_id_idx", "run_id")
    _table("tombstones", _name("run_id"), _moment("pruned_at", nullable=False), key="run_id")
    _table("own_databases", _name("name"), _created_now(), key="name")
