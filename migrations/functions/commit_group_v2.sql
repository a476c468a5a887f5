-- What one commit says of a run: as run_change_v1, and whether a cancel must leave time to clean up.
CREATE TYPE smithers.run_change_v2 AS (
    run_id text, epoch bigint, commit_no bigint, expected_seq bigint, is_cancelling boolean, status text,
    is_released boolean, due_ms bigint, event_count integer, last_frame_no integer, is_cleared boolean,
    error text, output_node_id text, output_iteration integer,
    has_cleanup boolean);       -- null: no
CREATE TYPE smithers.tool_call_change_v1 AS (
    run_no integer, run_id text, node_id text, iteration integer, attempt integer, call_no integer,
    kind text,                  -- tool or model
    tool_name text,
    state text,                 -- started, finished or failed
    is_side_effect boolean, is_idempotent boolean, input text, output text, error text,
    took_ms bigint);            -- until this change
CREATE TYPE smithers.try_change_v1 AS (run_no integer, run_id text, try_id text, phase text, is_done boolean, problem text);
CREATE TYPE smithers.child_change_v1 AS (
    run_no integer, run_id text,
    node_id text,               -- whose output the child's will be; null: this run goes on as the other
    iteration integer, child_run_id text,
    is_abandoned boolean,       -- not to be started: nobody waits for it any more
    workflow_name text, workflow_path text, workflow_export text, source_hash text,
    input text, config text, auth text, trace_context text,
    carried text,               -- with a null node_id: the state that it goes on with
    queue text,                 -- null: the parent's
    is_solo boolean,
    head text, tail text);      -- event 0, around its time
CREATE TYPE smithers.cached_output_change_v1 AS (
    run_no integer, run_id text, node_id text, cache_key text, output text,
    ttl_ms bigint);             -- null: for good

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

-- Start a child, take one up again that its parent tries anew, let go of one, or start what a run goes on as. The caller
-- holds the parent's row. A child has one id for each node of its parent, so that no crash makes two of it.
CREATE FUNCTION smithers.change_child_v1(p_child smithers.child_change_v1, p_now timestamptz) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_parent smithers.runs%ROWTYPE;
    v_known smithers.children%ROWTYPE;
    v_outcome text;
BEGIN
    SELECT * INTO v_parent FROM smithers.runs r WHERE r.run_id = p_child.run_id;
    IF p_child.node_id IS NOT NULL THEN
        SELECT * INTO v_known FROM smithers.children k
            WHERE k.run_id = p_child.run_id AND k.node_id = p_child.node_id AND k.iteration = p_child.iteration;
    END IF;
    IF p_child.is_abandoned THEN
        UPDATE smithers.runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, p_now),
            due_at = CASE WHEN r.owner_id IS NULL THEN p_now ELSE r.due_at END
        WHERE r.run_id = v_known.child_run_id AND r.status NOT IN ('finished', 'failed', 'cancelled', 'continued');
        RETURN;
    END IF;
    IF v_known.child_run_id IS NOT NULL THEN
        SELECT o.outcome INTO v_outcome FROM smithers.resume_run_v1(v_known.child_run_id, p_child.source_hash,
            p_child.workflow_path, p_child.workflow_export, NULL, '[]') AS o;
        IF v_outcome = 'finished' THEN
            PERFORM smithers.tell_parent_v1(v_known.child_run_id, p_now);
        ELSE
            UPDATE smithers.children k SET status = NULL, output = NULL, error = NULL, ended_at = NULL
            WHERE k.run_id = p_child.run_id AND k.node_id = p_child.node_id AND k.iteration = p_child.iteration;
        END IF;
        RETURN;
    END IF;

    -- A name that is taken is the constraint's to refuse.
    INSERT INTO smithers.runs (
        run_id, status, queue, priority, due_at, last_seq, created_at, is_solo, parent_run_id)
    VALUES (p_child.child_run_id, 'queued', coalesce(p_child.queue, v_parent.queue), v_parent.priority, p_now, 0, p_now,
        p_child.is_solo, CASE WHEN p_child.node_id IS NULL THEN v_parent.parent_run_id ELSE p_child.run_id END);
    INSERT INTO smithers.run_requests (
        run_id, workflow_name, workflow_path, workflow_export, source_hash, input, config, auth, trace_context,
        parent_run_id, created_at, carried)
    VALUES (p_child.child_run_id, p_child.workflow_name, p_child.workflow_path, p_child.workflow_export,
        p_child.source_hash, p_child.input, p_child.config, p_child.auth, p_child.trace_context, p_child.run_id, p_now,
        p_child.carried);
    INSERT INTO smithers.events (run_id, seq, epoch, payload)
    VALUES (p_child.child_run_id, 0, 0, p_child.head || smithers.to_ms(p_now)::text || p_child.tail);
    IF p_child.node_id IS NULL THEN  -- who waited for this run waits for the other
        UPDATE smithers.children k SET child_run_id = p_child.child_run_id
        WHERE k.run_id = v_parent.parent_run_id AND k.child_run_id = p_child.run_id;
    ELSE
        INSERT INTO smithers.children (run_id, node_id, iteration, child_run_id)
        VALUES (p_child.run_id, p_child.node_id, p_child.iteration, p_child.child_run_id);
        UPDATE smithers.runs SET is_parent = true WHERE run_id = p_child.run_id AND is_parent IS NULL;
    END IF;
