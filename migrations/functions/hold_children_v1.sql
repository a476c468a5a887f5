-- Lock the children that a run is about to let go of or to start again. False where another writer holds one of them:
-- whoever commits a group never waits, as in hold_kin_v1.
CREATE FUNCTION smithers.hold_children_v1(p_children smithers.child_change_v1[], p_run_no bigint) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_children text[];
    v_held bigint;
BEGIN
    SELECT array_agg(k.child_run_id) INTO v_children
    FROM unnest(p_children) AS c
    JOIN smithers.children AS k ON k.run_id = c.run_id AND k.node_id = c.node_id AND k.iteration = c.iteration
    WHERE c.run_no = p_run_no;
    SELECT count(*) INTO v_held FROM (
        SELECT FROM smithers.runs r WHERE r.run_id = ANY (v_children) FOR NO KEY UPDATE SKIP LOCKED) AS held;
    RETURN v_held = (SELECT count(*) FROM smithers.runs r WHERE r.run_id = ANY (v_children));
END
$$;
