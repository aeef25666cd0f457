-- apply_orders: writes one batch of order events, each at most once, highest version wins.
--
-- In:  a JSON array of {id, type, order_id, version, customer, currency, total, items, placed_at,
--      updated_at, cancelled_at, reason}.
-- Out: one spillway.outcome per distinct id:
--        applied    the order's row is now this event's
--        stale      the row already was, or became in this very batch, a newer version's
--        duplicate  the id had been claimed before: nothing was changed
--        invalid    the record breaks a rule of the table; reason = SQLSTATE. Nothing was claimed or changed for it.
--
-- No lock is needed: claims (in id order) come before rows (in order_id order), so overlapping batches queue up and
-- never deadlock, and the upsert reads the latest committed row whatever its snapshot. Equal versions of one order are
-- decided by the greater event id, so the rows do not depend on the order of arrival.
CREATE OR REPLACE FUNCTION spillway.apply_orders(p_batch jsonb)
RETURNS SETOF spillway.outcome
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
AS $$
DECLARE
    answers spillway.outcome[];
    half integer;
    code text;
    place text;
BEGIN
    BEGIN
        WITH input AS MATERIALIZED (
            -- Scalars come in as text and are judged before they are cast: one bad record must not fail the others.
            SELECT DISTINCT ON (r.id) r.*,
                CASE
                    WHEN r.id IS NULL THEN 'id: expected a UUID'
                    WHEN r.order_id IS NULL OR length(r.order_id) NOT BETWEEN 1 AND 64 THEN 'order_id: expected 1 to 64 characters'
                    WHEN r.customer IS NULL OR length(r.customer) NOT BETWEEN 1 AND 64 THEN 'customer: expected 1 to 64 characters'
                    WHEN (r.type IN ('order.placed', 'order.updated', 'order.cancelled')) IS NOT TRUE THEN 'type: expected an order event'
                    WHEN pg_input_is_valid(r.version, 'integer') IS NOT TRUE OR r.version::integer < 1 THEN 'version: expected an integer >= 1'
                    WHEN pg_input_is_valid(r.total, 'bigint') IS NOT TRUE OR r.total::bigint < 0 THEN 'total: expected an integer >= 0'
                    WHEN (r.currency ~ '^[A-Z]{3}$') IS NOT TRUE THEN 'currency: expected three capital letters'
                    WHEN (jsonb_typeof(r.items) = 'array') IS NOT TRUE THEN 'items: expected an array'
                    WHEN pg_input_is_valid(r.placed_at, 'timestamptz') IS NOT TRUE THEN 'placed_at: expected a timestamp'
                    WHEN pg_input_is_valid(r.updated_at, 'timestamptz') IS FALSE THEN 'updated_at: expected a timestamp'
                    WHEN pg_input_is_valid(r.cancelled_at, 'timestamptz') IS FALSE THEN 'cancelled_at: expected a timestamp'
                END AS defect
            FROM jsonb_to_recordset(p_batch) AS r(
                id uuid, type text, order_id text, version text, customer text, currency text, total text,
                items jsonb, placed_at text, updated_at text, cancelled_at text, reason text)
            ORDER BY r.id
        ), claimed AS (
            INSERT INTO order_events (event_id)
            -- "= true" keeps the planner's guess sane: after a bare IS NULL it expected one row and joined by nested loops.
            SELECT i.id FROM input i WHERE (i.defect IS NULL) = true ORDER BY i.id
            ON CONFLICT DO NOTHING
            RETURNING event_id
        ), newest AS (
            SELECT DISTINCT ON (i.order_id) i.*
            FROM input i JOIN claimed c ON c.event_id = i.id
            ORDER BY i.order_id, i.version::integer DESC, i.id DESC
        ), written AS (
            INSERT INTO orders AS o (order_id, version, event_id, status, customer, currency, total, items,
                                     placed_at, updated_at, cancelled_at, reason)
            SELECT n.order_id, n.version::integer, n.id, split_part(n.type, '.', 2), n.customer, n.currency,
                   n.total::bigint, n.items, n.placed_at::timestamptz, n.updated_at::timestamptz,
                   n.cancelled_at::timestamptz, coalesce(n.reason, '')
            FROM newest n ORDER BY n.order_id
            ON CONFLICT (order_id) DO UPDATE SET
                version = excluded.version, event_id = excluded.event_id, status = excluded.status,
                customer = excluded.customer, currency = excluded.currency, total = excluded.total,
                items = excluded.items, placed_at = excluded.placed_at, updated_at = excluded.updated_at,
                cancelled_at = excluded.cancelled_at, reason = excluded.reason
            WHERE (o.version, o.event_id) < (excluded.version, excluded.event_id)
            RETURNING o.event_id
        )
        SELECT array_agg(ROW(
                   i.id,
                   CASE WHEN i.defect IS NOT NULL THEN 'invalid'
                        WHEN c.event_id IS NULL THEN 'duplicate'
                        WHEN w.event_id IS NULL THEN 'stale'
                        ELSE 'applied' END,
                   CASE WHEN i.defect IS NOT NULL THEN '22023' END,
                   i.defect)::spillway.outcome)
        INTO answers
        FROM input i
        LEFT JOIN claimed c ON c.event_id = i.id
        LEFT JOIN written w ON w.event_id = i.id;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        -- The last resort, for what the predicates do not know: halves, then quarters, down to the one at fault. Few
        -- bad records cost few subtransactions; past 64 in one transaction PostgreSQL slows every other session down.
        -- The message text is left out: it may quote the value.
        half := jsonb_array_length(p_batch) / 2;
        IF half = 0 THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, place = CONSTRAINT_NAME;
            RETURN NEXT (
                CASE WHEN pg_input_is_valid(p_batch -> 0 ->> 'id', 'uuid') THEN (p_batch -> 0 ->> 'id')::uuid END,
                'invalid', code, CASE WHEN place <> '' THEN 'constraint ' || place ELSE 'value out of range or malformed' END
            )::spillway.outcome;
            RETURN;
        END IF;
        RETURN QUERY SELECT * FROM apply_orders(jsonb_path_query_array(p_batch, '$[0 to $last]', jsonb_build_object('last', half - 1)));
        RETURN QUERY SELECT * FROM apply_orders(jsonb_path_query_array(p_batch, '$[$first to last]', jsonb_build_object('first', half)));
        RETURN;
    END;
    RETURN QUERY SELECT * FROM unnest(answers);
END
$$;

REVOKE ALL ON FUNCTION spillway.apply_orders(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.apply_orders(jsonb) TO spillway_worker;
