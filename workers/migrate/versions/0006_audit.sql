-- The audit log: append-only, one gapless, hash-chained sequence per stream, partitioned by month.
-- What an entry's hash covers, byte by byte: spillway.audit_content and audit_link in workers/audit/apply.sql.
CREATE TABLE spillway.audit_log (
    stream        text COLLATE "C" NOT NULL,  -- compared as bytes: faster, and the same order everywhere
    sequence      bigint NOT NULL,        -- 1, 2, 3 ... within the stream
    event_id      uuid NOT NULL,
    recorded_at   timestamptz NOT NULL,   -- when it was appended; never goes back within a stream
    event_time    timestamptz NOT NULL,   -- the event's own `time`
    type          text NOT NULL,
    source        text NOT NULL,
    body          text NOT NULL,          -- canonical JSON, kept as text: jsonb would not give back what was hashed
    previous_hash bytea NOT NULL,         -- of the entry before; 32 zero bytes before the first
    hash          bytea NOT NULL,
    -- A partitioned table's key must hold what it is partitioned by; audit_streams keeps (stream, sequence) unique.
    PRIMARY KEY (stream, sequence, recorded_at),
    CONSTRAINT audit_log_sequence_positive CHECK (sequence >= 1),
    CONSTRAINT audit_log_hash_length CHECK (octet_length(previous_hash) = 32 AND octet_length(hash) = 32)
) PARTITION BY RANGE (recorded_at);

-- Where each stream stands: what the next entry follows. Updated in place (HOT), hence the room in each page.
CREATE TABLE spillway.audit_streams (
    stream        text COLLATE "C" PRIMARY KEY,
    last_sequence bigint NOT NULL,
    last_hash     bytea NOT NULL,
    recorded_at   timestamptz NOT NULL    -- of that last entry
) WITH (fillfactor = 70);

-- The last entry of a stream before it went on in a later month: what a chain hangs on once the months before are dropped.
CREATE TABLE spillway.audit_anchors (
    stream        text COLLATE "C" NOT NULL,
    sequence      bigint NOT NULL,
    hash          bytea NOT NULL,
    recorded_at   timestamptz NOT NULL,
    PRIMARY KEY (stream, sequence)
);

-- Months that retention dropped: without a row here a missing month is a problem, not retention.
CREATE TABLE spillway.audit_dropped (
    partition     text PRIMARY KEY,
    upper_bound   timestamptz NOT NULL,   -- every entry in it was recorded before this
    dropped_at    timestamptz NOT NULL DEFAULT now()
);

-- The claims: an event id in here has had its effect. Claimed in the transaction that appends the entry.
CREATE TABLE spillway.audit_events (
    event_id      uuid PRIMARY KEY,
    claimed_at    timestamptz NOT NULL DEFAULT now()
);

-- An entry on its way into the log (workers/audit/apply.sql). `place` orders the entries of one batch.
CREATE TYPE spillway.audit_entry AS (
    place bigint, event_id uuid, stream text COLLATE "C", type text, source text, event_time timestamptz, body text, content bytea);

-- Append-only for everybody, the owner included. Only a whole partition can go (audit_drop_partitions).
CREATE FUNCTION spillway.audit_refuse() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION '% refused: the audit log is append-only', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
-- On each row, because such triggers are copied to partitions; one on statements would only see the parent's.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON spillway.audit_log
    FOR EACH ROW EXECUTE FUNCTION spillway.audit_refuse();
-- TRUNCATE knows statements only, so audit_new_table puts this one on each partition.
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON spillway.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION spillway.audit_refuse();
