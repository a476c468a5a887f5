"""One round trip for a decision or a signal and its notifications; no commit waits for a child, or fails for a hint.

And an index by which retention finds old outputs.
"""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    functions = Path(__file__).parents[1].joinpath("functions")
    for name in ("commit_group_v3.sql", "commit_turns_v2.sql", "outside_v3.sql"):
        sql = functions.joinpath(name).read_text(encoding="utf-8")
        op.get_bind().connection.dbapi_connection.run_async(
            lambda driver, sql=sql: driver.execute(sql)
        )
    op.create_index(
        "cached_outputs_created_at_idx", "cached_outputs", ["created_at"], schema="smithers"
    )


def downgrade() -> None:
    op.drop_index("cached_outputs_created_at_idx", "cached_outputs", schema="smithers")
    for call in (
        "decide_and_tell_v1",
        "signal_and_tell_v1",
        "commit_turns_v2",
        "start_and_tell_v2",
    ):
        op.execute(f"DROP PROCEDURE smithers.{call}")
    for function in (
        "commit_group_v3",
        "hold_children_v1",
        "decide_approval_v3",
        "tell_v1",
        "notify_v1",
    ):
        op.execute(f"DROP FUNCTION smithers.{function}")
    for kind in ("decision_v1", "signal_v1", "decided_v1", "signalled_v1"):
        op.execute(f"DROP TYPE smithers.{kind}")
