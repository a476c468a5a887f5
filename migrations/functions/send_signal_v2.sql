-- Record a signal; the caller's transaction is the signal's. The run's row is locked first, what is looked at is read under
-- the lock, and the run is made due in the same transaction.
-- Answers: received, repeated (its id came before: the first record), not-found, not-active (the run has ended, or is being
-- cancelled and nothing of its clean-up waits for a signal).
CREATE FUNCTION smithers.send_signal_v2(
    p_run_id text, p_signal_name text, p_correlation_id text, p_data text, p_received_by text, p_signal_id text,
    OUT outcome text, OUT queue text, OUT is_owned boolean, OUT seq bigint, OUT signal_name text, OUT correlation_id text,
    OUT received_ms bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_first smithers.signals%ROWTYPE;
    v_now timestamptz;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'not-found'; RETURN; END IF;
    IF p_signal_id IS NOT NULL THEN
        SELECT * INTO v_first FROM smithers.signals s WHERE s.run_id = p_run_id AND s.signal_id = p_signal_id;
        IF FOUND THEN
            outcome := 'repeated'; seq := v_first.seq; signal_name := v_first.signal_name;
            correlation_id := v_first.correlation_id; received_ms := smithers.to_ms(v_first.received_at);
            RETURN;
        END IF;
    END IF;
    IF v_run.status IN ('finished', 'failed', 'cancelled', 'continued') OR (v_run.cancel_requested_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM smithers.nodes w WHERE w.run_id = p_run_id AND w.state = 'waiting-event'
            AND w.started_at > v_run.cancel_requested_at))
    THEN outcome := 'not-active'; RETURN; END IF;

    v_now := smithers.clock();
    SELECT coalesce(max(s.seq) + 1, 0) INTO seq FROM smithers.signals s WHERE s.run_id = p_run_id;
    INSERT INTO smithers.signals (run_id, seq, signal_name, correlation_id, data, signal_id, received_by, received_at)
    VALUES (p_run_id, seq, p_signal_name, p_correlation_id, p_data, p_signal_id, p_received_by, v_now);
    PERFORM smithers.add_event_v1(p_run_id, 'SignalReceived', v_now,
        ',"signalName":' || to_json(p_signal_name)::text || ',"seq":' || seq::text
        || ',"correlationId":' || coalesce(to_json(p_correlation_id)::text, 'null'));
    -- Nobody waits for it yet: it is kept, and nobody is woken for nothing.
    UPDATE smithers.runs r SET due_at = v_now WHERE r.run_id = p_run_id AND owner_id IS NULL AND EXISTS (
        SELECT 1 FROM smithers.nodes n WHERE n.run_id = p_run_id AND n.state = 'waiting-event');
    outcome := 'received'; queue := v_run.queue; is_owned := v_run.owner_id IS NOT NULL;
    signal_name := p_signal_name; correlation_id := p_correlation_id; received_ms := smithers.to_ms(v_now);
END
$$;
