"""A call says within which other it was made, and beside which: what a later attempt recalls follows from that."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("parent_call_no", "beside_call_no"):
        op.add_column(
            "tool_calls", sa.Column(column, sa.Integer(), nullable=True), schema="smithers"
        )
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in ("commit_group_v4.sql", "commit_turns_v4.sql"):
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.dbapi_connection.run_async(
            lambda driver, sql=sql: driver.execute(sql)
        )


def downgrade() -> None:
    op.execute("DROP PROCEDURE smithers.commit_turns_v4")
    op.execute("DROP FUNCTION smithers.commit_group_v4")
    op.execute("DROP TYPE smithers.tool_call_change_v2")
    for column in ("beside_call_no", "parent_call_no"):
        op.drop_column("tool_calls", column, schema="smithers")
