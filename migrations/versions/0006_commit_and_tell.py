"""One round trip for a commit and its notifications."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in ("commit_turns_v1.sql", "start_and_tell_v1.sql"):
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.dbapi_connection.run_async(
            lambda driver, sql=sql: driver.execute(sql)
        )


def downgrade() -> None:
    op.execute("DROP PROCEDURE smithers.start_and_tell_v1")
    op.execute("DROP PROCEDURE smithers.commit_turns_v1")
