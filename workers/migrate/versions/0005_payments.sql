-- One row per account, from the first event that used one of its sequence numbers. It is open once it has a currency.
-- Events of an account that was never opened use its numbers, too: each is rejected.
CREATE TABLE spillway.accounts (
    account         text PRIMARY KEY,
    currency        text,                       -- NULL until the account is opened
    overdraft_limit bigint NOT NULL DEFAULT 0,  -- minor units; how far below zero the balance may go
    balance         bigint NOT NULL DEFAULT 0,  -- minor units; the sum of the account's entries in the ledger
    next_sequence   bigint NOT NULL,            -- every smaller number was used; outlives the claims
    CONSTRAINT accounts_name_not_reserved CHECK (account <> 'outside'),
    CONSTRAINT accounts_currency_iso CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT accounts_limit_not_negative CHECK (overdraft_limit >= 0),
    CONSTRAINT accounts_balance_within_limit CHECK (balance >= -overdraft_limit),
    CONSTRAINT accounts_money_only_if_open CHECK (currency IS NOT NULL OR balance = 0),
    CONSTRAINT accounts_sequence_used CHECK (next_sequence >= 2)
);

-- The claims: an event id in here was judged, and had its effect if it was applied. Claimed in the same transaction.
CREATE TABLE spillway.payment_events (
    event_id   uuid PRIMARY KEY,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    account    text NOT NULL,
    sequence   bigint NOT NULL,
    outcome    text NOT NULL,
    reason     text,                            -- the rule that an event was rejected by
    -- Numbered while the locks are held, so of two events that share an account the later has the greater number.
    -- Whoever judges the events again in this order must come to the same outcomes. Rolled-back work leaves holes.
    ordinal    bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT payment_events_outcome_known CHECK (outcome IN ('applied', 'rejected')),
    CONSTRAINT payment_events_reason_if_rejected CHECK ((outcome = 'rejected') = (reason IS NOT NULL))
);

-- Says which event used a number, and that no two did.
CREATE UNIQUE INDEX payment_events_number_used_once ON spillway.payment_events (account, sequence)
    WHERE reason IS DISTINCT FROM 'sequence_replayed';

-- The double-entry ledger. A posting is the entries of one ordinal; they sum to zero. `outside` is the rest of the world:
-- it has entries but no row in accounts, because every deposit would queue up for that row.
CREATE TABLE spillway.ledger (
    account  text NOT NULL,
    ordinal  bigint NOT NULL,                   -- that of its event
    event_id uuid NOT NULL,
    currency text NOT NULL,
    amount   bigint NOT NULL,                   -- minor units; below zero where the account pays
    balance  bigint,                            -- the account's after this entry
    PRIMARY KEY (account, ordinal),
    CONSTRAINT ledger_amount_not_zero CHECK (amount <> 0),
    -- An entry without a balance would be one for which no account was changed.
    CONSTRAINT ledger_changes_an_account CHECK ((balance IS NULL) = (account = 'outside'))
);

-- What an account paid to merchants, and how much of it came back. Outlives the claims.
CREATE TABLE spillway.captures (
    account    text NOT NULL,
    payment_id text NOT NULL,
    merchant   text NOT NULL,
    amount     bigint NOT NULL,                 -- minor units
    refunded   bigint NOT NULL DEFAULT 0,       -- minor units; the sum of the refunds
    PRIMARY KEY (account, payment_id),
    CONSTRAINT captures_refunded_within_amount CHECK (refunded BETWEEN 0 AND amount)
);