END
$$;

-- Write down at a parent how its child ended, and wake the parent. The caller holds the child's row.
CREATE FUNCTION smithers.tell_parent_v1(p_run_id text, p_now timestamptz) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_child smithers.runs%ROWTYPE;
    v_status text;
    v_node smithers.children%ROWTYPE;
BEGIN
    SELECT * INTO v_child FROM smithers.runs r WHERE r.run_id = p_run_id;
    SELECT r.status INTO v_status FROM smithers.runs r WHERE r.run_id = v_child.parent_run_id FOR NO KEY UPDATE;
    UPDATE smithers.children k SET status = v_child.status, error = v_child.error, ended_at = p_now, output = (
        SELECT n.output FROM smithers.nodes n WHERE n.run_id = p_run_id
            AND n.node_id = v_child.output_node_id AND n.iteration = v_child.output_iteration)
    WHERE k.run_id = v_child.parent_run_id AND k.child_run_id = p_run_id
    RETURNING * INTO v_node;
    IF v_node.run_id IS NULL OR v_status IN ('finished', 'failed', 'cancelled', 'continued') THEN RETURN; END IF;
    PERFORM smithers.add_event_v1(v_node.run_id, 'SubflowEnded', p_now, ',"nodeId":' || to_json(v_node.node_id)::text
        || ',"iteration":' || v_node.iteration::text || ',"childRunId":' || to_json(p_run_id)::text
        || ',"status":' || to_json(v_child.status)::text);
    UPDATE smithers.runs SET due_at = p_now WHERE run_id = v_node.run_id AND owner_id IS NULL;
END
$$;

-- Let the end of a run reach its kin, whoever ends it: a worker, a gateway, the one who buries a worker, older code. At
-- the commit, when all that the end has written is there. Children that are under way are asked to end: each is
-- claimed for it, and asks its own.
CREATE FUNCTION smithers.end_kin_v1() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := smithers.clock();
BEGIN
    IF NEW.is_parent THEN
        UPDATE smithers.runs r SET cancel_requested_at = coalesce(r.cancel_requested_at, v_now),
            due_at = CASE WHEN r.owner_id IS NULL THEN v_now ELSE r.due_at END
        FROM smithers.children k
        WHERE k.run_id = NEW.run_id AND k.status IS NULL AND r.run_id = k.child_run_id
            AND r.status NOT IN ('finished', 'failed', 'cancelled', 'continued');
    END IF;
    IF NEW.parent_run_id IS NOT NULL AND NEW.status <> 'continued' THEN
        PERFORM smithers.tell_parent_v1(NEW.run_id, v_now);
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER runs_end_kin AFTER UPDATE OF status ON smithers.runs
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((NEW.parent_run_id IS NOT NULL OR NEW.is_parent) AND NEW.status <> OLD.status
        AND NEW.status IN ('finished', 'failed', 'cancelled', 'continued'))
    EXECUTE FUNCTION smithers.end_kin_v1();

