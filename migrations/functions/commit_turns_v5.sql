-- What one commit says of a run. Numbers in the other types (run_no) are positions in this array, from 1.
CREATE TYPE smithers.run_change_v2 AS (
    run_id text, epoch bigint, commit_no bigint,
    expected_seq bigint,        -- null: whatever came meanwhile does not matter to this change
    is_cancelling boolean,      -- with expected_seq: whether the plan knew of a cancel
    status text,                -- null: as it was
    is_released boolean,        -- the owner gives the run back: parked, ended or drained
    due_ms bigint,              -- with is_released: when it is to be claimed again; null: when a decision says so
    event_count integer, last_frame_no integer,
    is_cleared boolean,         -- what was in flight when an owner died has ended: no suspicion any more
    error text, output_node_id text, output_iteration integer,
    has_cleanup boolean);       -- a cancel must leave time to clean up; null: no
CREATE TYPE smithers.event_change_v1 AS (run_no integer, run_id text, event_no integer, head text, tail text);
CREATE TYPE smithers.node_change_v1 AS (
    run_no integer, run_id text, node_id text, iteration integer, kind text, label text,
    state text, attempt integer, failures integer, is_started boolean, is_settled boolean,
    due_ms bigint, wait text, loop_id text, heartbeat text, output text, error text);
CREATE TYPE smithers.attempt_change_v1 AS (
    run_no integer, run_id text, node_id text, iteration integer, attempt integer, state text, started_ms bigint,
    error text);
CREATE TYPE smithers.frame_change_v1 AS (
    run_no integer, run_id text, frame_no integer, xml_hash text, encoding text, body text);
CREATE TYPE smithers.loop_change_v1 AS (run_no integer, run_id text, loop_id text, iteration integer, is_done boolean);
CREATE TYPE smithers.approval_change_v1 AS (
    run_no integer, run_id text, node_id text, iteration integer, status text, request text, note text, decided_by text);
CREATE TYPE smithers.signal_change_v1 AS (run_no integer, run_id text, seq bigint, node_id text, iteration integer);
CREATE TYPE smithers.try_change_v1 AS (run_no integer, run_id text, try_id text, phase text, is_done boolean, problem text);
CREATE TYPE smithers.tool_call_change_v2 AS (
    run_no integer, run_id text, node_id text, iteration integer, attempt integer, call_no integer,
    kind text,                  -- tool or model
    tool_name text,
    state text,                 -- started, finished or failed
    is_side_effect boolean, is_idempotent boolean, input text, output text, error text,
    took_ms bigint,             -- until this change
    parent_call_no integer,     -- within which call it was made; 0: within none
    beside_call_no integer);    -- the oldest of that parent that was under way when it began; null: none was
CREATE TYPE smithers.cached_output_change_v1 AS (
    run_no integer, run_id text, node_id text, cache_key text, output text,
    ttl_ms bigint);             -- null: for good

-- Commit what is ready of many runs of one owner, and tell others that it was, in one round trip.
--
-- The lock is the first statement: it makes a displaced owner see the new epoch (a join on the epoch without it reads
-- the snapshot, and nothing makes it look again). SKIP LOCKED: a run that a gateway writes to right now is left for the
-- next group instead of holding up all others. Then come the rows of the runs' kin that the group writes to, in the same way
-- (hold_kin_v1, hold_children_v1). Every statement after that has a snapshot of its own, taken under the locks.
-- Outcomes, one for each run: committed; stale (something came in that the plan did not know of); lost (another
-- owner); locked (try again).
-- A change may come twice: its sender saw the connection break and does not know, or a copy was stuck on the way and
-- arrives late. The number of the run's last commit tells: it is written once, and answered as committed again.
--
-- Success is answered only for what the synchronous standbys have (see require_replicated_v1). The notifications have a
-- transaction of their own (see notify_v1). What fails after the COMMIT is answered as an error; the same group again is
-- answered as committed.
--
-- All of it is one body: a call of a function, a query without a table and a notification that each begin and end a
-- statement of their own were a fourteenth of what a commit costs its backend.
CREATE PROCEDURE smithers.commit_turns_v5(
    p_worker_id uuid,
    p_runs smithers.run_change_v2[], p_events smithers.event_change_v1[], p_nodes smithers.node_change_v1[],
    p_attempts smithers.attempt_change_v1[], p_frames smithers.frame_change_v1[], p_loops smithers.loop_change_v1[],
    p_approvals smithers.approval_change_v1[], p_signals smithers.signal_change_v1[],
    p_tries smithers.try_change_v1[], p_tool_calls smithers.tool_call_change_v2[], p_children smithers.child_change_v1[],
    p_cached smithers.cached_output_change_v1[], p_channels text[], p_payloads text[],
    INOUT outcomes text[], INOUT last_seqs bigint[], INOUT now_ms bigint)  -- of each run, in the order of p_runs
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_count integer := cardinality(p_runs);
    v_base bigint[] := array_fill(0::bigint, ARRAY[v_count]);
    v_epoch bigint[] := array_fill(0::bigint, ARRAY[v_count]);
    v_ok boolean[] := array_fill(false, ARRAY[v_count]);
    v_now timestamptz;
    v_now_text text;
    v_word text;
    v_run record;
    v_child smithers.child_change_v1;
