-- Commit a group, and tell others that it was, in one round trip: as commit_group_v2, and then, in a transaction of its
-- own, the notifications. A transaction that notifies takes a lock for the whole cluster, and keeps it over its flush: so
-- this one does not wait for the flush, and the one that matters does not notify. What fails after the first COMMIT is
-- answered as an error; the same group again is answered as committed (see commit_no).
CREATE PROCEDURE smithers.commit_turns_v1(
    p_worker_id uuid,
    p_runs smithers.run_change_v2[], p_events smithers.event_change_v1[], p_nodes smithers.node_change_v1[],
    p_attempts smithers.attempt_change_v1[], p_frames smithers.frame_change_v1[], p_loops smithers.loop_change_v1[],
    p_approvals smithers.approval_change_v1[], p_signals smithers.signal_change_v1[],
    p_tries smithers.try_change_v1[], p_tool_calls smithers.tool_call_change_v1[], p_children smithers.child_change_v1[],
    p_cached smithers.cached_output_change_v1[], p_channels text[], p_payloads text[],
    INOUT outcomes text[], INOUT last_seqs bigint[], INOUT now_ms bigint)  -- of each run, in the order of p_runs
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT array_agg(c.outcome ORDER BY c.run_no), array_agg(c.last_seq ORDER BY c.run_no), min(c.now_ms)
    INTO outcomes, last_seqs, now_ms
    FROM smithers.commit_group_v2(p_worker_id, p_runs, p_events, p_nodes, p_attempts, p_frames, p_loops, p_approvals,
        p_signals, p_tries, p_tool_calls, p_children, p_cached) AS c;
    COMMIT;
    IF 'committed' = ANY (outcomes) THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM pg_notify(h.channel, h.payload) FROM unnest(p_channels, p_payloads) AS h (channel, payload);
    END IF;
END
$$;
