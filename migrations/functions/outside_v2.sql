-- What comes from outside, for trees that ask more than yes or no, and clean up after themselves. As in outside_v1.sql:
-- the run's row first; answers are words.

-- Say whether a credential may answer a request. p_scopes null: the server has no credentials, and anybody may.
CREATE FUNCTION smithers.is_allowed_v1(p_request jsonb, p_user text, p_scopes text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT p_scopes IS NULL OR (
        (coalesce(jsonb_typeof(p_request -> 'allowedUsers'), '') <> 'array'
            OR (p_request -> 'allowedUsers') ? coalesce(p_user, ''))
        AND (coalesce(jsonb_typeof(p_request -> 'allowedScopes'), '') <> 'array' OR '*' = ANY (p_scopes)
            OR (p_request -> 'allowedScopes') ?| p_scopes))
$$;

-- Say whether a decision answers what was asked: one of the options, or all of them in an order.
CREATE FUNCTION smithers.fits_options_v1(p_request jsonb, p_decision jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT coalesce(CASE p_request ->> 'mode'
        WHEN 'select' THEN jsonb_typeof(p_decision -> 'selected') = 'string'
            AND (p_request -> 'options') ? (p_decision ->> 'selected')
        WHEN 'rank' THEN jsonb_typeof(p_decision -> 'ranked') = 'array'
            AND (p_request -> 'options') @> (p_decision -> 'ranked') AND (p_decision -> 'ranked') @> (p_request -> 'options')
            AND jsonb_array_length(p_decision -> 'ranked') = jsonb_array_length(p_request -> 'options')
        ELSE true END, false)
$$;

-- Decide an approval. Answers: decided, repeated (the same decision again), not-found (run or node), not-waiting, forbidden,
-- misfit (p_decision is none of the options; `request` says what was asked). A form is answered, not decided: only its
-- time can run out (p_is_timeout).
CREATE FUNCTION smithers.decide_approval_v2(
    p_run_id text, p_node_id text, p_iteration integer, p_is_approved boolean,
    p_note text, p_decided_by text, p_decision text, p_user text, p_scopes text[], p_is_timeout boolean,
    OUT outcome text, OUT queue text, OUT is_owned boolean, OUT request text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_approval smithers.approvals%ROWTYPE;
    v_request jsonb;
    v_wanted text := CASE WHEN p_is_approved THEN 'approved' ELSE 'denied' END;
BEGIN
    PERFORM FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_run_id AND a.node_id = p_node_id AND a.iteration = p_iteration;
    v_request := v_approval.request::jsonb;
    IF v_approval.status = 'requested' AND NOT p_is_timeout AND smithers.is_allowed_v1(v_request, p_user, p_scopes) THEN
        IF v_request ->> 'mode' = 'form' THEN outcome := 'not-waiting'; RETURN; END IF;
        IF p_is_approved AND NOT smithers.fits_options_v1(v_request, p_decision::jsonb) THEN
            outcome := 'misfit'; request := v_approval.request; RETURN;
        END IF;
    END IF;
    SELECT d.outcome, d.queue, d.is_owned INTO outcome, queue, is_owned FROM smithers.decide_approval_v1(
        p_run_id, p_node_id, p_iteration, p_is_approved, p_note, p_decided_by, p_decision, p_user, p_scopes) AS d;
    IF outcome = 'repeated' AND p_is_approved AND v_request ->> 'mode' IN ('select', 'rank', 'form')
        AND v_approval.decision::jsonb IS DISTINCT FROM p_decision::jsonb
    THEN outcome := 'not-waiting'; END IF;
END
$$;

-- Read what a person is asked to fill in, and whether this one may: the caller checks the value against the schema, which
-- only a new asking changes. Answers: asked, answered (a value is there already), not-found, not-waiting, forbidden.
CREATE FUNCTION smithers.read_form_v1(
    p_run_id text, p_node_id text, p_iteration integer, p_user text, p_scopes text[],
    OUT outcome text, OUT request text)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    v_approval smithers.approvals%ROWTYPE;
BEGIN
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_run_id AND a.node_id = p_node_id AND a.iteration = p_iteration;
    IF NOT FOUND THEN
        outcome := CASE WHEN EXISTS (SELECT FROM smithers.nodes n WHERE n.run_id = p_run_id AND n.node_id = p_node_id)
            THEN 'not-waiting' ELSE 'not-found' END;
    ELSIF v_approval.request::jsonb ->> 'mode' IS DISTINCT FROM 'form' THEN outcome := 'not-waiting';
    ELSIF NOT smithers.is_allowed_v1(v_approval.request::jsonb, p_user, p_scopes) THEN outcome := 'forbidden';
    ELSE
        outcome := CASE v_approval.status WHEN 'requested' THEN 'asked' WHEN 'approved' THEN 'answered' ELSE 'not-waiting' END;
        request := v_approval.request;
    END IF;
END
$$;

-- Write down the answer to a form. p_request: the request that the value was checked against; another one by now is
-- answered with changed. Else as decide_approval_v2: answered once, the same value again is repeated, another not-waiting.
CREATE FUNCTION smithers.answer_form_v1(
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
    SELECT d.outcome, d.queue, d.is_owned INTO outcome, queue, is_owned FROM smithers.decide_approval_v1(
        p_run_id, p_node_id, p_iteration, true, NULL, p_answered_by, p_value, p_user, p_scopes) AS d;
    IF outcome = 'repeated' AND v_approval.decision::jsonb IS DISTINCT FROM p_value::jsonb
    THEN outcome := 'not-waiting'; END IF;
END
$$;

-- Cancel a run, as cancel_run_v1; but one that is parked and has something to clean up is claimed for it first.
CREATE FUNCTION smithers.cancel_run_v2(p_run_id text, OUT outcome text, OUT is_owned boolean, OUT queue text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_now timestamptz;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE;
    IF v_run.has_cleanup AND v_run.owner_id IS NULL
        AND v_run.status NOT IN ('finished', 'failed', 'cancelled', 'continued')
    THEN
        v_now := smithers.clock();
        UPDATE smithers.runs SET cancel_requested_at = coalesce(cancel_requested_at, v_now), due_at = v_now
        WHERE run_id = p_run_id;
        outcome := 'requested'; is_owned := false; queue := v_run.queue;
        RETURN;
    END IF;
    SELECT c.outcome, c.is_owned INTO outcome, is_owned FROM smithers.cancel_run_v1(p_run_id) AS c;
END
$$;
