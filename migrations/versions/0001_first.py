"""The first schema: runs and what hangs on them, workers, sources, and the functions that write them."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _run_file(name: str) -> None:
    """Create the functions of one file; a released file is never edited, its successor is a new one."""
    sql = Path(__file__).parents[1].joinpath("functions", name).read_text(encoding="utf-8")
    # The driver itself: a file has many statements, and SQLAlchemy prepares what it runs, one at a time.
    op.get_bind().connection.dbapi_connection.run_async(lambda driver: driver.execute(sql))


def upgrade() -> None:
    _run_file("clock_v1.sql")
    op.create_table(
        "approvals",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "node_id", "iteration", name=op.f("approvals_pkey")),
        schema="smithers",
    )
    op.create_index(
        "approvals_open_idx",
        "approvals",
        ["requested_at", "run_id"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text("status = 'requested'"),
    )
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.UUID(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint(
            "run_id", "node_id", "iteration", "attempt", name=op.f("attempts_pkey")
        ),
        schema="smithers",
    )
    op.create_table(
        "events",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("events_pkey")),
        schema="smithers",
    )
    op.create_table(
        "frames",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("frame_no", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("xml_hash", sa.Text(), nullable=False),
        sa.Column("encoding", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "frame_no", name=op.f("frames_pkey")),
        schema="smithers",
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("smithers.clock()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("idempotency_key", name=op.f("idempotency_keys_pkey")),
        schema="smithers",
    )
    op.create_table(
        "loops",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("loop_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "loop_id", name=op.f("loops_pkey")),
        schema="smithers",
    )
    op.create_table(
        "nodes",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("wait", sa.Text(), nullable=True),
        sa.Column("loop_id", sa.Text(collation="C"), nullable=True),
        sa.Column("heartbeat", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "node_id", "iteration", name=op.f("nodes_pkey")),
        schema="smithers",
        postgresql_with={
            "fillfactor": 70,
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_vacuum_threshold": 1000,
        },
    )
    op.create_table(
        "run_requests",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("workflow_name", sa.Text(), nullable=False),
        sa.Column("workflow_path", sa.Text(), nullable=False),
        sa.Column("workflow_export", sa.Text(), nullable=True),
        sa.Column("source_hash", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("auth", sa.Text(), nullable=True),
        sa.Column("trace_context", sa.Text(), nullable=True),
        sa.Column("parent_run_id", sa.Text(collation="C"), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("run_requests_pkey")),
        schema="smithers",
    )
    op.create_index(
        "run_requests_created_at_run_id_idx",
        "run_requests",
        ["created_at", "run_id"],
        unique=False,
        schema="smithers",
    )
    op.create_index(
        "run_requests_workflow_name_created_at_run_id_idx",
        "run_requests",
        ["workflow_name", "created_at", "run_id"],
        unique=False,
        schema="smithers",
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), server_default="default", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("owner_id", sa.UUID(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("era", sa.Integer(), server_default="0", nullable=False),
        sa.Column("commit_no", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_frame_no", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crash_count", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("is_solo", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("lost_heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("output_node_id", sa.Text(collation="C"), nullable=True),
        sa.Column("output_iteration", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("runs_pkey")),
        schema="smithers",
        postgresql_with={
            "fillfactor": 70,
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_vacuum_threshold": 1000,
        },
    )
    op.create_index(
        "runs_claimable_idx",
        "runs",
        ["queue", sa.literal_column("priority DESC"), "due_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text(
            "owner_id IS NULL AND due_at IS NOT NULL AND NOT is_solo AND crash_count = 0"
        ),
    )
    op.create_index(
        "runs_solo_idx",
        "runs",
        ["queue", sa.literal_column("priority DESC"), "due_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text(
            "owner_id IS NULL AND due_at IS NOT NULL AND (is_solo OR crash_count > 0)"
        ),
    )
    op.create_index(
        "runs_suspect_idx",
        "runs",
        ["queue", sa.literal_column("priority DESC"), "due_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text(
            "owner_id IS NULL AND due_at IS NOT NULL AND NOT is_solo AND crash_count > 0"
        ),
    )
    op.create_index(
        "runs_status_created_at_run_id_idx",
        "runs",
        ["status", "created_at", "run_id"],
        unique=False,
        schema="smithers",
    )
    op.create_index(
        "runs_owner_id_idx",
        "runs",
        ["owner_id"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text("owner_id IS NOT NULL"),
    )
    op.create_table(
        "signals",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("signal_name", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("signal_id", sa.Text(), nullable=True),
        sa.Column("received_by", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("consumed_by", sa.Text(collation="C"), nullable=True),
        sa.Column("consumed_iteration", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("signals_pkey")),
        sa.UniqueConstraint("run_id", "signal_id", name=op.f("signals_run_id_signal_id_key")),
        schema="smithers",
    )
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("pid_namespace", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_start", sa.Text(), nullable=False),
        sa.Column("queues", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("dead_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("death", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("workers_pkey")),
        schema="smithers",
    )
    op.create_index(
        "workers_alive_idx",
        "workers",
        ["heartbeat_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text("dead_at IS NULL"),
    )
    op.create_table(
        "workflow_descriptions",
        sa.Column("source_hash", sa.Text(collation="C"), nullable=False),
        sa.Column("workflow_export", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("smithers.clock()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint(
            "source_hash", "workflow_export", name=op.f("workflow_descriptions_pkey")
        ),
        schema="smithers",
    )
    op.create_index(
        "workflow_descriptions_wanted_idx",
        "workflow_descriptions",
        ["created_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text("description IS NULL"),
    )
    op.create_table(
        "workflow_sources",
        sa.Column("source_hash", sa.Text(collation="C"), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("smithers.clock()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("source_hash", name=op.f("workflow_sources_pkey")),
        schema="smithers",
    )
    for name in ("commit_group_v1.sql", "start_runs_v1.sql", "outside_v1.sql", "owners_v1.sql"):
        _run_file(name)


def downgrade() -> None:
    for function in (
        "bury_worker_v1",
        "fail_crashed_v1",
        "resume_run_v1",
        "cancel_run_v1",
        "send_signal_v1",
        "decide_approval_v1",
        "add_event_v1",
        "start_runs_v1",
        "commit_group_v1",
        "event_v1",
    ):
        op.execute(f"DROP FUNCTION smithers.{function}")
    for name in (
        "run_start",
        "run_change",
        "event_change",
        "node_change",
        "attempt_change",
        "frame_change",
        "loop_change",
        "approval_change",
        "signal_change",
    ):
        op.execute(f"DROP TYPE smithers.{name}_v1")
    for table in (
        "workflow_sources",
        "workflow_descriptions",
        "workers",
        "signals",
        "runs",
        "run_requests",
        "nodes",
        "loops",
        "idempotency_keys",
        "frames",
        "events",
        "attempts",
        "approvals",
    ):
        op.drop_table(table, schema="smithers")
    for function in ("from_ms", "to_ms", "clock"):
        op.execute(f"DROP FUNCTION smithers.{function}")
