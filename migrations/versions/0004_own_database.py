"""What a workflow's own database needs on the server's side: whose mirror a run is, and which databases are in use."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "own_databases",
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("smithers.clock()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("own_databases_pkey")),
        schema="smithers",
    )
    op.add_column("runs", sa.Column("database", sa.Text(collation="C")), schema="smithers")
    op.add_column("runs", sa.Column("mirrored_seq", sa.BigInteger()), schema="smithers")
    op.create_check_constraint(
        op.f("runs_mirror_check"),
        "runs",
        "mirrored_seq IS NULL OR (mirrored_seq = last_seq AND due_at IS NULL)",
        schema="smithers",
    )
    op.create_index(
        "runs_reserved_idx",
        "runs",
        ["database"],
        schema="smithers",
        postgresql_where=sa.text("mirrored_seq = '-1'::integer"),
    )


def downgrade() -> None:
    op.drop_index("runs_reserved_idx", table_name="runs", schema="smithers")
    op.drop_constraint("runs_mirror_check", "runs", schema="smithers", type_="check")
    op.drop_column("runs", "mirrored_seq", schema="smithers")
    op.drop_column("runs", "database", schema="smithers")
    op.drop_table("own_databases", schema="smithers")
