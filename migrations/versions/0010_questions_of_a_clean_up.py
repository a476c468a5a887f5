"""What a cancelled run asks while it cleans up can be answered; a resume may name another workflow of the same source.

Each function is one that is there, but for what it refuses: processes of the release before call those.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

IS_CANCELLED = "v_run.cancel_requested_at IS NOT NULL"
# What was asked before the cancel is withdrawn, or about to be.
IS_OUTDATED = "v_approval.requested_at <= v_run.cancel_requested_at"
HEARS_NOTHING = """(v_run.cancel_requested_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM smithers.nodes w WHERE w.run_id = p_run_id AND w.state = 'waiting-event'
            AND w.started_at > v_run.cancel_requested_at))"""
IS_OTHER_SOURCE = "p_source_hash <> v_request.source_hash"
IS_OTHER_WORKFLOW = """(p_source_hash <> v_request.source_hash
        OR (v_run.status IN ('failed', 'cancelled') AND p_workflow_export IS NOT NULL
            AND p_workflow_export IS DISTINCT FROM v_request.workflow_export))"""

# What is made, of what, and what it says instead of what.
MADE = (
    ("decide_approval_v4", "decide_approval_v3", IS_CANCELLED, IS_OUTDATED),
    ("decide_and_tell_v3", "decide_and_tell_v2", "decide_approval_v3", "decide_approval_v4"),
    ("decide_form_v1", "decide_approval_v1", IS_CANCELLED, IS_OUTDATED),
    ("answer_form_v2", "answer_form_v1", "decide_approval_v1", "decide_form_v1"),
    ("send_signal_v2", "send_signal_v1", IS_CANCELLED, HEARS_NOTHING),
    ("signal_and_tell_v3", "signal_and_tell_v2", "send_signal_v1", "send_signal_v2"),
    ("resume_run_v2", "resume_run_v1", IS_OTHER_SOURCE, IS_OTHER_WORKFLOW),
)


def upgrade() -> None:
    connection = op.get_bind()
    find = sa.text("SELECT pg_get_functiondef(CAST(:name AS regproc))")
    for name, known, said, says in MADE:
        text = connection.scalar(find, {"name": f"smithers.{known}"})
        if text.count(said) != 1:
            raise ValueError(f"smithers.{known} is not the function that this migration knows")
        made = text.replace(f" smithers.{known}(", f" smithers.{name}(", 1).replace(said, says)
        connection.exec_driver_sql(made)


def downgrade() -> None:
    for name, *_ in reversed(MADE):
        op.execute(f"DROP ROUTINE smithers.{name}")
