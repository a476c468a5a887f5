-- Raise where what a procedure has just committed may be on no synchronous standby. The timer of a statement is stopped
-- before the commit of a plain one, but runs on through a COMMIT in a procedure: where it goes off while that waits for a
-- standby, Postgres warns, gives the wait up, and the procedure would answer success. As a connection's failure (08006):
-- whether the commit stands is not known. A little before the timer: it has begun before the statement's timestamp was
-- taken. The same call again writes, or locks, a row, and with that waits for the standby, too.
CREATE FUNCTION smithers.require_replicated_v1() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF clock_timestamp() - statement_timestamp()
        >= 0.9 * nullif(current_setting('statement_timeout'), '0')::interval
    THEN
        RAISE EXCEPTION 'the commit took too long: it may be on no synchronous standby' USING ERRCODE = '08006';
    END IF;
END
$$;
