-- Lock the runs that the end of this one will write to: its parent, and its children that are under way. False where
-- another writer holds one of them: whoever commits a group never waits, so that no circle of waiting ends in it.
CREATE FUNCTION smithers.hold_kin_v1(p_run_id text) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_kin text[];
    v_held bigint;
BEGIN
    SELECT array_agg(kin.run_id) INTO v_kin FROM (
        SELECT r.parent_run_id FROM smithers.runs r WHERE r.run_id = p_run_id AND r.parent_run_id IS NOT NULL
        UNION ALL
        SELECT k.child_run_id FROM smithers.children k WHERE k.run_id = p_run_id AND k.status IS NULL) AS kin (run_id);
    SELECT count(*) INTO v_held FROM (
        SELECT FROM smithers.runs r WHERE r.run_id = ANY (v_kin) FOR NO KEY UPDATE SKIP LOCKED) AS held;
    RETURN v_held = (SELECT count(*) FROM smithers.runs r WHERE r.run_id = ANY (v_kin));
END
$$;
