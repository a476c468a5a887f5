-- Write down at a parent how its child ended, and wake the parent. The caller holds the child's row.
CREATE FUNCTION smithers.tell_parent_v1(p_run_id text, p_now timestamptz) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_child smithers.runs%ROWTYPE;
    v_status text;
    v_node smithers.children%ROWTYPE;
BEGIN
    SELECT * INTO v_child FROM smithers.runs r WHERE r.run_id = p_run_id;
    SELECT r.status INTO v_status FROM smithers.runs r WHERE r.run_id = v_child.parent_run_id FOR NO KEY UPDATE;
    UPDATE smithers.children k SET status = v_child.status, error = v_child.error, ended_at = p_now, output = (
        SELECT n.output FROM smithers.nodes n WHERE n.run_id = p_run_id
            AND n.node_id = v_child.output_node_id AND n.iteration = v_child.output_iteration)
    WHERE k.run_id = v_child.parent_run_id AND k.child_run_id = p_run_id
    RETURNING * INTO v_node;
    IF v_node.run_id IS NULL OR v_status IN ('finished', 'failed', 'cancelled', 'continued') THEN RETURN; END IF;
    PERFORM smithers.add_event_v1(v_node.run_id, 'SubflowEnded', p_now, ',"nodeId":' || to_json(v_node.node_id)::text
        || ',"iteration":' || v_node.iteration::text || ',"childRunId":' || to_json(p_run_id)::text
        || ',"status":' || to_json(v_child.status)::text);
    UPDATE smithers.runs SET due_at = p_now WHERE run_id = v_node.run_id AND owner_id IS NULL;
END
$$;
