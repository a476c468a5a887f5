"""A row that is held for long holds up nobody else; nothing is acknowledged that no synchronous standby may have."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in ("commit_turns_v3.sql", "outside_v4.sql", "owners_v2.sql"):
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.dbapi_connection.run_async(
            lambda driver, sql=sql: driver.execute(sql)
        )


def downgrade() -> None:
    for call in (
        "commit_turns_v3",
        "start_and_tell_v3",
        "decide_and_tell_v2",
        "signal_and_tell_v2",
    ):
        op.execute(f"DROP PROCEDURE smithers.{call}")
    for function in ("bury_worker_v2", "take_run_v1", "require_replicated_v1"):
        op.execute(f"DROP FUNCTION smithers.{function}")
