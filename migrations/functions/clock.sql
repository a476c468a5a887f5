-- The only clock that is written down. STABLE although it moves, so that an index may be searched with it; tests put
-- another body here to move time by hand.
CREATE FUNCTION smithers.clock() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT clock_timestamp() $$;

-- Whole milliseconds since 1970, as the wire has them.
CREATE FUNCTION smithers.to_ms(p_at timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT floor(extract(epoch FROM p_at) * 1000)::bigint $$;

CREATE FUNCTION smithers.from_ms(p_ms bigint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT to_timestamp(p_ms / 1000.0) $$;
