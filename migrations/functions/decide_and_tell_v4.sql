-- Decide many approvals, each as decide_approval_v5 does, commit, and tell of them, in one round trip. A run whose row
-- another writer has holds up none of the others: it is answered with locked, and nothing was written of it.
-- Success is answered only for what the synchronous standbys have (see require_replicated_v1); the notifications have a
-- transaction of their own (see notify_v1). Whom a decision wakes is known here only, so the caller names no channels.
CREATE PROCEDURE smithers.decide_and_tell_v4(p_decisions smithers.decision_v1[], INOUT answers smithers.decided_v1[])
LANGUAGE plpgsql
AS $$
DECLARE
    v_answer smithers.decided_v1;
    v_run_ids text[];
    v_queues text[];
    v_are_owned boolean[];
BEGIN
    FOR i IN 1..cardinality(p_decisions) LOOP  -- each sees what those before it did
        IF smithers.take_run_v1(p_decisions[i].run_id) THEN
            v_answer := smithers.decide_approval_v5(p_decisions[i]);
        ELSE
            v_answer := ROW('locked', NULL, NULL, NULL);
        END IF;
        answers[i] := v_answer;
        IF v_answer.outcome = 'decided' THEN
            v_run_ids := v_run_ids || p_decisions[i].run_id;
            v_queues := v_queues || v_answer.queue;
            v_are_owned := v_are_owned || v_answer.is_owned;
        END IF;
    END LOOP;
    COMMIT;
    PERFORM smithers.require_replicated_v1();
    IF v_run_ids IS NOT NULL THEN
        PERFORM smithers.tell_v1(v_run_ids, v_queues, v_are_owned);
    END IF;
END
$$;
