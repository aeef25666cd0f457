-- Attempts of suspicious messages that have begun and not ended (workers/runtime/attempts.py).
-- Unlogged: it is written twice per suspect, and may be lost. A crash of the server, the one thing that leaves many
-- attempts unfinished through no fault of the messages, empties it, and that is right.
CREATE UNLOGGED TABLE spillway.attempts (
    message_id text COLLATE "C" PRIMARY KEY,   -- SQS's; a redrive gives a message a new one, and a new start
    worker     text NOT NULL,
    attempts   integer NOT NULL,               -- those that were made alone
    first_at   timestamptz NOT NULL DEFAULT now(),
    last_at    timestamptz NOT NULL DEFAULT now()
);
