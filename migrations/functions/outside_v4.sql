-- Take a run's row unless another writer has it; false: it has. Of a run that is not there nobody has it.
CREATE FUNCTION smithers.take_run_v1(p_run_id text) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM FROM smithers.runs r WHERE r.run_id = p_run_id FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND OR NOT EXISTS (SELECT FROM smithers.runs r WHERE r.run_id = p_run_id);
END
$$;

-- As decide_and_tell_v1; but a run whose row another writer has holds up none of the others: it is answered with locked,
-- and nothing was written. Success is answered only for what the standbys have.
CREATE PROCEDURE smithers.decide_and_tell_v2(p_decisions smithers.decision_v1[], INOUT answers smithers.decided_v1[])
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
            v_answer := smithers.decide_approval_v3(p_decisions[i]);
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

-- The same for signals, as signal_and_tell_v1.
CREATE PROCEDURE smithers.signal_and_tell_v2(p_signals smithers.signal_v1[], INOUT answers smithers.signalled_v1[])
LANGUAGE plpgsql
AS $$
DECLARE
    v_signal smithers.signal_v1;
    v_answer smithers.signalled_v1;
    v_run_ids text[];
    v_queues text[];
    v_are_owned boolean[];
BEGIN
    FOR i IN 1..cardinality(p_signals) LOOP
        v_signal := p_signals[i];
        IF smithers.take_run_v1(v_signal.run_id) THEN
            SELECT s.outcome, s.seq, s.signal_name, s.correlation_id, s.received_ms, s.queue, s.is_owned INTO v_answer
            FROM smithers.send_signal_v1(v_signal.run_id, v_signal.signal_name, v_signal.correlation_id, v_signal.data,
                v_signal.received_by, v_signal.signal_id) AS s;
        ELSE
            v_answer := ROW('locked', NULL, NULL, NULL, NULL, NULL, NULL);
        END IF;
        answers[i] := v_answer;
        IF v_answer.outcome = 'received' THEN
            v_run_ids := v_run_ids || v_signal.run_id;
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
