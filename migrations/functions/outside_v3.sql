-- What comes from outside in batches, each told of in its own round trip: see commit_turns_v2.sql for why the notifications
-- have a transaction of their own. As in outside_v1.sql: the run's row first; answers are words.
CREATE TYPE smithers.decision_v1 AS (
    run_id text, node_id text, iteration integer, is_approved boolean, note text, decided_by text,
    decision text,              -- JSON: a selection or a ranking
    user_name text,
    scopes text[],              -- null: the server has no credentials
    is_timeout boolean);        -- nobody decided in time: also a form's
CREATE TYPE smithers.signal_v1 AS (
    run_id text, signal_name text, correlation_id text, data text, received_by text, signal_id text);
-- What became of one of them, and whom it wakes: the run's owner, or whoever claims from its queue.
CREATE TYPE smithers.decided_v1 AS (outcome text, request text, queue text, is_owned boolean);
CREATE TYPE smithers.signalled_v1 AS (
    outcome text, seq bigint, signal_name text, correlation_id text, received_ms bigint, queue text, is_owned boolean);

-- Decide one approval, with the answers of decide_approval_v2; the caller's transaction is the decision's.
CREATE FUNCTION smithers.decide_approval_v3(p_decision smithers.decision_v1) RETURNS smithers.decided_v1
LANGUAGE plpgsql
AS $$
DECLARE
    v_run smithers.runs%ROWTYPE;
    v_approval smithers.approvals%ROWTYPE;
    v_request jsonb;
    v_wanted text := CASE WHEN p_decision.is_approved THEN 'approved' ELSE 'denied' END;
    v_now timestamptz;
    v_answer smithers.decided_v1;
BEGIN
    SELECT * INTO v_run FROM smithers.runs r WHERE r.run_id = p_decision.run_id FOR NO KEY UPDATE;
    IF v_run.run_id IS NULL THEN v_answer.outcome := 'not-found'; RETURN v_answer; END IF;
    SELECT * INTO v_approval FROM smithers.approvals a
        WHERE a.run_id = p_decision.run_id AND a.node_id = p_decision.node_id AND a.iteration = p_decision.iteration;
    IF v_approval.run_id IS NULL THEN
        v_answer.outcome := CASE WHEN EXISTS (
            SELECT FROM smithers.nodes n WHERE n.run_id = p_decision.run_id AND n.node_id = p_decision.node_id)
            THEN 'not-waiting' ELSE 'not-found' END;
        RETURN v_answer;
    END IF;
    v_request := v_approval.request::jsonb;
    IF NOT smithers.is_allowed_v1(v_request, p_decision.user_name, p_decision.scopes) THEN
        v_answer.outcome := 'forbidden';
    ELSIF v_approval.status = 'requested' AND NOT p_decision.is_timeout AND v_request ->> 'mode' = 'form' THEN
        v_answer.outcome := 'not-waiting';
    ELSIF v_approval.status = 'requested' AND NOT p_decision.is_timeout AND p_decision.is_approved
        AND NOT smithers.fits_options_v1(v_request, p_decision.decision::jsonb)
    THEN
        v_answer.outcome := 'misfit';
        v_answer.request := v_approval.request;
    ELSIF v_approval.status = v_wanted THEN
        v_answer.outcome := CASE WHEN p_decision.is_approved AND v_request ->> 'mode' IN ('select', 'rank', 'form')
            AND v_approval.decision::jsonb IS DISTINCT FROM p_decision.decision::jsonb
            THEN 'not-waiting' ELSE 'repeated' END;
    ELSIF v_approval.status <> 'requested' OR v_run.cancel_requested_at IS NOT NULL THEN
        v_answer.outcome := 'not-waiting';
    END IF;
    IF v_answer.outcome IS NOT NULL THEN RETURN v_answer; END IF;

    v_now := smithers.clock();
    UPDATE smithers.approvals SET status = v_wanted, decided_at = v_now, decided_by = p_decision.decided_by,
        note = p_decision.note, decision = p_decision.decision
    WHERE run_id = v_run.run_id AND node_id = v_approval.node_id AND iteration = v_approval.iteration;
    UPDATE smithers.runs SET last_seq = last_seq + 1, due_at = CASE WHEN owner_id IS NULL THEN v_now ELSE due_at END
    WHERE run_id = v_run.run_id;
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT v_run.run_id, v_run.last_seq + 1, v_run.epoch, smithers.event_v1(
        CASE WHEN p_decision.is_approved THEN 'ApprovalGranted' ELSE 'ApprovalDenied' END, v_run.run_id, q.workflow_name,
        smithers.to_ms(v_now), ',"nodeId":' || to_json(v_approval.node_id)::text
            || ',"iteration":' || v_approval.iteration::text
            || coalesce(',"decidedBy":' || to_json(p_decision.decided_by)::text, '')
            || coalesce(',"note":' || to_json(p_decision.note)::text, ''))
    FROM smithers.run_requests AS q WHERE q.run_id = v_run.run_id;
    v_answer.outcome := 'decided';
    v_answer.queue := v_run.queue;
    v_answer.is_owned := v_run.owner_id IS NOT NULL;
    RETURN v_answer;
