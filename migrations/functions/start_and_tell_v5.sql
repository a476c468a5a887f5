-- Start many runs, as start_runs_v1 does, commit, and tell who claims from their queues: one round trip, and one body, which
-- is cheaper than calls.
--
-- Where a start of the same id is under way elsewhere, this one waits for its outcome a short time only (55P03): others
-- share the call. Success is answered only for what the synchronous standbys have (see require_replicated_v1), to who came
-- second, too: the lock on the first's row is what makes its own commit wait for them.
--
-- The notifications have a transaction of their own (see notify_v1). What fails after the COMMIT is answered as an error
-- although the runs are there.
CREATE PROCEDURE smithers.start_and_tell_v5(
    p_starts smithers.run_start_v1[], p_channels text[], p_payloads text[], INOUT new_ids text[])
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_word text := set_config('lock_timeout', '100ms', true);  -- until the COMMIT
    v_now timestamptz := smithers.clock();
    v_now_text text := smithers.to_ms(v_now)::text;
BEGIN
    WITH new AS (
        INSERT INTO smithers.runs (run_id, status, queue, priority, due_at, last_seq, created_at, is_solo)
        SELECT s.run_id, 'queued', s.queue, s.priority, v_now, 0, v_now, s.is_solo FROM unnest(p_starts) AS s
        ORDER BY s.run_id  -- one order for all: two gateways with the same ids never deadlock
        ON CONFLICT DO NOTHING
        RETURNING run_id)
    SELECT array_agg(run_id) INTO new_ids FROM new;

    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at)
    SELECT s.run_id, s.workflow_name, s.workflow_path, s.workflow_export, s.source_hash, s.input, s.config, s.auth,
           s.trace_context, s.parent_run_id, v_now
    FROM unnest(p_starts) AS s WHERE s.run_id = ANY (new_ids);

    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT s.run_id, 0, 0, s.head || v_now_text || s.tail
    FROM unnest(p_starts) AS s WHERE s.run_id = ANY (new_ids);

    IF coalesce(cardinality(new_ids), 0) < cardinality(p_starts) THEN  -- who came second waits for the first's standby
        PERFORM FROM smithers.runs r WHERE r.run_id IN (SELECT s.run_id FROM unnest(p_starts) AS s) FOR KEY SHARE;
    END IF;
    COMMIT;
    -- As require_replicated_v1, which says why.
    IF clock_timestamp() - statement_timestamp() >= 0.9 * nullif(current_setting('statement_timeout'), '0')::interval THEN
        RAISE EXCEPTION 'the commit took too long: it may be on no synchronous standby' USING ERRCODE = '08006';
    END IF;
    IF new_ids IS NOT NULL AND pg_notification_queue_usage() < 0.9 THEN
        v_word := set_config('synchronous_commit', 'off', true);
        v_word := set_config('lock_timeout', '0', true);  -- a failure would be taken for one of the start
        FOR i IN 1..cardinality(p_channels) LOOP
            v_word := pg_notify(p_channels[i], p_payloads[i])::text;  -- an expression, where PERFORM is a query
        END LOOP;
    END IF;
END
$$;
