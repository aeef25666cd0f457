-- apply_audit: appends one batch of audit events, each at most once, to the chains of their streams.
--
-- In:  a JSON array of {id, stream, type, source, time, body}; body is the event's data as canonical JSON text.
-- Out: one spillway.outcome per distinct id:
--        applied    the entry is the next of its stream; entries of one batch follow each other in the batch's order
--        duplicate  the id had been claimed before: nothing was changed
--        invalid    the record breaks a rule of the table; reason = SQLSTATE. Nothing was claimed or changed for it.
--
-- One writer per stream at a time, by locks that are the transaction's: they end with it and pin no proxy session, as
-- pg_advisory_lock would. The order of things:
--   1. Parse, judge, claim the ids and digest the bodies: most of the work, before any lock, so batches do it side by side.
--   2. The locks, alone in their statement: under READ COMMITTED a statement's snapshot is older than the locks it waits
--      for, so a statement that also read the heads would read what was true before the wait.
--   3. Read the heads, chain, append, move the heads.
-- Every batch claims first (in id order) and locks then (in stripe order), so overlapping batches queue up and do not
-- deadlock. Only halves of a batch that failed can: the second claims while the first one's locks are held. Then
-- PostgreSQL ends one of the two calls (40P01), nothing of it stays, and the worker makes it again.
--
-- The lock budget: PostgreSQL's lock table is shared by the whole fleet, and full at about 14,500 locks with its
-- default settings. Streams are hashed onto 128 stripes, so a batch holds at most 128 locks, and 20 batches at once 2,560.

-- What an entry's hash covers:
--   content = SHA-256(event_time || event_id || stream || 00 || type || 00 || source || 00 || body)
--   hash    = SHA-256(previous_hash || sequence || recorded_at || content)
-- previous_hash: 32 bytes, zero for sequence 1. sequence: 8 bytes, signed, big-endian. recorded_at, event_time: likewise,
-- in microseconds since 2000-01-01T00:00:00Z. event_id: 16 bytes. stream, type, source, body: UTF-8; a PostgreSQL text
-- holds no zero byte, so the separators cannot be mistaken. Nothing in it depends on how PostgreSQL prints or orders JSON.
-- Two digests, because the long one needs no lock. No SET clause on these functions, or they could not be inlined.
CREATE OR REPLACE FUNCTION spillway.audit_content(
    event_time timestamptz, event_id uuid, stream text, type text, source text, body text)
RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN sha256(timestamptz_send(event_time) || uuid_send(event_id)
    || convert_to(stream, 'UTF8') || '\x00'::bytea || convert_to(type, 'UTF8') || '\x00'::bytea
    || convert_to(source, 'UTF8') || '\x00'::bytea || convert_to(body, 'UTF8'));

CREATE OR REPLACE FUNCTION spillway.audit_link(previous_hash bytea, sequence bigint, recorded_at timestamptz, content bytea)
RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256(previous_hash || int8send(sequence) || timestamptz_send(recorded_at) || content);

-- audit_chain(anchor, sequence, recorded_at, content) OVER (... ORDER BY ...): for each entry, the hash before it and its
-- own, 32 bytes each; the first follows `anchor`. PL/pgSQL, because an aggregate cannot inline an SQL function.
CREATE OR REPLACE FUNCTION spillway.audit_step(hashes bytea, anchor bytea, sequence bigint, recorded_at timestamptz, content bytea)
RETURNS bytea
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    RETURN coalesce(substr(hashes, 33), anchor)
        || spillway.audit_link(coalesce(substr(hashes, 33), anchor), sequence, recorded_at, content);
END
$$;
CREATE OR REPLACE AGGREGATE spillway.audit_chain(anchor bytea, sequence bigint, recorded_at timestamptz, content bytea) (
    SFUNC = spillway.audit_step, STYPE = bytea);

CREATE OR REPLACE FUNCTION spillway.apply_audit(p_batch jsonb)
RETURNS SETOF spillway.outcome
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT * FROM audit_append(p_batch, NULL);
END
$$;

-- As apply_audit, for its owner. p_at is when the entries are recorded; NULL: now, by the clock.
CREATE OR REPLACE FUNCTION spillway.audit_append(p_batch jsonb, p_at timestamptz)
RETURNS SETOF spillway.outcome
LANGUAGE plpgsql VOLATILE
SET search_path = spillway, pg_temp
SET enable_seqscan = off  -- a plan that was made and kept while audit_streams was small must not scan it once it is large
AS $$
DECLARE
    answers spillway.outcome[];
    entries spillway.audit_entry[];
    now_at timestamptz;
    half integer;
    code text;
    place text;
