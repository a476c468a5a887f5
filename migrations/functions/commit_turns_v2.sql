-- Notify, after a commit that stands: nothing is to fail for it. The queue of notifications belongs to the whole cluster,
-- and another application that listens and does not read fills it; asking how full it is also empties what can be emptied.
-- Without the flush: a transaction that notifies takes a lock for the whole cluster, and keeps it over its flush.
CREATE FUNCTION smithers.notify_v1(p_channels text[], p_payloads text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM pg_notify(h.channel, h.payload) FROM unnest(p_channels, p_payloads) AS h (channel, payload);
    END IF;
END
$$;

-- Commit a group, and tell others that it was, in one round trip: as commit_turns_v1, over commit_group_v3. The
-- notifications have a transaction of their own, so that the one that matters holds no lock for all, and this one waits for
-- no flush. What fails after the first COMMIT is answered as an error; the same group again is answered as committed.
CREATE PROCEDURE smithers.commit_turns_v2(
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
    SELECT c.outcomes, c.last_seqs, c.now_ms INTO outcomes, last_seqs, now_ms
    FROM smithers.commit_group_v3(p_worker_id, p_runs, p_events, p_nodes, p_attempts, p_frames, p_loops, p_approvals,
        p_signals, p_tries, p_tool_calls, p_children, p_cached) AS c;
    COMMIT;
    IF 'committed' = ANY (outcomes) THEN
        PERFORM smithers.notify_v1(p_channels, p_payloads);
    END IF;
END
$$;

-- Start many runs, as start_runs_v1, and tell who claims from their queues, in one round trip.
CREATE PROCEDURE smithers.start_and_tell_v2(
    p_starts smithers.run_start_v1[], p_channels text[], p_payloads text[], INOUT new_ids text[])
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT array_agg(s.run_id) INTO new_ids FROM smithers.start_runs_v1(p_starts) AS s;
    COMMIT;
    IF new_ids IS NOT NULL THEN
        PERFORM smithers.notify_v1(p_channels, p_payloads);
    END IF;
END
$$;
