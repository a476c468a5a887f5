-- Write down the answer to a form (p_decision), for answer_form_v3. The run's row is locked first, what is looked at is read
-- under the lock, and the run is made due in the same transaction.
-- Answers: decided, repeated (it was answered before; the caller compares the values), not-found (run or node), not-waiting,
-- forbidden. p_user and p_scopes: who answers, as the credential says; p_scopes null: the server has no credentials.
-- Of a run that is being cancelled, what was asked before the cancel is withdrawn, or about to be; what it asks while it
-- cleans up can be answered.
-- Of a run that has ended nothing is answered, as in decide_approval_v5.
CREATE FUNCTION smithers.decide_form_v2(
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
    IF v_approval.status <> 'requested' OR v_approval.requested_at <= v_run.cancel_requested_at
        OR v_run.status IN ('finished', 'failed', 'cancelled', 'continued')
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
