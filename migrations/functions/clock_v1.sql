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

-- An event as it is stored and sent. p_fields: what stands between the time and the correlation, e.g. ',"attempt":1'.
-- The shape is that of smithers.events.event_parts; a test holds the two together.
CREATE FUNCTION smithers.event_v1(p_type text, p_run_id text, p_workflow_name text, p_now_ms bigint, p_fields text)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT '{"type":"' || p_type || '","runId":' || to_json(p_run_id)::text || ',"timestampMs":' || p_now_ms::text
        || p_fields || ',"correlation":{"runId":' || to_json(p_run_id)::text
        || ',"workflowName":' || to_json(p_workflow_name)::text || '}}'
$$;
