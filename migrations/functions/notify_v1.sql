-- Notify others of what has been committed. Never in the transaction that wrote it: one that notifies takes a lock for the
-- whole cluster when it commits, and keeps it over its flush. So the one that matters does not notify, and this one, which
-- comes after it, does not wait for the flush.
-- Nothing is to fail for a notification. The queue of them belongs to the whole cluster, and another application that
-- listens and does not read fills it; asking how full it is also empties what can be emptied.
CREATE FUNCTION smithers.notify_v1(p_channels text[], p_payloads text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM pg_notify(h.channel, h.payload) FROM unnest(p_channels, p_payloads) AS h (channel, payload);
    END IF;
END
$$;
