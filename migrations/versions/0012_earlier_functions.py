"""Drop earlier versions of functions, which databases that were made before the baseline (0011_schema.py) have.

Neither this version nor the one before it calls any of them.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ROUTINES = (
    *("commit_turns_v1", "commit_turns_v2", "commit_turns_v3", "commit_turns_v4"),
    *("commit_group_v1", "commit_group_v2", "commit_group_v3", "commit_group_v4"),
    *("start_and_tell_v1", "start_and_tell_v2", "start_and_tell_v3"),
    *("decide_and_tell_v1", "decide_and_tell_v2", "signal_and_tell_v1", "signal_and_tell_v2"),
    *("decide_approval_v1", "decide_approval_v2", "decide_approval_v3", "answer_form_v1"),
    *("send_signal_v1", "bury_worker_v1", "end_kin_v1"),
)
TYPES = ("run_change_v1", "tool_call_change_v1")  # what only they take


def upgrade() -> None:
    for name in ROUTINES:
        op.execute(f"DROP ROUTINE IF EXISTS smithers.{name}")
    for name in TYPES:
        op.execute(f"DROP TYPE IF EXISTS smithers.{name}")


def downgrade() -> None:
    """Bring nothing back: 0011 as its own migration makes it has none of them, and nothing at 0011 calls them."""