BEGIN
    BEGIN
        WITH input AS MATERIALIZED (
            -- The time comes in as text and is judged before it is cast: one bad record must not fail the others.
            SELECT DISTINCT ON (r.id) r.*,
                CASE
                    WHEN r.id IS NULL THEN 'id: expected a UUID'
                    WHEN r.stream IS NULL OR length(r.stream) NOT BETWEEN 1 AND 128 THEN 'stream: expected 1 to 128 characters'
                    WHEN (r.type = 'audit.recorded') IS NOT TRUE THEN 'type: expected an audit event'
                    WHEN r.source IS NULL OR length(r.source) NOT BETWEEN 1 AND 256 THEN 'source: expected 1 to 256 characters'
                    WHEN pg_input_is_valid(r.time, 'timestamptz') IS NOT TRUE THEN 'time: expected a timestamp'
                    WHEN (octet_length(r.body) <= 65536 AND r.body IS JSON OBJECT) IS NOT TRUE THEN 'body: expected a JSON object of at most 64 KiB'
                END AS defect
            FROM ROWS FROM (jsonb_to_recordset(p_batch) AS (
                id uuid, stream text, type text, source text, time text, body text
            )) WITH ORDINALITY AS r(id, stream, type, source, time, body, place)
            ORDER BY r.id, r.place
        ), claimed AS (
            INSERT INTO audit_events (event_id)
            -- "= true" keeps the planner's guess sane: after a bare IS NULL it expects one row and joins by nested loops.
            SELECT i.id FROM input i WHERE (i.defect IS NULL) = true ORDER BY i.id
            ON CONFLICT DO NOTHING
            RETURNING event_id
        )
        SELECT array_agg(ROW(
                   i.id,
                   CASE WHEN i.defect IS NOT NULL THEN 'invalid'
                        WHEN c.event_id IS NULL THEN 'duplicate'
                        ELSE 'applied' END,
                   CASE WHEN i.defect IS NOT NULL THEN '22023' END,
                   i.defect)::spillway.outcome),
               array_agg(ROW(
                   i.place, i.id, i.stream, i.type, i.source, i.time::timestamptz, i.body,
                   audit_content(i.time::timestamptz, i.id, i.stream, i.type, i.source, i.body)
                   )::spillway.audit_entry) FILTER (WHERE c.event_id IS NOT NULL)
        INTO answers, entries
        FROM input i
        LEFT JOIN claimed c ON c.event_id = i.id;

        -- 1635083380 is "audt" in ASCII: these are no other worker's stripes.
        PERFORM pg_advisory_xact_lock(1635083380, stripes.stripe)
        FROM (SELECT DISTINCT hashtext(e.stream) & 127 AS stripe FROM unnest(entries) AS e ORDER BY stripe) AS stripes;

        -- After the wait, so that no entry's time is before that of the one it waited for.
        now_at := coalesce(p_at, clock_timestamp());
        WITH placed AS (
            SELECT e.*, h.last_sequence, h.last_hash, h.recorded_at AS last_at,
                greatest(now_at, h.recorded_at) AS recorded_at,  -- a clock that was put back must not split a chain
                coalesce(h.last_hash, decode(repeat('00', 32), 'hex')) AS anchor,
                coalesce(h.last_sequence, 0) + row_number() OVER chain AS sequence,
                lead(e.place) OVER chain IS NULL AS is_last
            FROM unnest(entries) AS e
            LEFT JOIN audit_streams h ON h.stream = e.stream
            WINDOW chain AS (PARTITION BY e.stream ORDER BY e.place)
        ), linked AS MATERIALIZED (
            SELECT p.*, audit_chain(p.anchor, p.sequence, p.recorded_at, p.content)
                OVER (PARTITION BY p.stream ORDER BY p.place ROWS UNBOUNDED PRECEDING) AS hashes
            FROM placed p
        ), appended AS (
            INSERT INTO audit_log (stream, sequence, event_id, recorded_at, event_time, type, source, body, previous_hash, hash)
            SELECT l.stream, l.sequence, l.event_id, l.recorded_at, l.event_time, l.type, l.source, l.body,
                substr(l.hashes, 1, 32), substr(l.hashes, 33)
            FROM linked l
        ), anchored AS (
            INSERT INTO audit_anchors (stream, sequence, hash, recorded_at)
            SELECT l.stream, l.last_sequence, l.last_hash, l.last_at
            FROM linked l WHERE l.sequence = l.last_sequence + 1 AND l.last_at < date_trunc('month', l.recorded_at, 'UTC')
            ON CONFLICT DO NOTHING  -- only if a head was tampered with, which is not the message's fault
        )
        INSERT INTO audit_streams AS s (stream, last_sequence, last_hash, recorded_at)
        SELECT l.stream, l.sequence, substr(l.hashes, 33), l.recorded_at FROM linked l WHERE l.is_last
        ON CONFLICT (stream) DO UPDATE SET
            last_sequence = excluded.last_sequence, last_hash = excluded.last_hash, recorded_at = excluded.recorded_at;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, place = CONSTRAINT_NAME;
        IF code = '23514' AND place = '' THEN
            -- No rule of the table, but a partition that was attached since this statement chose one: nobody's fault.
            RAISE EXCEPTION 'a partition was attached meanwhile' USING ERRCODE = 'serialization_failure';
        END IF;
        -- The last resort, for what the predicates do not know: halves, then quarters, down to the one at fault. Few
        -- bad records cost few subtransactions; past 64 in one transaction PostgreSQL slows every other session down.
        -- The message text is left out: it may quote the value.
        half := jsonb_array_length(p_batch) / 2;
        IF half = 0 THEN
            RETURN NEXT (
                CASE WHEN pg_input_is_valid(p_batch -> 0 ->> 'id', 'uuid') THEN (p_batch -> 0 ->> 'id')::uuid END,
                'invalid', code, CASE WHEN place <> '' THEN 'constraint ' || place ELSE 'value out of range or malformed' END
            )::spillway.outcome;
            RETURN;
        END IF;
        RETURN QUERY SELECT * FROM audit_append(jsonb_path_query_array(p_batch, '$[0 to $last]', jsonb_build_object('last', half - 1)), p_at);
        RETURN QUERY SELECT * FROM audit_append(jsonb_path_query_array(p_batch, '$[$first to last]', jsonb_build_object('first', half)), p_at);
        RETURN;
    END;
    RETURN QUERY SELECT * FROM unnest(answers);
