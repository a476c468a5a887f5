CREATE TYPE smithers.child_change_v1 AS (
    run_no integer, run_id text,
    node_id text,               -- whose output the child's will be; null: this run goes on as the other
    iteration integer, child_run_id text,
    is_abandoned boolean,       -- not to be started: nobody waits for it any more
    workflow_name text, workflow_path text, workflow_export text, source_hash text,
    input text, config text, auth text, trace_context text,
    carried text,               -- with a null node_id: the state that it goes on with
    queue text,                 -- null: the parent's
    is_solo boolean,
    head text, tail text);      -- event 0, around its time

-- Start a child, take one up again that its parent tries anew, let go of one, or start what a run goes on as. The caller
-- holds the parent's row. A child has one id for each node of its parent, so that no crash makes two of it.
CREATE FUNCTION smithers.change_child_v1(p_child smithers.child_change_v1, p_now timestamptz) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_parent smithers.runs%ROWTYPE;
    v_known smithers.children%ROWTYPE;
    v_outcome text;
BEGIN
    SELECT * INTO v_parent FROM smithers.runs r WHERE r.run_id = p_child.run_id;
    IF p_child.node_id IS NOT NULL THEN
        SELECT * INTO v_known FROM smithers.children k
            WHERE k.run_id = p_child.run_id AND k.node_id = p_child.node_id AND k.iteration = p_child.iteration;
    END IF;
    IF p_child.is_abandoned THEN
        UPDATE smithers.runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, p_now),
            due_at = CASE WHEN r.owner_id IS NULL THEN p_now ELSE r.due_at END
        WHERE r.run_id = v_known.child_run_id AND r.status NOT IN ('finished', 'failed', 'cancelled', 'continued');
        RETURN;
    END IF;
    IF v_known.child_run_id IS NOT NULL THEN
        SELECT o.outcome INTO v_outcome FROM smithers.resume_run_v1(v_known.child_run_id, p_child.source_hash,
            p_child.workflow_path, p_child.workflow_export, NULL, '[]') AS o;
        IF v_outcome = 'finished' THEN
            PERFORM smithers.tell_parent_v1(v_known.child_run_id, p_now);
        ELSE
            UPDATE smithers.children k SET status = NULL, output = NULL, error = NULL, ended_at = NULL
            WHERE k.run_id = p_child.run_id AND k.node_id = p_child.node_id AND k.iteration = p_child.iteration;
        END IF;
        RETURN;
    END IF;

    -- A name that is taken is the constraint's to refuse.
    INSERT INTO smithers.runs (
        run_id, status, queue, priority, due_at, last_seq, created_at, is_solo, parent_run_id)
    VALUES (p_child.child_run_id, 'queued', coalesce(p_child.queue, v_parent.queue), v_parent.priority, p_now, 0, p_now,
        p_child.is_solo, CASE WHEN p_child.node_id IS NULL THEN v_parent.parent_run_id ELSE p_child.run_id END);
    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at, carried)
    VALUES (p_child.child_run_id, p_child.workflow_name, p_child.workflow_path, p_child.workflow_export,
        p_child.source_hash, p_child.input, p_child.config, p_child.auth, p_child.trace_context, p_child.run_id, p_now,
        p_child.carried);
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    VALUES (p_child.child_run_id, 0, 0, p_child.head || smithers.to_ms(p_now)::text || p_child.tail);
    IF p_child.node_id IS NULL THEN  -- who waited for this run waits for the other
        UPDATE smithers.children k SET child_run_id = p_child.child_run_id
        WHERE k.run_id = v_parent.parent_run_id AND k.child_run_id = p_child.run_id;
    ELSE
        INSERT INTO smithers.children (run_id, node_id, iteration, child_run_id)
        VALUES (p_child.run_id, p_child.node_id, p_child.iteration, p_child.child_run_id);
        UPDATE smithers.runs SET is_parent = true WHERE run_id = p_child.run_id AND is_parent IS NULL;
    END IF;
END
$$;
