-- Start many runs, as start_runs_v1, and tell who claims from their queues, in one round trip: see commit_turns_v1 for why
-- the notifications have a transaction of their own. Where they fail the runs are there: the outcome is not known.
CREATE PROCEDURE smithers.start_and_tell_v1(
    p_starts smithers.run_start_v1[], p_channels text[], p_payloads text[], INOUT new_ids text[])
LANGUAGE plpgsql
AS $$
BEGIN
    SELECT array_agg(s.run_id) INTO new_ids FROM smithers.start_runs_v1(p_starts) AS s;
    COMMIT;
    IF new_ids IS NOT NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM pg_notify(h.channel, h.payload) FROM unnest(p_channels, p_payloads) AS h (channel, payload);
    END IF;
END
$$;
