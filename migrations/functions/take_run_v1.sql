-- Take a run's row unless another writer has it; false: it has. Of a run that is not there nobody has it.
CREATE FUNCTION smithers.take_run_v1(p_run_id text) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND OR NOT EXISTS (SELECT FROM smithers.runs r WHERE r.run_id = p_run_id);
END
$$;
