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
