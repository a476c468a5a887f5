"""A commit and a start are one body each: fewer statements for the same work."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TRIGGER_V1 = """
    CREATE CONSTRAINT TRIGGER runs_end_kin AFTER UPDATE OF status ON smithers.runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((NEW.parent_run_id IS NOT NULL OR NEW.is_parent) AND NEW.status <> OLD.status
        AND NEW.status IN ('finished', 'failed', 'cancelled', 'continued'))
    EXECUTE FUNCTION smithers.end_kin_v1()"""


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in ("commit_turns_v5.sql", "end_kin_v2.sql"):
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.dbapi_connection.run_async(
            lambda driver, sql=sql: driver.execute(sql)
        )


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_end_kin ON smithers.runs")
    op.execute(TRIGGER_V1)
    op.execute("DROP FUNCTION smithers.end_kin_v2")
    for call in ("start_and_tell_v4", "commit_turns_v5"):
        op.execute(f"DROP PROCEDURE smithers.{call}")
