-- apply_inventory: books one batch of stock movements; what is available never falls below zero.
--
-- In:  a JSON array of {id, type, document_id, occurred_at, lines}; lines is {SKU: pieces}, absent for a release.
-- Out: one spillway.outcome per distinct id:
--        applied    booked; of a release that came before its reservation: noted
--        stale      a reservation that had been released already: it takes nothing
--        rejected   recorded with the event and final; reason = insufficient_stock | already_received |
--                   already_reserved | already_released
--        duplicate  the id had been claimed before: nothing was changed, whatever had become of it
--        invalid    the record breaks a rule of the tables; reason = SQLSTATE. Nothing was claimed or changed for it.
-- A batch has the same result as its events one at a time in their order in the array; each is all or nothing.
--
-- What waits for what, in this order in every call, so overlapping batches queue up and never deadlock:
--   1. claims, by event id    2. documents, by kind and id    3. lock stripes, ascending    4. everything else
-- Stripes come third because only its document says what a release gives back.
--
-- The snapshot trap: under READ COMMITTED a statement's snapshot is taken before the locks it asks for are granted. A
-- statement that locks and then reads what is available reads the past, and oversells. So the locks have a statement
-- to themselves, and each statement of a VOLATILE function has a snapshot of its own. The writes are relative and
-- under a CHECK all the same.
--
-- The lock budget: the shared lock table holds about max_locks_per_transaction x (max_connections +
-- max_prepared_transactions) locks, of all sessions together: 64 x 100 = 6,400 by PostgreSQL's defaults (in fact it
-- failed at 14,500: it grows into memory that is spare). A lock per SKU could be 1,000 events x 200 lines in one batch.
-- With 512 stripes no batch holds more than 512 locks, and ten batches at once (InventoryMaximumConcurrency) no more
-- than 5,120.
CREATE OR REPLACE FUNCTION spillway.apply_inventory(p_batch jsonb)
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
        answers := book_stock(p_batch);
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        -- The last resort, for what the predicates do not know: halves, then quarters, down to the one at fault. Few
        -- bad records cost few subtransactions; past 64 in one transaction PostgreSQL slows every other session down.
        -- The second half's claims come after the first half's stripes here: should two such batches deadlock, the call
        -- fails as a conflict and is tried again. The message text is left out: it may quote the value.
        half := jsonb_array_length(p_batch) / 2;
        IF half = 0 THEN
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, place = CONSTRAINT_NAME;
            RETURN NEXT (
                CASE WHEN pg_input_is_valid(p_batch -> 0 ->> 'id', 'uuid') THEN (p_batch -> 0 ->> 'id')::uuid END,
                'invalid', code, CASE WHEN place <> '' THEN 'constraint ' || place ELSE 'value out of range or malformed' END
            )::spillway.outcome;
            RETURN;
        END IF;
        RETURN QUERY SELECT * FROM apply_inventory(jsonb_path_query_array(p_batch, '$[0 to $last]', jsonb_build_object('last', half - 1)));
        RETURN QUERY SELECT * FROM apply_inventory(jsonb_path_query_array(p_batch, '$[$first to last]', jsonb_build_object('first', half)));
        RETURN;
    END;
    RETURN QUERY SELECT * FROM unnest(answers);
END
$$;

