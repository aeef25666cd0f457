-- begin_attempts: remembers which messages are being tried, before they are.
--
-- In:  {worker, message_ids, alone, ended, survived_s}. `ended` are crossed out by the way (end_attempts), so that trying
--      messages one by one takes one call between two of them.
-- Out: one row per message id: attempts NULL if no unfinished attempt of it is remembered, else how many of its attempts
--      alone did not end. With `alone` each message is begun, and its attempt counts; without, only those with NULL are
--      begun, and theirs count for nothing but being remembered: which of the company did it is not known.
--      An attempt that began less than `survived_s` ago ended too: had its environment died, the message would still be
--      invisible.
CREATE OR REPLACE FUNCTION spillway.begin_attempts(p_call jsonb)
RETURNS TABLE (message_id text, attempts integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    alone constant boolean := (p_call ->> 'alone')::boolean;
    survivors_since constant timestamptz := clock_timestamp() - make_interval(secs => (p_call ->> 'survived_s')::float8);
    -- Most often one or none; an array keeps the plan simple.
    ended constant text[] := ARRAY(SELECT jsonb_array_elements_text(p_call -> 'ended'));
BEGIN
    -- Batches that share messages wait for each other here, in order, and nowhere else: so they never deadlock.
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT DISTINCT m.message_id COLLATE "C" AS message_id
        FROM jsonb_array_elements_text(p_call -> 'message_ids') AS m(message_id)
    ), remembered AS MATERIALIZED (
        SELECT t.message_id, t.attempts FROM attempts t JOIN asked USING (message_id)
        WHERE t.last_at <= survivors_since AND t.message_id <> ALL (ended)
    ), begun AS (
        INSERT INTO attempts AS t (message_id, worker, attempts, last_at)
        SELECT asked.message_id, p_call ->> 'worker', alone::integer, clock_timestamp()
        FROM asked LEFT JOIN remembered r USING (message_id)
        WHERE alone OR r.message_id IS NULL
        ORDER BY asked.message_id
        ON CONFLICT (message_id) DO UPDATE SET
            attempts = alone::integer
                + CASE WHEN t.last_at > survivors_since OR t.message_id = ANY (ended) THEN 0 ELSE t.attempts END,
            last_at = excluded.last_at
    )
    SELECT asked.message_id, r.attempts FROM asked LEFT JOIN remembered r USING (message_id);
    IF ended <> '{}' THEN
        PERFORM end_attempts((p_call -> 'ended') - ARRAY(SELECT jsonb_array_elements_text(p_call -> 'message_ids')));
    END IF;
END
$$;

-- end_attempts: these attempts ended, in whatever way. In: a JSON array of message ids. Out: how many were remembered.
CREATE OR REPLACE FUNCTION spillway.end_attempts(p_message_ids jsonb)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
AS $$
DECLARE
    deleted integer;
BEGIN
    -- Waits for nobody; a row that another batch holds right now is being begun again.
    DELETE FROM attempts WHERE message_id IN (
        SELECT t.message_id FROM attempts t
        WHERE t.message_id IN (SELECT jsonb_array_elements_text(p_message_ids))
        FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;

REVOKE ALL ON FUNCTION spillway.begin_attempts(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION spillway.end_attempts(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.begin_attempts(jsonb) TO spillway_worker;
GRANT EXECUTE ON FUNCTION spillway.end_attempts(jsonb) TO spillway_worker;
