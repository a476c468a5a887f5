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