-- The work itself: answers for the whole batch, or raises and has changed nothing.
CREATE OR REPLACE FUNCTION spillway.book_stock(p_batch jsonb)
RETURNS spillway.outcome[]
LANGUAGE plpgsql VOLATILE
SET search_path = spillway, pg_temp
-- Every row is found by its key. A plan made while a table was small would scan it, and be kept while it grows.
SET enable_seqscan = off
AS $$
DECLARE
    lock_class CONSTANT integer := 1937010539;  -- "stok" in ASCII: the first key of this worker's advisory locks
    stripe_mask CONSTANT integer := 511;        -- stripes - 1

    answers spillway.outcome[];

    -- Events, by their place in the batch.
    e_id uuid[];
    e_type text[];
    e_document text[];
    e_time timestamptz[];
    e_lines jsonb[];
    e_doc integer[];        -- place of its document
    -- Documents.
    d_first integer[];      -- the first event about it
    d_new boolean[];        -- that event's row was inserted just now
    d_state text[];         -- null: not known; unmet: released, and no reservation has come yet
    d_lines jsonb[];
    d_opened integer[];     -- the event of this batch that received or reserved it
    d_released integer[];   -- the event of this batch that released it
    d_low integer[];        -- its lines, where this batch reserved it
    d_high integer[];
    -- Lines, by event and SKU.
    l_event integer[];
    l_sku integer[];        -- place of its SKU
    l_quantity bigint[];
    -- SKUs, sorted.
    s_sku text[];
    s_available bigint[];
    stripes integer[];
    -- What is to be booked: an event and the lines that it moves.
    b_event integer[] := '{}';
    b_low integer[] := '{}';
    b_high integer[] := '{}';
    -- What was not applied.
    r_event integer[] := '{}';
    r_reason text[] := '{}';  -- null: stale
    r_sku text[] := '{}';     -- what there was too little of
    r_available bigint[] := '{}';

    d integer;
    low integer;
    high integer;
    next_line integer := 1;
    verdict text;
    short integer;          -- the line that asked for too much
    moved record;
