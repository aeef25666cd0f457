-- One row per order: the state carried by its highest version.
CREATE TABLE spillway.orders (
    order_id   text PRIMARY KEY,
    version    integer NOT NULL,
    event_id   uuid NOT NULL,          -- the event that made this row; breaks the tie between equal versions
    status     text NOT NULL,
    customer   text NOT NULL,
    currency   text NOT NULL,
    total      bigint NOT NULL,        -- minor units
    items      jsonb NOT NULL,
    placed_at  timestamptz NOT NULL,
    updated_at timestamptz,            -- only while status is 'updated'
    cancelled_at timestamptz,          -- only while status is 'cancelled', and so is the reason
    reason     text NOT NULL,
    CONSTRAINT orders_version_positive CHECK (version >= 1),
    CONSTRAINT orders_status_known CHECK (status IN ('placed', 'updated', 'cancelled')),
    CONSTRAINT orders_currency_iso CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT orders_total_not_negative CHECK (total >= 0),
    CONSTRAINT orders_items_array CHECK (jsonb_typeof(items) = 'array')
);

-- The claims: an event id in here has had its effect. Claimed in the transaction that writes the effect.
CREATE TABLE spillway.order_events (
    event_id   uuid PRIMARY KEY,
    claimed_at timestamptz NOT NULL DEFAULT now()
);
