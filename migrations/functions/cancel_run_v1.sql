-- Cancel a run, for cancel_run_v2. The run's row is locked first, and what is looked at is read under the lock. Answers:
-- cancelled (nobody held it: done here and now), requested (its owner must end it, and nothing else is it allowed to commit
-- as an end), not-found, not-active.
CREATE FUNCTION smithers.cancel_run_v1(p_run_id text, OUT outcome text, OUT is_owned boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_node record;
    v_now timestamptz;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'not-found'; RETURN; END IF;
    is_owned := v_run.owner_id IS NOT NULL;
    IF v_run.status IN ('finished', 'failed', 'cancelled', 'continued') THEN outcome := 'not-active'; RETURN; END IF;
    v_now := smithers.clock();
    IF is_owned THEN
        UPDATE smithers.runs SET cancel_requested_at = coalesce(cancel_requested_at, v_now) WHERE run_id = p_run_id;
        outcome := 'requested';
        RETURN;
    END IF;
    -- The new epoch shuts out an owner that was given up for dead and is not.
    UPDATE smithers.runs SET epoch = epoch + 1, cancel_requested_at = coalesce(cancel_requested_at, v_now),
        lost_heartbeat_at = NULL
    WHERE run_id = p_run_id;
    FOR v_node IN
        UPDATE smithers.nodes SET state = 'cancelled', finished_at = v_now, due_at = NULL
        WHERE run_id = p_run_id AND state IN ('in-progress', 'waiting-approval', 'waiting-event', 'waiting-timer')
        RETURNING node_id, iteration
    LOOP
        PERFORM smithers.add_event_v1(p_run_id, 'NodeCancelled', v_now, ',"nodeId":' || to_json(v_node.node_id)::text
            || ',"iteration":' || v_node.iteration::text || ',"reason":"run-cancelled"');
    END LOOP;
    UPDATE smithers.approvals SET status = 'cancelled', decided_at = v_now WHERE run_id = p_run_id AND status = 'requested';
    PERFORM smithers.add_event_v1(p_run_id, 'RunCancelled', v_now, '');
    UPDATE smithers.runs SET status = 'cancelled', finished_at = v_now, due_at = NULL WHERE run_id = p_run_id;
    outcome := 'cancelled';
END
$$;
