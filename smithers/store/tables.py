"""The schema as SQLAlchemy metadata: read by Alembic and by its drift test, never by a query.

Rules that shape it: `run_id` leads every key, so that the tables can be distributed by it. There are no foreign keys
on the tables that commits write: every writer holds the run's row, and a check per row would cost more than the row.
What every commit updates (`runs`) is narrow, and what is written once and may be wide (`run_requests`) lies apart, so
that those updates stay on their page (HOT).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

SCHEMA = "smithers"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    },
)


def _moment(name: str, *, nullable: bool = True, default_now: bool = False) -> Column[object]:
    default = text("smithers.clock()") if default_now else None
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default)


# Updated by every commit: free space on each page, and vacuum before dead rows accumulate.
HOT = {
    "fillfactor": 70,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_threshold": 1000,
}

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("status", Text, nullable=False),
    Column("queue", Text, nullable=False, server_default="default"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    _moment("due_at"),  # when somebody ought to claim it; null: nobody, until a decision sets it
    Column("owner_id", UUID),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("era", Integer, nullable=False, server_default="0"),
    Column("commit_no", BigInteger, nullable=False, server_default="0"),  # of this epoch's owner
    Column("last_seq", BigInteger, nullable=False),
    Column("last_frame_no", Integer, nullable=False, server_default="0"),
    Column(
        "crash_count", SmallInteger, nullable=False, server_default="0"
    ),  # in a row, while in flight
    Column("is_solo", Boolean, nullable=False, server_default="false"),  # needs a child of its own
    _moment("lost_heartbeat_at"),  # the dead owner's last sign of life, until somebody goes on
    _moment("cancel_requested_at"),
    _moment("created_at", nullable=False),
    _moment("started_at"),
    _moment("finished_at"),
    Column("error", Text),
    Column("output_node_id", Text(collation="C")),
    Column("output_iteration", Integer),
    # Null where there is none of it: no room in the row.
    Column("parent_run_id", Text(collation="C")),  # who waits for its end
    Column("is_parent", Boolean),  # has started children
    Column("has_cleanup", Boolean),  # a cancel must leave its worker time to clean up
    # A run of a workflow's own database lives there; here is its mirror, which nobody claims and only its mirror writes.
    Column("database", Text(collation="C")),  # where it lives; null: here
    Column(
        "mirrored_seq", BigInteger
    ),  # the last event that is here; -1: the name is reserved, no more
    # Writing an event of a run that lives elsewhere, or making it claimable, is refused: a mirror is read-only.
    CheckConstraint(
        "mirrored_seq IS NULL OR (mirrored_seq = last_seq AND due_at IS NULL)",
        name="runs_mirror_check",
    ),
    postgresql_with=HOT,
)
Index(  # starts that did not get as far as the run's own database, or are on their way there
    "runs_reserved_idx", runs.c.database, postgresql_where=text("mirrored_seq = '-1'::integer")
)
Index(
    "runs_claimable_idx",
    runs.c.queue,
    runs.c.priority.desc(),
    runs.c.due_at,
    postgresql_where=text(
        "owner_id IS NULL AND due_at IS NOT NULL AND NOT is_solo AND crash_count = 0"
    ),
)
Index(  # what wants a child of its own: isolated workflows, and runs under suspicion
    "runs_solo_idx",
    runs.c.queue,
    runs.c.priority.desc(),
    runs.c.due_at,
    postgresql_where=text(
        "owner_id IS NULL AND due_at IS NOT NULL AND (is_solo OR crash_count > 0)"
    ),
)
Index(
    "runs_suspect_idx",
    runs.c.queue,
    runs.c.priority.desc(),
    runs.c.due_at,
    postgresql_where=text(
        "owner_id IS NULL AND due_at IS NOT NULL AND NOT is_solo AND crash_count > 0"
    ),
)
# For lists. The status changes with the owner, when every index gets an entry anyway: a plain commit stays HOT.
Index("runs_status_created_at_run_id_idx", runs.c.status, runs.c.created_at, runs.c.run_id)
Index("runs_owner_id_idx", runs.c.owner_id, postgresql_where=text("owner_id IS NOT NULL"))
Index(  # for retention: what has ended, oldest end first
    "runs_finished_at_idx", runs.c.finished_at, postgresql_where=text("finished_at IS NOT NULL")
)

run_requests = Table(
    "run_requests",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("workflow_name", Text, nullable=False),
    Column("workflow_path", Text, nullable=False),
    Column("workflow_export", Text),  # the name after the colon of path.py:name
    Column("source_hash", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("auth", Text),
    Column("trace_context", Text),
    Column("parent_run_id", Text(collation="C")),  # whose child it is, or whom it goes on for
    _moment("created_at", nullable=False),
    Column("carried", Text),  # the state that it goes on with, as JSON
)
Index("run_requests_created_at_run_id_idx", run_requests.c.created_at, run_requests.c.run_id)
Index("run_requests_source_hash_idx", run_requests.c.source_hash)  # for retention: is it in use?
Index(
    "run_requests_workflow_name_created_at_run_id_idx",
    run_requests.c.workflow_name,
    run_requests.c.created_at,
    run_requests.c.run_id,
)

nodes = Table(
    "nodes",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("node_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("label", Text),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column(
        "failures", Integer, nullable=False, server_default="0"
    ),  # in this era: what retries count
    _moment("created_at", nullable=False),
    _moment("started_at"),
    _moment("finished_at"),
    _moment("due_at"),  # a timer, a wait's time-out, a back-off's end
    Column("wait", Text),  # what it waits for, or why it was passed over, as JSON
    Column(
        "loop_id", Text(collation="C")
    ),  # the innermost loop, as written: whose iteration the key has
    Column("heartbeat", Text),  # the newest that its body reported, as JSON
    Column("output", Text),
    Column("error", Text),
    postgresql_with=HOT,
)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("node_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("worker_id", UUID),
    _moment("started_at"),
    _moment("finished_at", nullable=False),
    Column("error", Text),
)

events = Table(
    "events",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # whose writing it was: never falls along seq
    Column("payload", Text, nullable=False),  # the very bytes that streams send
)

frames = Table(
    "frames",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("frame_no", Integer, primary_key=True),
    _moment("created_at", nullable=False),
    Column("xml_hash", Text, nullable=False),
    Column("encoding", Text, nullable=False),  # keyframe: the whole tree; delta: what changed
    Column("body", Text, nullable=False),
)

loops = Table(
    "loops",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("loop_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, nullable=False),
    Column("is_done", Boolean, nullable=False),
)

approvals = Table(
    "approvals",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("node_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("request", Text, nullable=False),  # title, summary, who may decide, as JSON
    _moment("requested_at", nullable=False),
    _moment("decided_at"),
    Column("decided_by", Text),
    Column("note", Text),
    Column("decision", Text),
)
Index(
    "approvals_open_idx",
    approvals.c.requested_at,
    approvals.c.run_id,
    postgresql_where=text("status = 'requested'"),
)

signals = Table(
    "signals",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("signal_name", Text, nullable=False),
    Column("correlation_id", Text),
    Column("data", Text, nullable=False),
    Column("signal_id", Text),  # the sender's own: the same one again is the same signal
    Column("received_by", Text),
    _moment("received_at", nullable=False),
    Column("consumed_by", Text(collation="C")),  # the node id that took it
    Column("consumed_iteration", Integer),
    UniqueConstraint("run_id", "signal_id"),
)

tries = Table(
    "tries",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("try_id", Text(collation="C"), primary_key=True),  # of a Try or a Saga
    Column("phase", Text, nullable=False),
    Column("is_done", Boolean, nullable=False),
    Column("problem", Text),  # what went wrong in it, as JSON
)

children = Table(
    "children",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),  # the parent's
    Column("node_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, primary_key=True),
    Column("child_run_id", Text(collation="C"), nullable=False),
    Column("status", Text),  # how it ended; null: under way
    Column("output", Text),
    Column("error", Text),
    _moment("ended_at"),
    UniqueConstraint("run_id", "child_run_id"),
)

tool_calls = Table(
    "tool_calls",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    Column("node_id", Text(collation="C"), primary_key=True),
    Column("iteration", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("call_no", Integer, primary_key=True),  # counts an attempt's calls, from 1
    Column("kind", Text, nullable=False),  # tool or model
    Column("tool_name", Text, nullable=False),
    Column("state", Text, nullable=False),  # started, finished or failed
    Column("is_side_effect", Boolean, nullable=False),
    Column("is_idempotent", Boolean, nullable=False),
    Column("input", Text),
    Column("output", Text),
    Column("error", Text),
    _moment("started_at", nullable=False),
    _moment("finished_at"),
    Column("parent_call_no", Integer),  # within which it was made; 0: none; null: not recorded
    Column("beside_call_no", Integer),  # the parent's oldest that was under way when it began
)

cached_outputs = Table(
    "cached_outputs",
    metadata,
    Column(
        "cache_key", Text(collation="C"), primary_key=True
    ),  # scope, function, version, by: hashed
    Column("output", Text, nullable=False),
    Column("run_id", Text(collation="C"), nullable=False),  # who put it out
    Column("node_id", Text(collation="C"), nullable=False),
    _moment("created_at", nullable=False),
    _moment("expires_at"),
)
Index(
    "cached_outputs_expires_at_idx",
    cached_outputs.c.expires_at,
    postgresql_where=text("expires_at IS NOT NULL"),
)
Index("cached_outputs_created_at_idx", cached_outputs.c.created_at)  # for retention: oldest first

workers = Table(
    "workers",
    metadata,
    Column("worker_id", UUID, primary_key=True),
    Column("pool_id", UUID, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("pid_namespace", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_start", Text, nullable=False),  # the kernel's own, so that a reused pid differs
    Column("queues", ARRAY(Text), nullable=False),
    _moment("started_at", nullable=False),
    _moment("heartbeat_at", nullable=False),
    _moment("dead_at"),
    Column("death", Text),  # how it was noticed
)
Index("workers_alive_idx", workers.c.heartbeat_at, postgresql_where=text("dead_at IS NULL"))

workflow_sources = Table(
    "workflow_sources",
    metadata,
    Column("source_hash", Text(collation="C"), primary_key=True),
    Column("bundle", Text, nullable=False),
    _moment("created_at", nullable=False, default_now=True),
)

workflow_descriptions = Table(
    "workflow_descriptions",
    metadata,
    Column("source_hash", Text(collation="C"), primary_key=True),
    Column("workflow_export", Text, primary_key=True),  # '': the file's only workflow
    Column("description", Text),  # null: asked for, not made yet
    _moment("created_at", nullable=False, default_now=True),
)
Index(
    "workflow_descriptions_wanted_idx",
    workflow_descriptions.c.created_at,
    postgresql_where=text("description IS NULL"),
)

stream_keys = Table(  # one row: the key that stream tokens are signed with
    "stream_keys",
    metadata,
    Column("key_no", SmallInteger, primary_key=True, autoincrement=False),
    Column("secret", LargeBinary, nullable=False),
    _moment("created_at", nullable=False, default_now=True),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("idempotency_key", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("run_id", Text(collation="C"), nullable=False),
    _moment("created_at", nullable=False, default_now=True),
)

Index("idempotency_keys_run_id_idx", idempotency_keys.c.run_id)  # they go with their run

tombstones = Table(  # what remains of a run that retention removed: its id is not given again
    "tombstones",
    metadata,
    Column("run_id", Text(collation="C"), primary_key=True),
    _moment("pruned_at", nullable=False),
)

own_databases = Table(  # the names of workflows' own databases that runs were started in
    "own_databases",
    metadata,
    Column("name", Text(collation="C"), primary_key=True),
    _moment("created_at", nullable=False, default_now=True),
)
