-- Give up a worker for dead and hand its runs back. Whoever notices calls it; only one of them does it.
-- The worker's row is locked for update first: a claim holds it FOR KEY SHARE, so no claim of a dead worker comes after.
-- The new epoch of each run shuts out a worker that was only slow. Answers the queues that have something to claim.
CREATE FUNCTION smithers.bury_worker_v1(p_worker_id uuid, p_death text) RETURNS TABLE (queue text, run_count bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_heartbeat timestamptz;
    v_now timestamptz;
BEGIN
    SELECT w.heartbeat_at INTO v_heartbeat FROM smithers.workers w
        WHERE w.worker_id = p_worker_id AND w.dead_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    v_now := smithers.clock();
    UPDATE smithers.workers SET dead_at = v_now, death = p_death WHERE worker_id = p_worker_id;
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT r.run_id, EXISTS (SELECT 1 FROM smithers.nodes n WHERE n.run_id = r.run_id AND n.state = 'in-progress') AS was_in_flight
        FROM smithers.runs r WHERE r.owner_id = p_worker_id ORDER BY r.run_id FOR NO KEY UPDATE OF r),
    freed AS (
        UPDATE smithers.runs r SET owner_id = NULL, epoch = r.epoch + 1, due_at = v_now, lost_heartbeat_at = v_heartbeat,
            crash_count = CASE WHEN held.was_in_flight THEN r.crash_count + 1 ELSE r.crash_count END
        FROM held WHERE r.run_id = held.run_id RETURNING r.queue)
    SELECT f.queue, count(*) FROM freed f GROUP BY f.queue;
END
$$;