END
$$;

-- Partitions. Each function below is one autocommit call of a few milliseconds. A table lock that it does not get within
-- 250 ms it does without: SQLSTATE 55P03, nothing changed, try again later. Writers wait for it no longer than that plus
-- those milliseconds. As DDL inside a function it pins no proxy session.

-- An empty table in the shape of the log, to be attached.
CREATE OR REPLACE FUNCTION spillway.audit_new_table(p_name text)
RETURNS void
LANGUAGE plpgsql
SET search_path = spillway, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE audit_log INCLUDING ALL)', p_name);
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()', p_name);
END
$$;

-- audit_make_partitions: this month's partition and those of `months_ahead` (0 to 120) more, where they are missing.
-- Returns the names of those it made, none if all were there.
--
-- CREATE TABLE ... PARTITION OF would lock the whole log against every writer; ATTACH lets writers go on and locks only
-- the default partition, which they do not use. That one catches what has no month of its own, so that housekeeping that
-- is late loses nothing; the next call gives those months their partitions and moves the entries there. Past 50,000
-- entries (about a second under lock) it refuses with SQLSTATE 55000 and leaves the move to an operator: README.md.
CREATE OR REPLACE FUNCTION spillway.audit_make_partitions(months_ahead integer)
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
SET lock_timeout = '250ms'
SET timezone = 'UTC'
AS $$
DECLARE
    late boolean;
    wanted timestamptz[];
    month timestamptz;
    name text;
