-- Let the end of a run reach its kin, whoever ends it: a worker, a gateway, the one who buries a worker. At the commit, when
-- all that the end has written is there. Children that are under way are asked to end: each is claimed for it, and asks its
-- own.
-- A parent may have taken the run up again in the commit that ended it (change_child_v1): it is told of the next end, and not
-- of this one. The children are asked to end all the same, as they are when the resume comes later.
-- Which statuses are an end is asked here and not in the trigger's condition: Postgres reads a condition from the catalog
-- anew for each statement, and one that names the statuses was a hundredth of what a commit costs.
CREATE FUNCTION smithers.end_kin_v3() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := smithers.clock();
BEGIN
    IF NEW.status NOT IN ('finished', 'failed', 'cancelled', 'continued') THEN
        RETURN NULL;
    END IF;
    IF NEW.is_parent THEN
        UPDATE smithers.runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, v_now),
            due_at = CASE WHEN r.owner_id IS NULL THEN v_now ELSE r.due_at END
        FROM smithers.children k
        WHERE k.run_id = NEW.run_id AND k.status IS NULL AND r.run_id = k.child_run_id
            AND r.status NOT IN ('finished', 'failed', 'cancelled', 'continued');
    END IF;
    IF NEW.parent_run_id IS NOT NULL AND NEW.status <> 'continued' AND EXISTS (
        SELECT FROM smithers.runs r WHERE r.run_id = NEW.run_id AND r.status = NEW.status)
    THEN
        PERFORM smithers.tell_parent_v1(NEW.run_id, v_now);
    END IF;
    RETURN NULL;
END
$$;
DROP TRIGGER runs_end_kin ON smithers.runs;
CREATE CONSTRAINT TRIGGER runs_end_kin AFTER UPDATE OF status ON smithers.runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((NEW.parent_run_id IS NOT NULL OR NEW.is_parent) AND NEW.status <> OLD.status)
    EXECUTE FUNCTION smithers.end_kin_v3();
