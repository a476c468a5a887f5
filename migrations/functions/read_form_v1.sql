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
