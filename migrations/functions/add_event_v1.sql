-- Add one event to a run whose row the caller has locked.
CREATE FUNCTION smithers.add_event_v1(p_run_id text, p_type text, p_now timestamptz, p_fields text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_seq bigint;
    v_epoch bigint;
    v_name text;
BEGIN
    UPDATE smithers.runs SET last_seq = last_seq + 1 WHERE run_id = p_run_id RETURNING last_seq, epoch INTO v_seq, v_epoch;
    SELECT workflow_name INTO v_name FROM smithers.run_requests WHERE run_id = p_run_id;
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    VALUES (p_run_id, v_seq, v_epoch, smithers.event_v1(p_type, p_run_id, v_name, smithers.to_ms(p_now), p_fields));
END
$$;
