-- Distribute the tables by run_id on Citus, after `smithers db upgrade`, on its coordinator. docs/scaling.md says what this
-- gives, and what it does not. All of a run lies on one node: its rows are found, locked and joined there.

SET citus.enable_unsafe_triggers = on;

-- Citus has no triggers for each statement: the same for each row.
DROP TRIGGER runs_refuse_tombstones ON smithers.runs;
CREATE FUNCTION smithers.refuse_tombstone_of_row() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF coalesce(NEW.mirrored_seq, -1) = -1 AND EXISTS (SELECT FROM smithers.tombstones AS t WHERE t.run_id = NEW.run_id) THEN
        RAISE unique_violation USING CONSTRAINT = 'tombstones_pkey', MESSAGE = 'retention has removed a run of this id';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER runs_refuse_tombstones AFTER INSERT ON smithers.runs
    FOR EACH ROW EXECUTE FUNCTION smithers.refuse_tombstone_of_row();

SELECT create_distributed_table('smithers.runs', 'run_id', shard_count => 32);
SELECT create_distributed_table('smithers.run_requests', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.nodes', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.attempts', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.events', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.frames', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.loops', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.approvals', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.signals', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.tries', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.children', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.tool_calls', 'run_id', colocate_with => 'smithers.runs');
SELECT create_distributed_table('smithers.tombstones', 'run_id', colocate_with => 'smithers.runs');

-- What is of no run, or is looked for by something else: small, read everywhere, a copy on each node.
SELECT create_reference_table('smithers.workers');
SELECT create_reference_table('smithers.workflow_sources');
SELECT create_reference_table('smithers.workflow_descriptions');
SELECT create_reference_table('smithers.idempotency_keys');
SELECT create_reference_table('smithers.cached_outputs');
SELECT create_reference_table('smithers.own_databases');
SELECT create_reference_table('smithers.stream_keys');
