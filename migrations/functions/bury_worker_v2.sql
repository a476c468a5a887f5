-- Give up a worker for dead and hand its runs back. Whoever notices calls it; only one of them does it.
-- The worker's row is locked for update first: a claim holds it FOR KEY SHARE, so no claim of a dead worker comes after.
-- The new epoch of each run shuts out a worker that was only slow. A run that had something in flight, or had only just
-- been taken up, may be what killed the worker: it is under suspicion, and after the third time in a row it has failed.
-- Only where the worker's own parent saw it end ('exit-…'): when a whole host goes, no run is to blame.
--
-- A run whose row another writer has right now holds up none of the others. While such a run is left, the worker has a cause
-- of death and no time of it: it still counts as alive for whoever looks for the dead, who finds the cause and calls this
-- again. What it claims meanwhile is found then.
--
-- is_buried: nothing is left to hand back. queues: of each run that has something to claim. failed_ids: runs that have now
-- taken three owners with them.
CREATE FUNCTION smithers.bury_worker_v2(
    p_worker_id uuid, p_death text, OUT is_buried boolean, OUT queues text[], OUT failed_ids text[])
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_heartbeat timestamptz;
    v_death text;  -- what was found first
    v_held text[];
    v_now timestamptz;
    v_run_id text;
BEGIN
    queues := '{}';
    failed_ids := '{}';
    SELECT w.heartbeat_at, coalesce(w.death, p_death) INTO v_heartbeat, v_death FROM smithers.workers w
        WHERE w.worker_id = p_worker_id AND w.dead_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN is_buried := true; RETURN; END IF;
    SELECT array_agg(h.run_id) INTO v_held FROM (
        SELECT r.run_id FROM smithers.runs r WHERE r.owner_id = p_worker_id
        ORDER BY r.run_id FOR NO KEY UPDATE SKIP LOCKED) AS h;
    v_now := smithers.clock();  -- under the locks: what is written with it comes after all that others wrote
    WITH held AS MATERIALIZED (
        SELECT r.run_id, v_death LIKE 'exit-%' AND (r.commit_no = 0 OR EXISTS (
                SELECT 1 FROM smithers.nodes n WHERE n.run_id = r.run_id AND n.state = 'in-progress')) AS is_suspect
        FROM smithers.runs r WHERE r.run_id = ANY (v_held)),
    freed AS (
        UPDATE smithers.runs r SET owner_id = NULL, epoch = r.epoch + 1, due_at = v_now, lost_heartbeat_at = v_heartbeat,
            crash_count = CASE WHEN held.is_suspect THEN r.crash_count + 1 ELSE r.crash_count END
        FROM held WHERE r.run_id = held.run_id
        -- A cancel that was asked for stands: who claims it does nothing but end it so.
        RETURNING r.run_id, r.queue, r.crash_count >= 3 AND r.cancel_requested_at IS NULL AS is_poison)
    SELECT coalesce(array_agg(f.queue) FILTER (WHERE NOT f.is_poison), '{}'),
        coalesce(array_agg(f.run_id ORDER BY f.run_id) FILTER (WHERE f.is_poison), '{}')
        INTO queues, failed_ids FROM freed f;

    FOREACH v_run_id IN ARRAY failed_ids LOOP
        PERFORM smithers.fail_crashed_v1(v_run_id, v_now);
    END LOOP;
    -- Under the worker's row: a claim, which holds it, comes before and is seen here, or after and finds dead_at.
    is_buried := NOT EXISTS (SELECT FROM smithers.runs r WHERE r.owner_id = p_worker_id);
    UPDATE smithers.workers w SET death = v_death, dead_at = CASE WHEN is_buried THEN v_now END
    WHERE w.worker_id = p_worker_id;
END
$$;
