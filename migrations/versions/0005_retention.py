"""What remains of runs that were removed, and by what those to be removed are found."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _run_file(name: str) -> None:
    """Create the functions of one file; a released file is never edited, its successor is a new one."""
    sql = Path(__file__).parents[1].joinpath("functions", name).read_text(encoding="utf-8")
    op.get_bind().connection.dbapi_connection.run_async(lambda driver: driver.execute(sql))


def upgrade() -> None:
    op.create_table(
        "tombstones",
        sa.Column("run_id", sa.Text(collation="C"), nullable=False),
        sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("tombstones_pkey")),
        schema="smithers",
    )
    op.create_index(
        "runs_finished_at_idx",
        "runs",
        ["finished_at"],
        schema="smithers",
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "run_requests_source_hash_idx", "run_requests", ["source_hash"], schema="smithers"
    )
    op.create_index(
        "idempotency_keys_run_id_idx", "idempotency_keys", ["run_id"], schema="smithers"
    )
    _run_file("tombstones_v1.sql")


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_refuse_tombstones ON smithers.runs")
    op.execute("DROP FUNCTION smithers.refuse_tombstones_v1")
    op.drop_index("idempotency_keys_run_id_idx", "idempotency_keys", schema="smithers")
    op.drop_index("run_requests_source_hash_idx", "run_requests", schema="smithers")
    op.drop_index("runs_finished_at_idx", "runs", schema="smithers")
    op.drop_table("tombstones", schema="smithers")
