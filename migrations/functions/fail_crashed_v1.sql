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
