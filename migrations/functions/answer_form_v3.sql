-- Answer a form. p_request: the request that the value was checked against; another one by now is answered with changed. Else
-- with what decide_form_v2 answers: decided once, the same value again is repeated, another one not-waiting.
CREATE FUNCTION smithers.answer_form_v3(
    p_run_id text, p_node_id text, p_iteration integer, p_value text, p_answered_by text, p_user text, p_scopes text[],
    p_request text, OUT outcome text, OUT queue text, OUT is_owned boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_approval smithers.approvals%ROWTYPE;
BEGIN
    PERFORM FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_run_id AND a.node_id = p_node_id AND a.iteration = p_iteration;
    IF v_approval.request IS DISTINCT FROM p_request THEN outcome := 'changed'; RETURN; END IF;
    SELECT d.outcome, d.queue, d.is_owned INTO outcome, queue, is_owned FROM smithers.decide_form_v2(
        p_run_id, p_node_id, p_iteration, true, NULL, p_answered_by, p_value, p_user, p_scopes) AS d;
    IF outcome = 'repeated' AND v_approval.decision::jsonb IS DISTINCT FROM p_value::jsonb
    THEN outcome := 'not-waiting'; END IF;
END
$$;
