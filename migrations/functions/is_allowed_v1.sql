-- Say whether a credential may answer a request. p_scopes null: the server has no credentials, and anybody may.
CREATE FUNCTION smithers.is_allowed_v1(p_request jsonb, p_user text, p_scopes text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT p_scopes IS NULL OR (
        (coalesce(jsonb_typeof(p_request -> 'allowedUsers'), '') <> 'array'
            OR (p_request -> 'allowedUsers') ? coalesce(p_user, ''))
        AND (coalesce(jsonb_typeof(p_request -> 'allowedScopes'), '') <> 'array' OR '*' = ANY (p_scopes)
            OR (p_request -> 'allowedScopes') ?| p_scopes))
$$;