-- Commit what is ready of many runs of one owner in one transaction and one round trip.
--
-- The lock is the first statement: it makes a displaced owner see the new epoch (a join on the epoch without it reads
-- the snapshot, and nothing makes it look again). SKIP LOCKED: a run that a gateway writes to right now is left for the
-- next group instead of holding up all others. Every statement after it has a snapshot of its own, taken under the lock.
-- Outcomes, one for each run: committed; stale (something came in that the plan did not know of); lost (another
-- owner); locked (try again).
-- A change may come twice: its sender saw the connection break and does not know, or a copy was stuck on the way and
-- arrives late. The number of the run's last commit tells: it is written once, and answered as committed again.
CREATE FUNCTION smithers.commit_group_v2(
    p_worker_id uuid,
    p_runs smithers.run_change_v2[], p_events smithers.event_change_v1[], p_nodes smithers.node_change_v1[],
    p_attempts smithers.attempt_change_v1[], p_frames smithers.frame_change_v1[], p_loops smithers.loop_change_v1[],
    p_approvals smithers.approval_change_v1[], p_signals smithers.signal_change_v1[],
    p_tries smithers.try_change_v1[], p_tool_calls smithers.tool_call_change_v1[], p_children smithers.child_change_v1[],
    p_cached smithers.cached_output_change_v1[])
RETURNS TABLE (run_no integer, outcome text, last_seq bigint, now_ms bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_count integer := cardinality(p_runs);
    v_outcome text[] := array_fill(NULL::text, ARRAY[v_count]);
    v_base bigint[] := array_fill(0::bigint, ARRAY[v_count]);
    v_last bigint[] := v_base;
    v_epoch bigint[] := array_fill(0::bigint, ARRAY[v_count]);
    v_ok boolean[] := array_fill(false, ARRAY[v_count]);
    v_now timestamptz;
    v_now_text text;
    v_run record;
    v_child smithers.child_change_v1;
BEGIN
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
        v_last[v_run.n] := v_run.last_seq;
        v_epoch[v_run.n] := v_run.epoch;
        IF v_run.is_repeated THEN  -- before the owner: what it gave back with that commit is nobody's
            v_outcome[v_run.n] := 'committed';
        ELSIF v_run.is_ours IS NOT TRUE THEN
            v_outcome[v_run.n] := 'lost';
        ELSIF v_run.ends_kin AND NOT smithers.hold_kin_v1(p_runs[v_run.n].run_id) THEN
            v_outcome[v_run.n] := 'locked';
        ELSIF v_run.is_fresh THEN
            v_outcome[v_run.n] := 'committed';
            v_ok[v_run.n] := true;
            v_last[v_run.n] := v_run.last_seq + v_run.event_count;
        ELSE
            v_outcome[v_run.n] := 'stale';
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
            output, error, started_at, finished_at)
        SELECT t.run_id, t.node_id, t.iteration, t.attempt, t.call_no, t.kind, t.tool_name, t.state, t.is_side_effect,
               t.is_idempotent, t.input, t.output, t.error, v_now - t.took_ms * interval '1 millisecond',
               CASE WHEN t.state <> 'started' THEN v_now END
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
        run_no := i;
        last_seq := v_last[i];
        outcome := v_outcome[i];
        IF outcome IS NULL THEN  -- not among the locked: held by another writer, or gone
            SELECT CASE WHEN r.epoch = p_runs[i].epoch THEN 'locked' ELSE 'lost' END INTO outcome
            FROM smithers.runs AS r WHERE r.run_id = p_runs[i].run_id;
            outcome := coalesce(outcome, 'lost');
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
