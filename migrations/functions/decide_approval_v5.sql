-- Decide one approval; the caller's transaction is the decision's. The run's row is locked first, what is looked at is read
-- under the lock, and the run is made due in the same transaction.
-- Answers: decided, repeated (the same decision again), not-found (run or node), not-waiting, forbidden, misfit (the decision
-- is none of the options; `request` says what was asked). A form is answered, not decided: only its time can run out.
-- Of a run that is being cancelled, what was asked before the cancel is withdrawn, or about to be; what it asks while it
-- cleans up can be decided.
-- Of a run that has ended nothing is decided: one that failed before its rows could be read has its questions left, and a
-- resume opens them again.
CREATE FUNCTION smithers.decide_approval_v5(p_decision smithers.decision_v1) RETURNS smithers.decided_v1
LANGUAGE plpgsql
AS $$
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_approval smithers.approvals%ROWTYPE;
    v_request jsonb;
    v_wanted text := CASE WHEN p_decision.is_approved THEN 'approved' ELSE 'denied' END;
    v_now timestamptz;
    v_answer smithers.decided_v1;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_decision.run_id FOR NO KEY UPDATE;
    IF v_run.run_id IS NULL THEN v_answer.outcome := 'not-found'; RETURN v_answer; END IF;
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_decision.run_id AND a.node_id = p_decision.node_id AND a.iteration = p_decision.iteration;
    IF v_approval.run_id IS NULL THEN
        v_answer.outcome := CASE WHEN EXISTS (
            SELECT FROM smithers.nodes n WHERE n.run_id = p_decision.run_id AND n.node_id = p_decision.node_id)
            THEN 'not-waiting' ELSE 'not-found' END;
        RETURN v_answer;
    END IF;
    v_request := v_approval.request::jsonb;
    IF NOT smithers.is_allowed_v1(v_request, p_decision.user_name, p_decision.scopes) THEN
        v_answer.outcome := 'forbidden';
    ELSIF v_approval.status = 'requested' AND NOT p_decision.is_timeout AND v_request ->> 'mode' = 'form' THEN
        v_answer.outcome := 'not-waiting';
    ELSIF v_approval.status = 'requested' AND NOT p_decision.is_timeout AND p_decision.is_approved
        AND NOT smithers.fits_options_v1(v_request, p_decision.decision::jsonb)
    THEN
        v_answer.outcome := 'misfit';
        v_answer.request := v_approval.request;
    ELSIF v_approval.status = v_wanted THEN
        v_answer.outcome := CASE WHEN p_decision.is_approved AND v_request ->> 'mode' IN ('select', 'rank', 'form')
            AND v_approval.decision::jsonb IS DISTINCT FROM p_decision.decision::jsonb
            THEN 'not-waiting' ELSE 'repeated' END;
    ELSIF v_approval.status <> 'requested' OR v_approval.requested_at <= v_run.cancel_requested_at
        OR v_run.status IN ('finished', 'failed', 'cancelled', 'continued')
    THEN
        v_answer.outcome := 'not-waiting';
    END IF;
    IF v_answer.outcome IS NOT NULL THEN RETURN v_answer; END IF;

    v_now := smithers.clock();
    UPDATE smithers.approvals SET status = v_wanted, decided_at = v_now, decided_by = p_decision.decided_by,
        note = p_decision.note, decision = p_decision.decision
    WHERE run_id = v_run.run_id AND node_id = v_approval.node_id AND iteration = v_approval.iteration;
    UPDATE smithers.runs SET last_seq = last_seq + 1, due_at = CASE WHEN owner_id IS NULL THEN v_now ELSE due_at END
    WHERE run_id = v_run.run_id;
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT v_run.run_id, v_run.last_seq + 1, v_run.epoch, smithers.event_v1(
        CASE WHEN p_decision.is_approved THEN 'ApprovalGranted' ELSE 'ApprovalDenied' END, v_run.run_id, q.workflow_name,
        smithers.to_ms(v_now), ',"nodeId":' || to_json(v_approval.node_id)::text
            || ',"iteration":' || v_approval.iteration::text
            || coalesce(',"decidedBy":' || to_json(p_decision.decided_by)::text, '')
            || coalesce(',"note":' || to_json(p_decision.note)::text, ''))
    FROM smithers.run_requests AS q WHERE q.run_id = v_run.run_id;
    v_answer.outcome := 'decided';
    v_answer.queue := v_run.queue;
    v_answer.is_owned := v_run.owner_id IS NOT NULL;
    RETURN v_answer;
END
$$;
