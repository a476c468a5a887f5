-- Refuse the id of a run that retention has removed, whoever inserts it. After the insert, in a snapshot of its own: an
-- insert that had to wait until the old row was gone sees the tombstone, which came with that very commit. A mirror may
-- come back: its run lives on elsewhere.
CREATE FUNCTION smithers.refuse_tombstones_v1() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM new_runs AS n JOIN smithers.tombstones AS t ON t.run_id = n.run_id
        WHERE coalesce(n.mirrored_seq, -1) = -1)
    THEN
        RAISE unique_violation USING CONSTRAINT = 'tombstones_pkey', MESSAGE = 'retention has removed a run of this id';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER runs_refuse_tombstones AFTER INSERT ON smithers.runs
    REFERENCING NEW TABLE AS new_runs FOR EACH STATEMENT EXECUTE FUNCTION smithers.refuse_tombstones_v1();
