-- Resume a run. The run's row is locked first, what is looked at is read under the lock, and the run is made due in the same
-- transaction. Answers: resumed (a new era of a failed or cancelled run, or another source for one that nobody owns), active
-- (it goes on by itself, or is on its way), finished (nothing to do), not-found, not-active (continued as another run).
-- p_source_hash and what stands beside it: null keeps the source. A failed or cancelled run may go on as another workflow of
-- the same source. p_config: null keeps the configuration; else its fields replace those of the run, and the others stay.
CREATE FUNCTION smithers.resume_run_v3(
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
    IF v_run.owner_id IS NOT NULL THEN outcome := 'active'; RETURN; END IF;

    SELECT * INTO v_request FROM smithers.run_requests q WHERE q.run_id = p_run_id;
    v_is_new_source := p_source_hash IS NOT NULL AND (p_source_hash <> v_request.source_hash
        OR (v_run.status IN ('failed', 'cancelled') AND p_workflow_export IS NOT NULL
            AND p_workflow_export IS DISTINCT FROM v_request.workflow_export));
    IF v_run.status NOT IN ('failed', 'cancelled') AND NOT v_is_new_source THEN outcome := 'active'; RETURN; END IF;
    v_now := smithers.clock();
    IF v_is_new_source OR p_config IS NOT NULL THEN
        UPDATE smithers.run_requests SET
            source_hash = coalesce(p_source_hash, source_hash),
            workflow_path = CASE WHEN v_is_new_source THEN p_workflow_path ELSE workflow_path END,
            workflow_export = CASE WHEN v_is_new_source THEN p_workflow_export ELSE workflow_export END,
            config = CASE WHEN p_config IS NULL THEN config ELSE (config::jsonb || p_config::jsonb)::text END
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
    -- A claim under way has read what a run that was due already was asked for: a moment later, it claims the run no more.
    UPDATE smithers.runs SET due_at = CASE WHEN due_at <= v_now THEN v_now + interval '100 milliseconds' ELSE v_now END
    WHERE run_id = p_run_id;
    outcome := 'resumed';
END
$$;