BEGIN
    WITH input AS MATERIALIZED (
        -- Scalars come in as text and are judged before they are cast: one bad record must not fail the others.
        SELECT DISTINCT ON (r.id) r.*,
            CASE
                WHEN r.id IS NULL THEN 'id: expected a UUID'
                WHEN (r.type IN ('stock.received', 'stock.reserved', 'stock.released')) IS NOT TRUE THEN 'type: expected a stock event'
                WHEN r.document_id IS NULL OR length(r.document_id) NOT BETWEEN 1 AND 64 THEN 'document_id: expected 1 to 64 characters'
                WHEN pg_input_is_valid(r.occurred_at, 'timestamptz') IS NOT TRUE THEN 'occurred_at: expected a timestamp'
                WHEN r.type = 'stock.released' THEN CASE WHEN r.lines IS NOT NULL THEN 'lines: expected none' END
                WHEN (jsonb_typeof(r.lines) = 'object') IS NOT TRUE THEN 'lines: expected an object'
                WHEN (SELECT count(*) FROM jsonb_object_keys(r.lines)) NOT BETWEEN 1 AND 200 THEN 'lines: expected 1 to 200 SKUs'
                WHEN EXISTS (SELECT FROM jsonb_object_keys(r.lines) AS sku WHERE length(sku) NOT BETWEEN 1 AND 64)
                    THEN 'lines: expected SKUs of 1 to 64 characters'
                WHEN EXISTS (
                    SELECT FROM jsonb_each_text(r.lines) AS line
                    WHERE CASE WHEN pg_input_is_valid(line.value, 'integer') THEN line.value::integer < 1 ELSE true END
                ) THEN 'lines: expected integers >= 1'
            END AS defect
        FROM ROWS FROM (
            jsonb_to_recordset(p_batch) AS (id uuid, type text, document_id text, occurred_at text, lines jsonb)
        ) WITH ORDINALITY AS r(id, type, document_id, occurred_at, lines, place)
        ORDER BY r.id, r.place
    ), claimed AS (
        INSERT INTO inventory_events (event_id)
        -- "= true" keeps the planner's guess sane: after a bare IS NULL it expects one row and joins by nested loops.
        SELECT i.id FROM input i WHERE (i.defect IS NULL) = true ORDER BY i.id
        ON CONFLICT DO NOTHING
        RETURNING event_id
    ), sorted AS (
        SELECT i.*, c.event_id IS NOT NULL AS ours FROM input i LEFT JOIN claimed c ON c.event_id = i.id ORDER BY i.place
    )
    SELECT
        array_agg(s.id) FILTER (WHERE s.ours),
        array_agg(s.type) FILTER (WHERE s.ours),
        array_agg(s.document_id) FILTER (WHERE s.ours),
        array_agg(s.occurred_at::timestamptz) FILTER (WHERE s.ours),
        array_agg(s.lines) FILTER (WHERE s.ours),
        array_agg(ROW(
            s.id,
            CASE WHEN s.defect IS NULL THEN 'duplicate' ELSE 'invalid' END,
            CASE WHEN s.defect IS NOT NULL THEN '22023' END,
            s.defect)::spillway.outcome) FILTER (WHERE NOT s.ours)
    INTO e_id, e_type, e_document, e_time, e_lines, answers
    FROM sorted s;

    IF e_id IS NULL THEN
        RETURN answers;
    END IF;

    -- A document is written as its first event would have it, which is nearly always how it stays. One that is
    -- there already is locked instead: DO UPDATE locks a row even where its WHERE says no.
    WITH about AS MATERIALIZED (
        SELECT e.*, CASE e.type WHEN 'stock.received' THEN 'receipt' ELSE 'reservation' END AS kind
        FROM unnest(e_id, e_type, e_document, e_lines) WITH ORDINALITY AS e(id, type, document_id, lines, n)
    ), numbered AS MATERIALIZED (
        SELECT a.*, dense_rank() OVER (ORDER BY a.kind, a.document_id COLLATE "C") AS d FROM about a
    ), opening AS MATERIALIZED (
        SELECT DISTINCT ON (o.d) o.* FROM numbered o ORDER BY o.d, o.n
    ), written AS (
        INSERT INTO stock_documents AS t (kind, document_id, state, lines, opened_by, released_by)
        SELECT f.kind, f.document_id, split_part(f.type, '.', 2), f.lines,
               CASE WHEN f.type <> 'stock.released' THEN f.id END, CASE WHEN f.type = 'stock.released' THEN f.id END
        FROM opening f ORDER BY f.d
        ON CONFLICT (kind, document_id) DO UPDATE SET state = excluded.state WHERE false
        RETURNING t.kind, t.document_id
    ), documents AS (
        SELECT f.d, f.n, w.kind IS NOT NULL AS is_new
        FROM opening f LEFT JOIN written w ON w.kind = f.kind AND w.document_id = f.document_id
        ORDER BY f.d
    )
    SELECT
        (SELECT array_agg(o.d::integer ORDER BY o.n) FROM numbered o),
        (SELECT array_agg(t.n::integer) FROM documents t),
        (SELECT array_agg(t.is_new) FROM documents t)
    INTO e_doc, d_first, d_new;

    IF false = ANY (d_new) THEN
        SELECT array_agg(CASE WHEN t.opened_by IS NULL AND t.state = 'released' THEN 'unmet' ELSE t.state END ORDER BY f.d),
               array_agg(CASE WHEN t.state = 'reserved' THEN t.lines END ORDER BY f.d)
        INTO d_state, d_lines
        FROM unnest(d_first, d_new) WITH ORDINALITY AS f(n, is_new, d)
        LEFT JOIN stock_documents t ON NOT f.is_new AND t.document_id = e_document[f.n]
            AND t.kind = CASE e_type[f.n] WHEN 'stock.received' THEN 'receipt' ELSE 'reservation' END;
    ELSE
        d_state := array_fill(NULL::text, ARRAY[cardinality(d_first)]);
        d_lines := array_fill(NULL::jsonb, ARRAY[cardinality(d_first)]);
    END IF;
    d_opened := array_fill(NULL::integer, ARRAY[cardinality(d_first)]);
    d_released := d_opened;
    d_low := d_opened;
    d_high := d_opened;

    WITH line AS MATERIALIZED (
        SELECT e.n, l.key AS sku, l.value::bigint AS quantity, dense_rank() OVER (ORDER BY l.key COLLATE "C") AS s
        FROM unnest(e_lines, e_doc) WITH ORDINALITY AS e(lines, doc, n)
        CROSS JOIN LATERAL jsonb_each_text(coalesce(e.lines, d_lines[e.doc])) AS l
    ), sku AS MATERIALIZED (
        SELECT DISTINCT l.s, l.sku FROM line l
    )
    SELECT a.events, a.skus, a.quantities, b.skus, b.stripes
    INTO l_event, l_sku, l_quantity, s_sku, stripes
    FROM (
        SELECT array_agg(l.n::integer) AS events, array_agg(l.s::integer) AS skus, array_agg(l.quantity) AS quantities
        FROM (SELECT * FROM line ORDER BY n, s) AS l
    ) AS a, (
        SELECT array_agg(k.sku ORDER BY k.s) AS skus,
               array_agg(DISTINCT hashtext(k.sku) & stripe_mask ORDER BY hashtext(k.sku) & stripe_mask) AS stripes
        FROM sku k
    ) AS b;

    -- Nothing else may move into this statement, nor this statement into another: see the snapshot trap.
    PERFORM pg_advisory_xact_lock(lock_class, stripe) FROM unnest(stripes) AS stripe;

    SELECT array_agg(coalesce(t.available, 0) ORDER BY k.s)
    INTO s_available
    FROM unnest(s_sku) WITH ORDINALITY AS k(sku, s) LEFT JOIN stock t ON t.sku = k.sku;

    FOR n IN 1 .. cardinality(e_id) LOOP
        d := e_doc[n];
        low := next_line;
        WHILE l_event[next_line] = n LOOP
            next_line := next_line + 1;
        END LOOP;
        high := next_line - 1;
        verdict := NULL;
        short := NULL;

        IF e_type[n] = 'stock.received' THEN
            IF d_state[d] IS NULL THEN
                d_state[d] := 'received';
                d_opened[d] := n;
            ELSE
                verdict := 'already_received';
            END IF;
        ELSIF e_type[n] = 'stock.reserved' THEN
            IF d_state[d] IS NULL THEN
                FOR k IN low .. high LOOP
                    IF s_available[l_sku[k]] < l_quantity[k] THEN
                        verdict := 'insufficient_stock';
                        short := k;
                        EXIT;
                    END IF;
                END LOOP;
                IF verdict IS NULL THEN
                    d_state[d] := 'reserved';
                    d_opened[d] := n;
                    d_low[d] := low;
                    d_high[d] := high;
                END IF;
            ELSIF d_state[d] = 'reserved' THEN
                verdict := 'already_reserved';
            ELSE
                IF d_state[d] = 'unmet' THEN
                    d_state[d] := 'released';
                    d_opened[d] := n;
                END IF;
                verdict := 'stale';
            END IF;
        ELSIF d_state[d] IS NULL THEN
            d_state[d] := 'unmet';
            d_released[d] := n;
        ELSIF d_state[d] = 'reserved' THEN
            d_state[d] := 'released';
            d_released[d] := n;
            -- Its lines came from its document; from this batch, where that reserved it.
            low := coalesce(d_low[d], low);
            high := coalesce(d_high[d], high);
        ELSE
            verdict := 'already_released';
        END IF;

        IF verdict IS NOT NULL THEN
            r_event := r_event || n;
            r_reason := r_reason || nullif(verdict, 'stale');
            r_sku := r_sku || s_sku[l_sku[short]];
            r_available := r_available || s_available[l_sku[short]];
        ELSIF low <= high THEN
            FOR k IN low .. high LOOP
                s_available[l_sku[k]] := s_available[l_sku[k]]
                    + CASE e_type[n] WHEN 'stock.reserved' THEN -l_quantity[k] ELSE l_quantity[k] END;
            END LOOP;
            b_event := b_event || n;
            b_low := b_low || low;
            b_high := b_high || high;
        END IF;
    END LOOP;

    IF b_event <> '{}' THEN
        INSERT INTO stock_ledger (sku, movement, quantity, event_id, document_id, occurred_at)
        SELECT s_sku[l_sku[k]], split_part(e_type[b.n], '.', 2),
               CASE e_type[b.n] WHEN 'stock.reserved' THEN -l_quantity[k] ELSE l_quantity[k] END,
               e_id[b.n], e_document[b.n], e_time[b.n]
        FROM unnest(b_event, b_low, b_high) WITH ORDINALITY AS b(n, low, high, place)
        CROSS JOIN LATERAL generate_series(b.low, b.high) AS k
        ORDER BY b.place, k;

        -- Here and below a row at a time, by its key: one UPDATE that joined the arrays was no faster, and ten times
        -- slower whenever the planner misjudged them.
        FOR moved IN
            SELECT l_sku[k] AS s,
                   coalesce(sum(l_quantity[k]) FILTER (WHERE e_type[b.n] = 'stock.received'), 0) AS received,
                   coalesce(sum(l_quantity[k]) FILTER (WHERE e_type[b.n] = 'stock.reserved'), 0) AS reserved,
                   coalesce(sum(l_quantity[k]) FILTER (WHERE e_type[b.n] = 'stock.released'), 0) AS released
            FROM unnest(b_event, b_low, b_high) AS b(n, low, high)
            CROSS JOIN LATERAL generate_series(b.low, b.high) AS k
            GROUP BY l_sku[k]
        LOOP
            UPDATE stock t
            SET received = t.received + moved.received,
                reserved = t.reserved + moved.reserved,
                released = t.released + moved.released
            WHERE t.sku = s_sku[moved.s];
            IF NOT FOUND THEN
                INSERT INTO stock (sku, received, reserved, released)
                VALUES (s_sku[moved.s], moved.received, moved.reserved, moved.released);
            END IF;
        END LOOP;
    END IF;

    -- Documents that did not stay as they were written above; a receipt always does.
    FOR i IN 1 .. cardinality(d_first) LOOP
        IF d_state[i] IS NULL THEN
            DELETE FROM stock_documents t WHERE t.kind = 'reservation' AND t.document_id = e_document[d_first[i]];
        ELSIF NOT d_new[i] THEN
            IF coalesce(d_opened[i], d_released[i]) IS NOT NULL THEN
                UPDATE stock_documents t
                SET state = 'released',
                    lines = coalesce(e_lines[d_opened[i]], t.lines),
                    opened_by = coalesce(e_id[d_opened[i]], t.opened_by),
                    released_by = coalesce(e_id[d_released[i]], t.released_by)
                WHERE t.kind = 'reservation' AND t.document_id = e_document[d_first[i]];
            END IF;
        ELSIF coalesce(d_opened[i], d_released[i]) <> d_first[i] OR d_opened[i] <> d_released[i] THEN
            UPDATE stock_documents t
            SET state = CASE WHEN d_released[i] IS NULL THEN 'reserved' ELSE 'released' END,
                lines = e_lines[d_opened[i]],
                opened_by = e_id[d_opened[i]],
                released_by = e_id[d_released[i]]
            WHERE t.kind = 'reservation' AND t.document_id = e_document[d_first[i]];
        END IF;
    END LOOP;

    FOR r IN 1 .. cardinality(r_event) LOOP
        UPDATE inventory_events t
        SET outcome = CASE WHEN r_reason[r] IS NULL THEN 'stale' ELSE 'rejected' END, reason = r_reason[r],
            sku = r_sku[r], available = r_available[r]
        WHERE t.event_id = e_id[r_event[r]];
    END LOOP;

    SELECT answers || array_agg(ROW(
               e.id,
               CASE WHEN r.n IS NULL THEN 'applied' WHEN r.reason IS NULL THEN 'stale' ELSE 'rejected' END,
               r.reason,
               NULL)::spillway.outcome)
    INTO answers
    FROM unnest(e_id) WITH ORDINALITY AS e(id, n) LEFT JOIN unnest(r_event, r_reason) AS r(n, reason) ON r.n = e.n;
    RETURN answers;
END
$$;

REVOKE ALL ON FUNCTION spillway.book_stock(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION spillway.apply_inventory(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.apply_inventory(jsonb) TO spillway_worker;
