-- As commit_turns_v3, which says when it is answered, over commit_group_v4.
CREATE PROCEDURE smithers.commit_turns_v4(
    p_worker_id uuid,
    p_runs smithers.run_change_v2[], p_events smithers.event_change_v1[], p_nodes smithers.node_change_v1[],
    p_attempts smithers.attempt_change_v1[], p_frames smithers.frame_change_v1[], p_loops smithers.loop_change_v1[],
    p_approvals smithers.approval_change_v1[], p_signals smithers.signal_change_v1[],
    p_tries smithers.try_change_v1[], p_tool_calls smithers.tool_call_change_v2[], p_children smithers.child_change_v1[],
    p_cached smithers.cached_output_change_v1[], p_channels text[], p_payloads text[],
    INOUT outcomes text[], INOUT last_seqs bigint[], INOUT now_ms bigint)  -- of each run, in the order of p_runs
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT c.outcomes, c.last_seqs, c.now_ms INTO outcomes, last_seqs, now_ms
    FROM smithers.commit_group_v4(p_worker_id, p_runs, p_events, p_nodes, p_attempts, p_frames, p_loops, p_approvals,
        p_signals, p_tries, p_tool_calls, p_children, p_cached) AS c;
    COMMIT;
    PERFORM smithers.require_replicated_v1();
    IF 'committed' = ANY (outcomes) THEN
        PERFORM smithers.notify_v1(p_channels, p_payloads);
    END IF;
END
$$;