BEGIN
    IF (months_ahead BETWEEN 0 AND 120) IS NOT TRUE THEN
        RAISE EXCEPTION 'months_ahead: expected 0 to 120' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One caller at a time; writers do not conflict with this lock.
    LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM audit_log_default OFFSET 50000) THEN
        RAISE EXCEPTION 'audit_log_default holds more than 50,000 entries' USING
            ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Move them by hand: workers/audit/README.md.';
    END IF;
    late := EXISTS (SELECT FROM audit_log_default);
    IF late THEN
        LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE;
        ALTER TABLE audit_log DETACH PARTITION audit_log_default;
    END IF;
    wanted := ARRAY(
        SELECT date_trunc('month', now()) + ahead * interval '1 month' FROM generate_series(0, months_ahead) AS ahead
        UNION
        SELECT date_trunc('month', recorded_at) FROM audit_log_default
        ORDER BY 1
    );
    FOREACH month IN ARRAY wanted LOOP
        name := to_char(month, '"audit_log_"YYYY_MM');
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        PERFORM audit_new_table(name);
        IF late THEN
            EXECUTE format('INSERT INTO %I SELECT * FROM audit_log_default WHERE recorded_at >= $1 AND recorded_at < $2', name)
            USING month, month + interval '1 month';
        END IF;
        BEGIN
            EXECUTE format('ALTER TABLE audit_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, month, month + interval '1 month');
        EXCEPTION WHEN check_violation THEN
            -- The default partition was in use, and when it was free it held an entry of this month.
            RAISE EXCEPTION 'an entry of % came in meanwhile', name USING ERRCODE = 'lock_not_available';
        END;
        RETURN NEXT name;
    END LOOP;
    IF late THEN
        -- All of it was copied above. Not emptied but replaced: nothing, this function included, deletes from the log.
        DROP TABLE audit_log_default;
        PERFORM audit_new_table('audit_log_default');
        ALTER TABLE audit_log ATTACH PARTITION audit_log_default DEFAULT;
    END IF;
END
$$;

-- audit_drop_partitions: drops the partitions of months that are more than `keep_months` (1 or more) before this one, so
-- this month and `keep_months` whole ones stay. Returns the names of those it dropped. audit_verify goes on working: it
-- finds in audit_dropped what is gone by right and in audit_anchors what the first kept entries must follow.
CREATE OR REPLACE FUNCTION spillway.audit_drop_partitions(keep_months integer)
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
SET lock_timeout = '250ms'
SET timezone = 'UTC'
AS $$
DECLARE
    name text;
    upper_bound timestamptz;
BEGIN
    IF (keep_months BETWEEN 1 AND 1200) IS NOT TRUE THEN
        RAISE EXCEPTION 'keep_months: expected 1 to 1200' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE;
    FOR name, upper_bound IN
        SELECT found.relname, found.upper_bound
        FROM (
            SELECT c.relname, substring(pg_get_expr(c.relpartbound, c.oid) FROM $re$TO \('([^']+)'\)$re$)::timestamptz AS upper_bound
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'audit_log'::regclass
        ) AS found
        WHERE found.upper_bound <= date_trunc('month', now()) - keep_months * interval '1 month'
        ORDER BY found.upper_bound
    LOOP
        EXECUTE format('DROP TABLE %I', name);  -- locks the whole log, for as long as it takes to change the catalogue
        INSERT INTO audit_dropped (partition, upper_bound) VALUES (name, upper_bound)
        ON CONFLICT (partition) DO UPDATE SET dropped_at = now();
        RETURN NEXT name;
    END LOOP;
END
$$;

-- audit_verify: is the log what it was when it was written? For one stream, or for all of them without an argument.
-- One row per problem (ok = false): its stream, the entry's sequence and what is wrong. The last row sums up; its `ok` is
-- the verdict. Reads one snapshot and locks nobody out.
--
-- What it cannot see: the last entries of a stream cut off together with a head that was changed to match, and a chain
-- that was rewritten from some entry to its end. Keep heads (audit_streams.last_hash) somewhere else to see those.
CREATE OR REPLACE FUNCTION spillway.audit_verify(p_stream text DEFAULT NULL)
RETURNS TABLE (stream text, sequence bigint, ok boolean, finding text)
LANGUAGE sql STABLE
SET search_path = spillway, pg_temp
AS $$
    WITH entries AS (
        SELECT l.stream, l.sequence, l.hash, l.previous_hash, l.recorded_at,
            l.hash = audit_link(l.previous_hash, l.sequence, l.recorded_at, audit_content(
                l.event_time, l.event_id, l.stream, l.type, l.source, l.body)) AS intact,
            lag(l.sequence) OVER chain AS sequence_before,
            lag(l.hash) OVER chain AS hash_before,
            lead(l.sequence) OVER chain IS NULL AS is_last
        FROM audit_log l
        WHERE p_stream IS NULL OR l.stream = p_stream
        WINDOW chain AS (PARTITION BY l.stream ORDER BY l.sequence, l.recorded_at)
    ), retention AS (
        SELECT max(upper_bound) AS dropped_before FROM audit_dropped
    ), checked AS (
        SELECT e.stream, e.sequence, e.sequence_before, e.is_last, CASE
            WHEN NOT e.intact THEN 'changed: the hash does not fit the entry'
            WHEN e.sequence_before = e.sequence THEN 'two entries have this sequence'
            WHEN e.sequence_before < e.sequence - 1 THEN format('missing: %s to %s', e.sequence_before + 1, e.sequence - 1)
            WHEN e.hash_before <> e.previous_hash THEN 'does not follow the entry before it'
            WHEN e.sequence_before IS NULL AND e.sequence = 1 AND e.previous_hash <> decode(repeat('00', 32), 'hex')
                THEN 'first, but follows another entry'
            WHEN e.sequence_before IS NULL AND e.sequence > 1 AND a.stream IS NULL
                THEN format('missing: 1 to %s, and retention did not drop them', e.sequence - 1)
            WHEN e.sequence_before IS NULL AND e.sequence > 1 AND a.hash <> e.previous_hash
                THEN 'does not follow the entry that retention dropped'
            WHEN e.is_last AND h.stream IS NULL THEN 'last, but the stream has no head'
            WHEN e.is_last AND h.last_sequence > e.sequence THEN format('missing: %s to %s, by the head', e.sequence + 1, h.last_sequence)
            WHEN e.is_last AND (h.last_sequence, h.last_hash, h.recorded_at) <> (e.sequence, e.hash, e.recorded_at)
                THEN 'last, but the head is another entry'
        END AS problem
        FROM entries e
        CROSS JOIN retention r
        LEFT JOIN audit_anchors a ON e.sequence_before IS NULL AND e.sequence > 1
            AND a.stream = e.stream AND a.sequence = e.sequence - 1 AND a.recorded_at < r.dropped_before
        LEFT JOIN audit_streams h ON e.is_last AND h.stream = e.stream
    ), lost AS (
        -- Streams of which no entry is left: right only if retention dropped the last one, too.
        SELECT h.stream, h.last_sequence AS sequence, format('missing: all up to %s', h.last_sequence) AS problem
        FROM audit_streams h CROSS JOIN retention r
        WHERE (p_stream IS NULL OR h.stream = p_stream)
            AND (h.recorded_at < r.dropped_before) IS NOT TRUE
            AND NOT EXISTS (SELECT FROM audit_log l WHERE l.stream = h.stream)
        UNION ALL
        SELECT p_stream, NULL, 'there is no such stream'
        WHERE p_stream IS NOT NULL AND NOT EXISTS (SELECT FROM audit_streams h WHERE h.stream = p_stream)
            AND NOT EXISTS (SELECT FROM audit_log l WHERE l.stream = p_stream)
    ), problems AS (
        SELECT c.stream, c.sequence, c.problem FROM checked c WHERE c.problem IS NOT NULL
        UNION ALL
        SELECT l.stream, l.sequence, l.problem FROM lost l
    )
    (SELECT p.stream, p.sequence, false, p.problem FROM problems p ORDER BY p.stream, p.sequence)
    UNION ALL
    SELECT p_stream, NULL, (SELECT count(*) = 0 FROM problems),
        format('%s entries of %s streams, %s problems',
            count(*), count(*) FILTER (WHERE c.is_last), (SELECT count(*) FROM problems))
    FROM checked c
$$;

REVOKE ALL ON FUNCTION
    spillway.audit_content(timestamptz, uuid, text, text, text, text),
    spillway.audit_link(bytea, bigint, timestamptz, bytea),
    spillway.audit_step(bytea, bytea, bigint, timestamptz, bytea),
    spillway.audit_chain(bytea, bigint, timestamptz, bytea),
    spillway.apply_audit(jsonb),
    spillway.audit_append(jsonb, timestamptz),
    spillway.audit_new_table(text),
    spillway.audit_make_partitions(integer),
    spillway.audit_drop_partitions(integer),
    spillway.audit_verify(text)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.apply_audit(jsonb), spillway.audit_make_partitions(integer),
    spillway.audit_drop_partitions(integer) TO spillway_worker;

DO $$
BEGIN
    IF to_regclass('spillway.audit_log_default') IS NULL THEN
        PERFORM spillway.audit_new_table('audit_log_default');
        ALTER TABLE spillway.audit_log ATTACH PARTITION spillway.audit_log_default DEFAULT;
    END IF;
    PERFORM spillway.audit_make_partitions(3);
EXCEPTION WHEN lock_not_available THEN
    RAISE NOTICE 'audit: partitions were not made because the log is locked; housekeeping makes them';
END
$$;
