-- Give up a worker for dead and hand its runs back. Whoever notices calls it; only one of them does it.
-- The worker's row is locked for update first: a claim holds it FOR KEY SHARE, so no claim of a dead worker comes after.
-- The new epoch of each run shuts out a worker that was only slow. A run that had something in flight, or had only just
-- been taken up, may be what killed the worker: it is under suspicion, and after the third time in a row it has failed.
-- Only where the worker's own parent saw it end ('exit-…'): when a whole host goes, no run is to blame.
-- Answers the queues that have something to claim.
CREATE FUNCTION smithers.bury_worker_v1(p_worker_id uuid, p_death text) RETURNS TABLE (queue text, run_count bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_heartbeat timestamptz;
    v_held text[];
    v_now timestamptz;
    v_queues text[];
    v_poison text[];
    v_run_id text;
BEGIN
    SELECT w.heartbeat_at INTO v_heartbeat FROM smithers.workers w
        WHERE w.worker_id = p_worker_id AND w.dead_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    SELECT array_agg(h.run_id) INTO v_held FROM (
        SELECT r.run_id FROM smithers.runs r WHERE r.owner_id = p_worker_id ORDER BY r.run_id FOR NO KEY UPDATE) AS h;
    v_now := smithers.clock();  -- under the locks: what is written with it comes after all that others wrote
    UPDATE smithers.workers SET dead_at = v_now, death = p_death WHERE worker_id = p_worker_id;
    WITH held AS MATERIALIZED (
        SELECT r.run_id, p_death LIKE 'exit-%' AND (r.commit_no = 0 OR EXISTS (
                SELECT 1 FROM smithers.nodes n WHERE n.run_id = r.run_id AND n.state = 'in-progress')) AS is_suspect
        FROM smithers.runs r WHERE r.run_id = ANY (v_held)),
    freed AS (
        UPDATE smithers.runs r SET owner_id = NULL, epoch = r.epoch + 1, due_at = v_now, lost_heartbeat_at = v_heartbeat,
            crash_count = CASE WHEN held.is_suspect THEN r.crash_count + 1 ELSE r.crash_count END
        FROM held WHERE r.run_id = held.run_id
        -- A cancel that was asked for stands: who claims it does nothing but end it so.
        RETURNING r.run_id, r.queue, r.crash_count >= 3 AND r.cancel_requested_at IS NULL AS is_poison)
    SELECT array_agg(f.queue) FILTER (WHERE NOT f.is_poison), array_agg(f.run_id ORDER BY f.run_id) FILTER (WHERE f.is_poison)
        INTO v_queues, v_poison FROM freed f;

    FOREACH v_run_id IN ARRAY coalesce(v_poison, '{}') LOOP
        PERFORM smithers.fail_crashed_v1(v_run_id, v_now);
    END LOOP;
    RETURN QUERY SELECT q.queue, count(*) FROM unnest(v_queues) AS q(queue) GROUP BY q.queue;
END
$$;

-- End a run that has taken three owners with it; the caller holds its row.
CREATE FUNCTION smithers.fail_crashed_v1(p_run_id text, p_now timestamptz) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_error text := '{"name":"WorkerCrashed","message":"three workers died while they ran this","code":"WORKER_CRASHED"}';
    v_node record;
BEGIN
    FOR v_node IN
        UPDATE smithers.nodes SET state = 'failed', finished_at = p_now, error = v_error
        WHERE run_id = p_run_id AND state = 'in-progress' RETURNING node_id, iteration, attempt
    LOOP
        PERFORM smithers.add_event_v1(p_run_id, 'NodeFailed', p_now, ',"nodeId":' || to_json(v_node.node_id)::text
            || ',"iteration":' || v_node.iteration::text || ',"attempt":' || v_node.attempt::text || ',"error":' || v_error);
    END LOOP;
    FOR v_node IN
        UPDATE smithers.nodes SET state = 'cancelled', finished_at = p_now, due_at = NULL
        WHERE run_id = p_run_id AND state IN ('waiting-approval', 'waiting-event', 'waiting-timer')
        RETURNING node_id, iteration
    LOOP
        PERFORM smithers.add_event_v1(p_run_id, 'NodeCancelled', p_now, ',"nodeId":' || to_json(v_node.node_id)::text
            || ',"iteration":' || v_node.iteration::text || ',"reason":"run-failed"');
    END LOOP;
    UPDATE smithers.approvals SET status = 'cancelled', decided_at = p_now WHERE run_id = p_run_id AND status = 'requested';
    PERFORM smithers.add_event_v1(p_run_id, 'RunFailed', p_now, ',"error":' || v_error);
    UPDATE smithers.runs SET status = 'failed', error = v_error, finished_at = p_now, due_at = NULL, crash_count = 0,
        lost_heartbeat_at = NULL
    WHERE run_id = p_run_id;
END
$$;
