"""A resume keeps what it does not name; a cancelled attempt is named; no notification makes a commit look like a failure.

- `resume_run_v3`: another source for a run that is queued, or between two owners, too; fields of the configuration that are
  not given stay.
- `cancel_run_v3`: `NodeCancelled` has the attempt.
- `start_and_tell_v5`, `signal_and_tell_v4`: what waits for a lock after the commit waits as long as the call may take.
"""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

FUNCTIONS = (
    *("resume_run_v3.sql", "cancel_run_v3.sql"),
    *("start_and_tell_v5.sql", "signal_and_tell_v4.sql"),
)


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in FUNCTIONS:
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.run_async(lambda driver, sql=sql: driver.execute(sql))


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP ROUTINE smithers.{Path(name).stem}")
