-- What comes from outside and changes a run: decisions, signals, cancels, resumes. Each takes the run's row first, reads
-- under the lock, writes, and wakes the run in the same transaction. Answers are words; the caller makes errors of them.

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

-- Decide an approval. Answers: decided, repeated (the same decision again), not-found (run or node), not-waiting, forbidden.
-- p_users and p_scopes: who decides, as the credential says; null: not restricted (the server has no tokens).
CREATE FUNCTION smithers.decide_approval_v1(
    p_run_id text, p_node_id text, p_iteration integer, p_is_approved boolean,
    p_note text, p_decided_by text, p_decision text, p_user text, p_scopes text[],
    OUT outcome text, OUT queue text, OUT is_owned boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_approval smithers.approvals%ROWTYPE;
    v_request jsonb;
    v_wanted text := CASE WHEN p_is_approved THEN 'approved' ELSE 'denied' END;
    v_now timestamptz;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'not-found'; RETURN; END IF;
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_run_id AND a.node_id = p_node_id AND a.iteration = p_iteration;
    IF NOT FOUND THEN
        outcome := CASE WHEN EXISTS (SELECT 1 FROM smithers.nodes n WHERE n.run_id = p_run_id AND n.node_id = p_node_id)
            THEN 'not-waiting' ELSE 'not-found' END;
        RETURN;
    END IF;
    v_request := v_approval.request::jsonb;
    IF p_scopes IS NOT NULL AND (
        (jsonb_typeof(v_request -> 'allowedUsers') = 'array' AND NOT (v_request -> 'allowedUsers') ? coalesce(p_user, ''))
        OR (jsonb_typeof(v_request -> 'allowedScopes') = 'array' AND NOT '*' = ANY (p_scopes)
            AND NOT (v_request -> 'allowedScopes') ?| p_scopes))
    THEN outcome := 'forbidden'; RETURN; END IF;
    IF v_approval.status = v_wanted THEN outcome := 'repeated'; RETURN; END IF;
    IF v_approval.status <> 'requested' OR v_run.cancel_requested_at IS NOT NULL
    THEN outcome := 'not-waiting'; RETURN; END IF;

    v_now := smithers.clock();
    UPDATE smithers.approvals SET status = v_wanted, decided_at = v_now, decided_by = p_decided_by, note = p_note,
        decision = p_decision
    WHERE run_id = p_run_id AND node_id = p_node_id AND iteration = p_iteration;
    PERFORM smithers.add_event_v1(p_run_id, CASE WHEN p_is_approved THEN 'ApprovalGranted' ELSE 'ApprovalDenied' END, v_now,
        ',"nodeId":' || to_json(p_node_id)::text || ',"iteration":' || p_iteration::text
        || coalesce(',"decidedBy":' || to_json(p_decided_by)::text, '') || coalesce(',"note":' || to_json(p_note)::text, ''));
    UPDATE smithers.runs SET due_at = v_now WHERE run_id = p_run_id AND owner_id IS NULL;
    outcome := 'decided'; queue := v_run.queue; is_owned := v_run.owner_id IS NOT NULL;
END
$$;

-- Record a signal. Answers: received, repeated (its id came before: the first record), not-found, not-active.
CREATE FUNCTION smithers.send_signal_v1(
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
    IF v_run.status IN ('finished', 'failed', 'cancelled', 'continued') OR v_run.cancel_requested_at IS NOT NULL
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

-- Cancel a run. Answers: cancelled (nobody held it: done here and now), requested (its owner must end it, and nothing else
-- is it allowed to commit as an end), not-found, not-active.
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

-- Resume a run. Answers: resumed (a new era of a failed or cancelled run, or another source for a parked one), active (it
-- goes on by itself, or is on its way), finished (nothing to do), not-found, not-active (continued as another run).
-- p_source_hash and what stands beside it: null keeps the source; so does p_config.
CREATE FUNCTION smithers.resume_run_v1(
    p_run_id text, p_source_hash text, p_workflow_path text, p_workflow_export text, p_config text, p_changed_files text,
    OUT outcome text, OUT queue text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_request smithers.run_requests%ROWTYPE;
    v_is_new_source boolean;
    v_now timestamptz;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'not-found'; RETURN; END IF;
    queue := v_run.queue;
    IF v_run.status = 'continued' THEN outcome := 'not-active'; RETURN; END IF;
    IF v_run.status = 'finished' THEN outcome := 'finished'; RETURN; END IF;
    IF v_run.owner_id IS NOT NULL OR v_run.status IN ('queued', 'running') THEN outcome := 'active'; RETURN; END IF;

    SELECT * INTO v_request FROM smithers.run_requests q WHERE q.run_id = p_run_id;
    v_is_new_source := p_source_hash IS NOT NULL AND p_source_hash <> v_request.source_hash;
    IF v_run.status NOT IN ('failed', 'cancelled') AND NOT v_is_new_source THEN outcome := 'active'; RETURN; END IF;
    v_now := smithers.clock();
    IF v_is_new_source OR p_config IS NOT NULL THEN
        UPDATE smithers.run_requests SET
            source_hash = coalesce(p_source_hash, source_hash),
            workflow_path = CASE WHEN v_is_new_source THEN p_workflow_path ELSE workflow_path END,
            workflow_export = CASE WHEN v_is_new_source THEN p_workflow_export ELSE workflow_export END,
            config = coalesce(p_config, config)
        WHERE run_id = p_run_id;
    END IF;
    IF v_is_new_source THEN
        PERFORM smithers.add_event_v1(p_run_id, 'WorkflowReloaded', v_now, ',"changedFiles":' || coalesce(p_changed_files, '[]'));
    END IF;
    IF v_run.status IN ('failed', 'cancelled') THEN
        -- Failed and cancelled nodes get fresh attempts; what has finished stays a fact.
        UPDATE smithers.nodes SET state = 'pending', failures = 0, due_at = NULL, error = NULL, finished_at = NULL
        WHERE run_id = p_run_id AND state IN ('failed', 'cancelled');
        PERFORM smithers.add_event_v1(p_run_id, 'RunStatusChanged', v_now, ',"status":"queued"');
        UPDATE smithers.runs SET era = era + 1, status = 'queued', cancel_requested_at = NULL, error = NULL,
            finished_at = NULL, crash_count = 0
        WHERE run_id = p_run_id;
    END IF;
    UPDATE smithers.runs SET due_at = v_now WHERE run_id = p_run_id;
    outcome := 'resumed';
END
$$;
