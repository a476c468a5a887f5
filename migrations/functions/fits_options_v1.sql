-- Say whether a decision answers what was asked: one of the options, or all of them in an order.
CREATE FUNCTION smithers.fits_options_v1(p_request jsonb, p_decision jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT coalesce(CASE p_request ->> 'mode'
        WHEN 'select' THEN jsonb_typeof(p_decision -> 'selected') = 'string'
            AND (p_request -> 'options') ? (p_decision ->> 'selected')
        WHEN 'rank' THEN jsonb_typeof(p_decision -> 'ranked') = 'array'
            AND (p_request -> 'options') @> (p_decision -> 'ranked') AND (p_decision -> 'ranked') @> (p_request -> 'options')
            AND jsonb_array_length(p_decision -> 'ranked') = jsonb_array_length(p_request -> 'options')
        ELSE true END, false)
$$;
