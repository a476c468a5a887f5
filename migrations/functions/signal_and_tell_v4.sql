-- Record many signals, each as send_signal_v2 does, commit, and tell of them, in one round trip. Locked rows, standbys and
-- notifications are as in decide_and_tell_v3.
CREATE PROCEDURE smithers.signal_and_tell_v4(p_signals smithers.signal_v1[], INOUT answers smithers.signalled_v1[])
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
            FROM smithers.send_signal_v2(v_signal.run_id, v_signal.signal_name, v_signal.correlation_id, v_signal.data,
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
        PERFORM set_config('lock_timeout', '0', true);  -- a failure would be taken for one of the signals
        PERFORM smithers.tell_v1(v_run_ids, v_queues, v_are_owned);
    END IF;
END
$$;
