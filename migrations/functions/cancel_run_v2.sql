-- Cancel a run, with the answers of cancel_run_v1. One that is parked and has something to clean up is made due, and claimed
-- for that first: requested, and `queue` says who is to be woken.
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
