-- What housekeeping may do, and nothing else: the worker's role has no right to delete from any table. Each function is
-- one short autocommit call, and the floors below hold whatever the caller asks for.
--
-- RDS Proxy looks at the statement that the client sends, a plain SELECT, and not into functions: nothing here pins,
-- and nothing here changes the session, because lock_timeout is the functions' own SET clause and ends with the call.

-- The tables that are pruned, by which column, and how young a row is never deleted.
-- A claim must outlast every way in which its event can come again: up to 14 days in a dead-letter queue (SQS's longest
-- retention), and again up to 14 days after it was redriven from there (a redrive begins a new life).
-- An attempt is of no use once its message has gone from its queue (14 days at the most).
CREATE OR REPLACE FUNCTION spillway.housekeeping_targets()
RETURNS TABLE (table_name text, by_column text, floor interval)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.relname, a.attname,
           CASE a.attname WHEN 'claimed_at' THEN interval '28 days' ELSE interval '15 days' END
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'spillway'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
      AND (c.relname LIKE '%\_events' AND a.attname = 'claimed_at' OR c.relname = 'attempts' AND a.attname = 'last_at')
$$;

REVOKE ALL ON FUNCTION spillway.housekeeping_targets() FROM PUBLIC;

-- housekeeping_plan: which tables hold rows that are due, and before when, by the database's clock.
--
-- In:  {claim_days, attempt_days}.
-- Out: one row per table that has any; overdue = for how long its oldest row has been due.
-- Raises 22023 when a retention is below its floor.
CREATE OR REPLACE FUNCTION spillway.housekeeping_plan(p jsonb)
RETURNS TABLE (table_name text, before timestamptz, overdue interval)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = spillway, pg_temp
SET lock_timeout = '200ms'
AS $$
DECLARE
    target record;
    keep interval;
    oldest timestamptz;
BEGIN
    FOR target IN SELECT * FROM housekeeping_targets() LOOP
        keep := make_interval(days => (p ->> CASE target.by_column WHEN 'claimed_at' THEN 'claim_days' ELSE 'attempt_days' END)::integer);
        IF (keep >= target.floor) IS NOT TRUE THEN
            RAISE EXCEPTION 'retention of %: expected at least %, got %', target.table_name, target.floor, keep
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        EXECUTE format('SELECT min(%I) FROM %I', target.by_column, target.table_name) INTO oldest;
        table_name := target.table_name;
        before := now() - keep;
        overdue := before - oldest;
        IF oldest < before THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION spillway.housekeeping_plan(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.housekeeping_plan(jsonb) TO spillway_worker;

-- housekeeping_prune: deletes up to `rows` of the oldest rows of one table.
--
-- In:  {table, before, after, rows}: rows from `after` (none: from the oldest) to `before`, `before` not included.
-- Out: how many were deleted; reached = the youngest of them, from where the next call goes on, so that it need not step
--      over the index entries that this one left dead; more = whether there may be others.
-- Raises 22023 for a table that is not housekeeping's and for a `before` above the table's floor.
--
-- It waits for nobody: rows that somebody has locked are skipped until next time, and a lock on the table, which only a
-- migration takes, makes it give up (55P03). Who waits for it: a writer that claims one of these very ids again, weeks
-- after the first time, for the milliseconds until this call's commit.
CREATE OR REPLACE FUNCTION spillway.housekeeping_prune(
    p jsonb, OUT deleted bigint, OUT reached timestamptz, OUT more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
SET lock_timeout = '200ms'
-- The index on the time, even where the statistics are missing or old: without, a table that was never analyzed was read
-- as a whole for every batch, 120 ms instead of 15.
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    target record;
    oldest timestamptz := coalesce((p ->> 'after')::timestamptz, '-infinity');
    before timestamptz := (p ->> 'before')::timestamptz;
    most integer := (p ->> 'rows')::integer;
BEGIN
    SELECT * INTO target FROM housekeeping_targets() t WHERE t.table_name = p ->> 'table';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'table: expected one of claims or attempts, got %', p ->> 'table'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (before <= now() - target.floor) IS NOT TRUE THEN
        RAISE EXCEPTION 'before: expected a time at least % ago, got %', target.floor, before
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format(
        'WITH old AS MATERIALIZED ('
        ' SELECT ctid AS place, %2$I AS since FROM %1$I WHERE %2$I >= $1 AND %2$I < $2'
        ' ORDER BY %2$I LIMIT $3 FOR UPDATE SKIP LOCKED'
        '), gone AS (DELETE FROM %1$I WHERE ctid = ANY (ARRAY(SELECT place FROM old)) RETURNING 1)'
        ' SELECT (SELECT count(*) FROM gone), (SELECT max(since) FROM old), (SELECT count(*) FROM old) = $3',
        target.table_name, target.by_column)
    INTO deleted, reached, more
    USING oldest, before, most;
END
$$;

REVOKE ALL ON FUNCTION spillway.housekeeping_prune(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.housekeeping_prune(jsonb) TO spillway_worker;
