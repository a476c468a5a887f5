"""What has ended stays so, and a parent is told of no end that is none.

- `end_kin_v3`: a run that its parent takes up again in the commit that ends it is not told of as ended. Its trigger calls it
  from now on, whichever release writes.
- `decide_approval_v5`, `decide_form_v2`: no question of a run that has ended is decided, which would take the run up again.
- `decide_and_tell_v4`, `answer_form_v3`: the same as their predecessors, and call those.
"""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

FUNCTIONS = (
    *("decide_approval_v5.sql", "decide_and_tell_v4.sql"),
    *("decide_form_v2.sql", "answer_form_v3.sql"),
    "end_kin_v3.sql",  # last: it locks the runs for its trigger
)
TRIGGER_BEFORE = """
CREATE CONSTRAINT TRIGGER runs_end_kin AFTER UPDATE OF status ON smithers.runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((NEW.parent_run_id IS NOT NULL OR NEW.is_parent) AND NEW.status <> OLD.status)
    EXECUTE FUNCTION smithers.end_kin_v2()"""


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in FUNCTIONS:
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.run_async(lambda driver, sql=sql: driver.execute(sql))


def downgrade() -> None:
    op.execute("DROP TRIGGER runs_end_kin ON smithers.runs")
    op.execute(TRIGGER_BEFORE)
    for name in FUNCTIONS:
        op.execute(f"DROP ROUTINE smithers.{Path(name).stem}")
