-- Raise where what a procedure has just committed may be on no synchronous standby. The timer of a statement is stopped
-- before the commit of a plain one, but runs on through a COMMIT in a procedure: where it goes off while that waits for a
-- standby, Postgres warns, gives the wait up, and the procedure would answer success. As a connection's failure (08006):
-- whether the commit stands is not known. A little before the timer: it has begun before the statement's timestamp was
-- taken. The same call again writes, or locks, a row, and with that waits for the standby, too.
CREATE FUNCTION smithers.require_replicated_v1() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF clock_timestamp() - statement_timestamp()
        >= 0.9 * nullif(current_setting('statement_timeout'), '0')::interval
    THEN
        RAISE EXCEPTION 'the commit took too long: it may be on no synchronous standby' USING ERRCODE = '08006';
    END IF;
END
$$;

-- As commit_turns_v2, and success is answered only for what the standbys have.
CREATE PROCEDURE smithers.commit_turns_v3(
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
    PERFORM smithers.require_replicated_v1();
    IF 'committed' = ANY (outcomes) THEN
        PERFORM smithers.notify_v1(p_channels, p_payloads);
    END IF;
END
$$;

-- As start_and_tell_v2, and success is answered only for what the standbys have. Where a start of the same id is under way
-- elsewhere, this one waits for its outcome a short time only (55P03): others share the call.
CREATE PROCEDURE smithers.start_and_tell_v3(
    p_starts smithers.run_start_v1[], p_channels text[], p_payloads text[], INOUT new_ids text[])
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);  -- until the COMMIT
    SELECT array_agg(s.run_id) INTO new_ids FROM smithers.start_runs_v1(p_starts) AS s;
    IF coalesce(cardinality(new_ids), 0) < cardinality(p_starts) THEN  -- who came second waits for the first's standby
        PERFORM FROM smithers.runs r WHERE r.run_id IN (SELECT s.run_id FROM unnest(p_starts) AS s) FOR KEY SHARE;
    END IF;
    COMMIT;
    PERFORM smithers.require_replicated_v1();
    IF new_ids IS NOT NULL THEN
        PERFORM smithers.notify_v1(p_channels, p_payloads);
    END IF;
END
$$;
