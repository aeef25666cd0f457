-- Every claims table (spillway.*_events) gets an index on claimed_at, so that pruning finds the oldest rows without
-- reading the others. A claims table that a later migration makes brings its own.
--
-- A B-tree, not BRIN: claims come in order of time only until the first rows are pruned. Then new rows fill the old
-- pages, and BRIN's ranges, which never shrink, cover everything. Measured on 1,000,000 rows, pruned and refilled by a
-- twentieth at a time: finding the 5,000 oldest took 15 ms with BRIN at first and 56 to 72 ms (a sequential scan) from
-- the 20th round on; 2.4 ms with a B-tree throughout. apply_orders was not slower with either beyond the noise, 0.95 to
-- 1.06 times its time without, in batches of 10, 100 and 1,000 and with 1 and 4 clients: all claims of a batch carry one
-- timestamp, and go to the last page of the index. It takes about 14 bytes a row, a third of the primary key's.
--
-- On a table that is large by now, run CREATE INDEX CONCURRENTLY with the same name first: then nothing is done here.
DO $$
DECLARE
    claims text;
BEGIN
    FOR claims IN
        SELECT c.relname
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'spillway'::regnamespace AND c.relkind = 'r' AND c.relname LIKE '%\_events'
          AND a.attname = 'claimed_at' AND NOT a.attisdropped
        ORDER BY c.relname
    LOOP
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON spillway.%I (claimed_at)', claims || '_claimed_at', claims);
    END LOOP;
END
$$;
