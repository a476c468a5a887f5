"""What a richer tree keeps: tool calls, child runs, cached outputs."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _run_file(name: str) -> None:
    """Create the functions of one file; a released file is never edited, its successor is a new one."""
    sql = Path(__file__).parents[1].joinpath("functions", name).read_text(encoding="utf-8")
    op.get_bind().connection.dbapi_connection.run_async(lambda driver: driver.execute(sql))


def upgrade() -> None:
    # All of them null for a run without kin: they take no room in its row.
    op.add_column("runs", sa.Column("parent_run_id", sa.Text(collation="C")), schema="smithers")
    op.add_column("runs", sa.Column("is_parent", sa.Boolean()), schema="smithers")
    op.add_column("runs", sa.Column("has_cleanup", sa.Boolean()), schema="smithers")
    op.add_column("run_requests", sa.Column("carried", sa.Text()), schema="smithers")
    op.create_table(
        "tries",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("try_id", sa.Text(collation="C"), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "try_id", name=op.f("tries_pkey")),
        schema="smithers",
    )
    op.create_table(
        "tool_calls",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("call_no", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tool_name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("is_side_effect", sa.Boolean(), nullable=False),
        sa.Column("is_idempotent", sa.Boolean(), nullable=False),
        sa.Column("input", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint(
            "run_id", "node_id", "iteration", "attempt", "call_no", name=op.f("tool_calls_pkey")
        ),
        schema="smithers",
    )
    op.create_table(
        "children",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("iteration", sa.Integer(), nullable=False),
        sa.Column("child_run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "node_id", "iteration", name=op.f("children_pkey")),
        sa.UniqueConstraint(
            "run_id", "child_run_id", name=op.f("children_run_id_child_run_id_key")
        ),
        schema="smithers",
    )
    op.create_table(
        "cached_outputs",
        sa.Column("cache_key", sa.Text(collation="C"), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("node_id", sa.Text(collation="C"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("cache_key", name=op.f("cached_outputs_pkey")),
        schema="smithers",
    )
    op.create_index(
        "cached_outputs_expires_at_idx",
        "cached_outputs",
        ["expires_at"],
        unique=False,
        schema="smithers",
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    for name in ("commit_group_v2.sql", "outside_v2.sql"):
        _run_file(name)


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_end_kin ON smithers.runs")
    for function in (
        "cancel_run_v2",
        "answer_form_v1",
        "read_form_v1",
        "decide_approval_v2",
        "fits_options_v1",
        "is_allowed_v1",
        "commit_group_v2",
        "end_kin_v1",
        "tell_parent_v1",
        "change_child_v1",
        "hold_kin_v1",
    ):
        op.execute(f"DROP FUNCTION smithers.{function}")
    for name in (
        "run_change_v2",
        "try_change_v1",
        "tool_call_change_v1",
        "child_change_v1",
        "cached_output_change_v1",
    ):
        op.execute(f"DROP TYPE smithers.{name}")
    for table in ("cached_outputs", "children", "tool_calls", "tries"):
        op.drop_table(table, schema="smithers")
    op.drop_column("run_requests", "carried", schema="smithers")
    for column in ("has_cleanup", "is_parent", "parent_run_id"):
        op.drop_column("runs", column, schema="smithers")