BEGIN
    outcomes := array_fill(NULL::text, ARRAY[v_count]);
    last_seqs := v_base;
    FOR v_run IN
        SELECT c.n, r.epoch, r.epoch = c.epoch AND r.owner_id = p_worker_id AS is_ours,
               r.epoch = c.epoch AND r.commit_no >= c.commit_no AS is_repeated, r.last_seq, c.event_count,
               (r.parent_run_id IS NOT NULL OR r.is_parent IS TRUE)  -- never null: what follows would be called for all
                   AND coalesce(c.status IN ('finished', 'failed', 'cancelled', 'continued'), false) AS ends_kin,
               c.expected_seq IS NULL OR (
                   c.expected_seq = r.last_seq AND c.is_cancelling = (r.cancel_requested_at IS NOT NULL)) AS is_fresh
        FROM unnest(p_runs) WITH ORDINALITY AS c(
                run_id, epoch, commit_no, expected_seq, is_cancelling, status, is_released, due_ms, event_count,
                last_frame_no, is_cleared, error, output_node_id, output_iteration, has_cleanup, n)
        JOIN smithers.runs AS r ON r.run_id = c.run_id
        ORDER BY r.run_id
        FOR NO KEY UPDATE OF r SKIP LOCKED
    LOOP
        v_base[v_run.n] := v_run.last_seq;
        last_seqs[v_run.n] := v_run.last_seq;
        v_epoch[v_run.n] := v_run.epoch;
        IF v_run.is_repeated THEN  -- before the owner: what it gave back with that commit is nobody's
            outcomes[v_run.n] := 'committed';
        ELSIF v_run.is_ours IS NOT TRUE THEN
            outcomes[v_run.n] := 'lost';
        ELSIF v_run.ends_kin AND NOT smithers.hold_kin_v1(p_runs[v_run.n].run_id) THEN
            outcomes[v_run.n] := 'locked';
        ELSIF cardinality(p_children) > 0 AND NOT smithers.hold_children_v1(p_children, v_run.n) THEN
            outcomes[v_run.n] := 'locked';
        ELSIF v_run.is_fresh THEN
            outcomes[v_run.n] := 'committed';
            v_ok[v_run.n] := true;
            last_seqs[v_run.n] := v_run.last_seq + v_run.event_count;
        ELSE
            outcomes[v_run.n] := 'stale';
        END IF;
    END LOOP;
    v_now := smithers.clock();
    now_ms := smithers.to_ms(v_now);
    v_now_text := now_ms::text;

    UPDATE smithers.runs AS r SET
        last_seq = r.last_seq + c.event_count,
        commit_no = c.commit_no,
        last_frame_no = c.last_frame_no,
        status = coalesce(c.status, r.status),
        owner_id = CASE WHEN c.is_released THEN NULL ELSE r.owner_id END,
        due_at = CASE WHEN c.is_released THEN smithers.from_ms(c.due_ms) ELSE r.due_at END,
        finished_at = CASE WHEN c.status IN ('finished', 'failed', 'cancelled', 'continued') THEN v_now ELSE r.finished_at END,
        error = coalesce(c.error, r.error),
        output_node_id = coalesce(c.output_node_id, r.output_node_id),
        output_iteration = coalesce(c.output_iteration, r.output_iteration),
        has_cleanup = c.has_cleanup,
        lost_heartbeat_at = NULL,
        crash_count = CASE WHEN c.is_cleared THEN 0 ELSE r.crash_count END
    FROM unnest(p_runs) WITH ORDINALITY AS c(
            run_id, epoch, commit_no, expected_seq, is_cancelling, status, is_released, due_ms, event_count,
            last_frame_no, is_cleared, error, output_node_id, output_iteration, has_cleanup, n)
    WHERE r.run_id = c.run_id AND v_ok[c.n];

    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    SELECT e.run_id, v_base[e.run_no] + e.event_no, v_epoch[e.run_no], e.head || v_now_text || e.tail
    FROM unnest(p_events) AS e
    WHERE v_ok[e.run_no];

    IF cardinality(p_nodes) > 0 THEN
        INSERT INTO smithers.nodes AS old (
            run_id, node_id, iteration, kind, label, state, attempt, failures, created_at, started_at, finished_at,
            due_at, wait, loop_id, heartbeat, output, error)
        SELECT n.run_id, n.node_id, n.iteration, n.kind, n.label, n.state, n.attempt, n.failures, v_now,
               CASE WHEN n.is_started THEN v_now END, CASE WHEN n.is_settled THEN v_now END,
               smithers.from_ms(n.due_ms), n.wait, n.loop_id, n.heartbeat, n.output, n.error
        FROM unnest(p_nodes) AS n
        WHERE v_ok[n.run_no]
        ON CONFLICT (run_id, node_id, iteration) DO UPDATE SET
            kind = excluded.kind, label = excluded.label, state = excluded.state, attempt = excluded.attempt,
            failures = excluded.failures, started_at = coalesce(excluded.started_at, old.started_at),
            finished_at = excluded.finished_at, due_at = excluded.due_at, wait = excluded.wait,
            loop_id = excluded.loop_id, heartbeat = excluded.heartbeat, output = excluded.output, error = excluded.error;
    END IF;

    IF cardinality(p_attempts) > 0 THEN
        INSERT INTO smithers.attempts (
            run_id, node_id, iteration, attempt, state, worker_id, started_at, finished_at, error)
        SELECT a.run_id, a.node_id, a.iteration, a.attempt, a.state,
               CASE WHEN a.state <> 'lost' THEN p_worker_id END, smithers.from_ms(a.started_ms), v_now, a.error
        FROM unnest(p_attempts) AS a
        WHERE v_ok[a.run_no];
    END IF;

    IF cardinality(p_frames) > 0 THEN
        INSERT INTO smithers.frames (run_id, frame_no, created_at, xml_hash, encoding, body)
        SELECT f.run_id, f.frame_no, v_now, f.xml_hash, f.encoding, f.body
        FROM unnest(p_frames) AS f
        WHERE v_ok[f.run_no];
    END IF;

    IF cardinality(p_loops) > 0 THEN
        INSERT INTO smithers.loops (run_id, loop_id, iteration, is_done)
        SELECT l.run_id, l.loop_id, l.iteration, l.is_done
        FROM unnest(p_loops) AS l
        WHERE v_ok[l.run_no]
        ON CONFLICT (run_id, loop_id) DO UPDATE SET iteration = excluded.iteration, is_done = excluded.is_done;
    END IF;

    IF cardinality(p_approvals) > 0 THEN
        -- Asked again after a resume: open again. Withdrawn or timed out: only while nobody has decided.
        INSERT INTO smithers.approvals AS old (
            run_id, node_id, iteration, status, request, requested_at, decided_at, decided_by, note)
        SELECT a.run_id, a.node_id, a.iteration, a.status, a.request, v_now,
               CASE WHEN a.status <> 'requested' THEN v_now END, a.decided_by, a.note
        FROM unnest(p_approvals) AS a
        WHERE v_ok[a.run_no]
        ON CONFLICT (run_id, node_id, iteration) DO UPDATE SET
            status = excluded.status,
            request = CASE WHEN excluded.status = 'requested' THEN excluded.request ELSE old.request END,
            requested_at = CASE WHEN excluded.status = 'requested' THEN v_now ELSE old.requested_at END,
            decided_at = excluded.decided_at, decided_by = excluded.decided_by, note = excluded.note, decision = NULL
        WHERE old.status = 'requested' OR excluded.status = 'requested';
    END IF;

    IF cardinality(p_signals) > 0 THEN
        UPDATE smithers.signals AS s SET consumed_by = c.node_id, consumed_iteration = c.iteration
        FROM unnest(p_signals) AS c
        WHERE s.run_id = c.run_id AND s.seq = c.seq AND v_ok[c.run_no];
    END IF;

    IF cardinality(p_tries) > 0 THEN
        INSERT INTO smithers.tries (run_id, try_id, phase, is_done, problem)
        SELECT t.run_id, t.try_id, t.phase, t.is_done, t.problem
        FROM unnest(p_tries) AS t
        WHERE v_ok[t.run_no]
        ON CONFLICT (run_id, try_id) DO UPDATE SET
            phase = excluded.phase, is_done = excluded.is_done, problem = excluded.problem;
    END IF;

    IF cardinality(p_tool_calls) > 0 THEN
        -- A call that began and ended between two commits comes as its end alone, and says how long it took.
        INSERT INTO smithers.tool_calls AS old (
            run_id, node_id, iteration, attempt, call_no, kind, tool_name, state, is_side_effect, is_idempotent, input,
            output, error, started_at, finished_at, parent_call_no, beside_call_no)
        SELECT t.run_id, t.node_id, t.iteration, t.attempt, t.call_no, t.kind, t.tool_name, t.state, t.is_side_effect,
               t.is_idempotent, t.input, t.output, t.error, v_now - t.took_ms * interval '1 millisecond',
               CASE WHEN t.state <> 'started' THEN v_now END, t.parent_call_no, t.beside_call_no
        FROM unnest(p_tool_calls) AS t
        WHERE v_ok[t.run_no]
        ON CONFLICT (run_id, node_id, iteration, attempt, call_no) DO UPDATE SET
            state = excluded.state, output = excluded.output, error = excluded.error,
            finished_at = excluded.finished_at;
    END IF;

    IF cardinality(p_cached) > 0 THEN
        -- In the order of the keys: groups that keep the same ones never wait for each other in a circle.
        INSERT INTO smithers.cached_outputs (cache_key, output, run_id, node_id, created_at, expires_at)
        SELECT DISTINCT ON (o.cache_key) o.cache_key, o.output, o.run_id, o.node_id, v_now,
               v_now + o.ttl_ms * interval '1 millisecond'
        FROM unnest(p_cached) AS o
        WHERE v_ok[o.run_no]
        ORDER BY o.cache_key
        ON CONFLICT (cache_key) DO UPDATE SET
            output = excluded.output, run_id = excluded.run_id, node_id = excluded.node_id,
            created_at = excluded.created_at, expires_at = excluded.expires_at;
    END IF;

    -- Last: a child may start only beside a parent whose own change stands.
    FOREACH v_child IN ARRAY p_children LOOP
        IF v_ok[v_child.run_no] THEN
            PERFORM smithers.change_child_v1(v_child, v_now);
        END IF;
    END LOOP;

    FOR i IN 1..v_count LOOP
        CONTINUE WHEN outcomes[i] IS NOT NULL;
        -- Not among the locked: held by another writer, or gone.
        SELECT CASE WHEN r.epoch = p_runs[i].epoch THEN 'locked' ELSE 'lost' END INTO v_word
        FROM smithers.runs AS r WHERE r.run_id = p_runs[i].run_id;
        outcomes[i] := coalesce(v_word, 'lost');
    END LOOP;
    COMMIT;
    -- As require_replicated_v1, which says why.
    IF clock_timestamp() - statement_timestamp() >= 0.9 * nullif(current_setting('statement_timeout'), '0')::interval THEN
        RAISE EXCEPTION 'the commit took too long: it may be on no synchronous standby' USING ERRCODE = '08006';
    END IF;
    IF 'committed' = ANY (outcomes) AND pg_notification_queue_usage() < 0.9 THEN
        v_word := set_config('synchronous_commit', 'off', true);
        FOR i IN 1..cardinality(p_channels) LOOP
            v_word := pg_notify(p_channels[i], p_payloads[i])::text;  -- an expression, where PERFORM is a query
        END LOOP;
    END IF;
END
$$;
