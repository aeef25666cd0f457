-- One row per SKU. `available` is worked out by PostgreSQL, so a row cannot contradict itself; the ledger can be held
-- against it.
CREATE TABLE spillway.stock (
    sku       text PRIMARY KEY,
    received  bigint NOT NULL,         -- pieces that ever came in
    reserved  bigint NOT NULL,         -- pieces ever taken by a reservation
    released  bigint NOT NULL,         -- of those, pieces that came back
    available bigint GENERATED ALWAYS AS (received - reserved + released) STORED,
    CONSTRAINT stock_not_oversold CHECK (available >= 0),
    CONSTRAINT stock_released_was_reserved CHECK (released BETWEEN 0 AND reserved)
) WITH (fillfactor = 70);              -- room for the next version of a row on the same page: hot rows stay HOT updates

-- Append-only: every movement, in the order in which it took effect. Per SKU, the running sum of `quantity` by `entry`
-- is what was available after each movement, and its total equals stock.available.
CREATE TABLE spillway.stock_ledger (
    entry       bigint GENERATED ALWAYS AS IDENTITY,
    sku         text NOT NULL,
    movement    text NOT NULL,
    quantity    bigint NOT NULL,       -- change of what is available
    event_id    uuid NOT NULL,
    document_id text NOT NULL,
    occurred_at timestamptz NOT NULL,  -- the event's own time
    PRIMARY KEY (sku, entry),
    CONSTRAINT stock_ledger_sign CHECK (
        CASE movement WHEN 'reserved' THEN quantity < 0 WHEN 'received' THEN quantity > 0 WHEN 'released' THEN quantity > 0 ELSE false END)
);

-- What a receipt or a reservation has come to. Kept beyond the claims: a document takes effect once, even if its event
-- comes again after its claim was pruned, or a producer sends it again under another event id.
CREATE TABLE spillway.stock_documents (
    kind        text NOT NULL,
    document_id text NOT NULL,
    state       text NOT NULL,
    lines       jsonb,                 -- SKU -> quantity; null while only a reservation's release has arrived
    opened_by   uuid,                  -- the event that received or reserved it
    released_by uuid,
    PRIMARY KEY (kind, document_id),
    CONSTRAINT stock_documents_state_of_kind CHECK (
        kind = 'receipt' AND state = 'received' OR kind = 'reservation' AND state IN ('reserved', 'released')),
    CONSTRAINT stock_documents_opened CHECK ((lines IS NULL) = (opened_by IS NULL)),
    CONSTRAINT stock_documents_released CHECK ((released_by IS NULL) = (state <> 'released')),
    CONSTRAINT stock_documents_known CHECK (coalesce(opened_by, released_by) IS NOT NULL)
);

-- The claims: an event id in here was decided upon. A rejection is a decision, too, and stands.
CREATE TABLE spillway.inventory_events (
    event_id   uuid PRIMARY KEY,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    outcome    text NOT NULL DEFAULT 'applied',
    reason     text,                   -- the rule, where it was rejected
    sku        text,                   -- where stock was insufficient: the first SKU of which there was too little,
    available  bigint,                 -- and what was available of it then
    CONSTRAINT inventory_events_outcome CHECK (outcome IN ('applied', 'stale', 'rejected')),
    CONSTRAINT inventory_events_reason CHECK ((reason IS NOT NULL) = (outcome = 'rejected')),
    CONSTRAINT inventory_events_short CHECK (
        (reason IS NOT DISTINCT FROM 'insufficient_stock') = (sku IS NOT NULL) AND (sku IS NULL) = (available IS NULL))
);
