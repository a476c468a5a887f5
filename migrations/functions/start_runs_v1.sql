CREATE TYPE smithers.run_start_v1 AS (
    run_id text, workflow_name text, workflow_path text, workflow_export text, source_hash text,
    input text, config text, auth text, trace_context text, parent_run_id text, queue text, priority smallint,
    head text, tail text,  -- event 0, around its time
    is_solo boolean);

-- Start many runs in the caller's transaction: the row, what was asked, event 0 and the wake-up (due now) of each, or
-- nothing of it. Uniqueness is the constraint's: who is not among the returned came second.
CREATE FUNCTION smithers.start_runs_v1(p_starts smithers.run_start_v1[])
RETURNS TABLE (run_id text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := smithers.clock();
    v_now_ms bigint := smithers.to_ms(v_now);
    v_new text[];
BEGIN
    WITH new AS (
        INSERT INTO smithers.runs (run_id, status, queue, priority, due_at, last_seq, created_at, is_solo)
        SELECT s.run_id, 'queued', s.queue, s.priority, v_now, 0, v_now, s.is_solo FROM unnest(p_starts) AS s
        ORDER BY s.run_id  -- one order for all: two gateways with the same ids never deadlock
        ON CONFLICT DO NOTHING
        RETURNING run_id)
    SELECT coalesce(array_agg(run_id), '{}') INTO v_new FROM new;

    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at)
    SELECT s.run_id, s.workflow_name, s.workflow_path, s.workflow_export, s.source_hash, s.input, s.config, s.auth,
           s.trace_context, s.parent_run_id, v_now
    FROM unnest(p_starts) AS s WHERE s.run_id = ANY (v_new);

    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT s.run_id, 0, 0, s.head || v_now_ms::text || s.tail
    FROM unnest(p_starts) AS s WHERE s.run_id = ANY (v_new);

    RETURN QUERY SELECT unnest(v_new);
END
$$;
