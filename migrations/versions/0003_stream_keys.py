"""The key that stream tokens are signed with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stream_keys",
        sa.Column("key_no", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("smithers.clock()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("key_no", name=op.f("stream_keys_pkey")),
        schema="smithers",
    )


def downgrade() -> None:
    op.drop_table("stream_keys", schema="smithers")