END
$$;

-- Say that runs have new events, and wake who is to take them in: their owners, or who claims from their queues.
CREATE FUNCTION smithers.tell_v1(p_run_ids text[], p_queues text[], p_are_owned boolean[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_channels text[];
    v_payloads text[];
BEGIN
    SELECT array_agg(h.channel), array_agg(h.payload) INTO v_channels, v_payloads
    FROM unnest(p_run_ids, p_queues, p_are_owned) AS t (run_id, queue, is_owned), LATERAL (VALUES
        ('smithers_events', t.run_id),
        (CASE WHEN t.is_owned THEN 'smithers_news' ELSE 'smithers_due' END,
            CASE WHEN t.is_owned THEN t.run_id ELSE t.queue END)) AS h (channel, payload);
    PERFORM smithers.notify_v1(v_channels, v_payloads);
END
$$;

CREATE PROCEDURE smithers.decide_and_tell_v1(p_decisions smithers.decision_v1[], INOUT answers smithers.decided_v1[])
LANGUAGE plpgsql
AS $$
DECLARE
    v_run_ids text[];
    v_queues text[];
    v_are_owned boolean[];
BEGIN
    FOR i IN 1..cardinality(p_decisions) LOOP  -- each sees what those before it did
        answers[i] := smithers.decide_approval_v3(p_decisions[i]);
        IF answers[i].outcome = 'decided' THEN
            v_run_ids := v_run_ids || p_decisions[i].run_id;
            v_queues := v_queues || answers[i].queue;
            v_are_owned := v_are_owned || answers[i].is_owned;
        END IF;
    END LOOP;
    COMMIT;
    IF v_run_ids IS NOT NULL THEN
        PERFORM smithers.tell_v1(v_run_ids, v_queues, v_are_owned);
    END IF;
END
$$;

CREATE PROCEDURE smithers.signal_and_tell_v1(p_signals smithers.signal_v1[], INOUT answers smithers.signalled_v1[])
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
        SELECT s.outcome, s.seq, s.signal_name, s.correlation_id, s.received_ms, s.queue, s.is_owned INTO v_answer
        FROM smithers.send_signal_v1(v_signal.run_id, v_signal.signal_name, v_signal.correlation_id, v_signal.data,
            v_signal.received_by, v_signal.signal_id) AS s;
        answers[i] := v_answer;
        IF v_answer.outcome = 'received' THEN
            v_run_ids := v_run_ids || v_signal.run_id;
            v_queues := v_queues || v_answer.queue;
            v_are_owned := v_are_owned || v_answer.is_owned;
        END IF;
    END LOOP;
    COMMIT;
    IF v_run_ids IS NOT NULL THEN
        PERFORM smithers.tell_v1(v_run_ids, v_queues, v_are_owned);
    END IF;
END
$$;
