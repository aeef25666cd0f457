-- apply_payments: judges a batch of payment events one after the other, each at most once, and books what they move.
--
-- In:  a JSON array, in the order of the queue, of {id, type, account, sequence, currency, amount, limit, counterparty,
--      payment_id}; `counterparty` is the account at the other end: the merchant, or whom a transfer goes to.
-- Out: one spillway.outcome per distinct id:
--        applied    booked; its sequence number is used
--        rejected   a rule refused it: insufficient_funds, unknown_account, account_exists, currency_mismatch,
--                   unknown_capture, merchant_mismatch, refund_exceeds_capture, payment_exists. Recorded; its number is
--                   used. Or sequence_replayed: another event had used its number. Recorded; nothing else changed.
--        duplicate  the id had been judged before: nothing was changed
--        gap        its number is ahead of the account's next. Nothing was claimed or changed.
--        invalid    the record breaks a rule of the table; reason = SQLSTATE. Nothing was claimed or changed for it.
--        held       an earlier record of its account is invalid, so it was not looked at: its turn is after that one's
--
-- The order of an account's events is kept: a batch is judged record by record and never past an invalid one. A loop is
-- right here: each record may depend on the one before, and Lambda hands over at most 10 records of a FIFO queue.
CREATE OR REPLACE FUNCTION spillway.apply_payments(p_batch jsonb)
RETURNS SETOF spillway.outcome
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = spillway, pg_temp
AS $$
DECLARE
    total    constant integer := jsonb_array_length(p_batch);
    first    integer := 1;       -- the records from first to last are judged in one subtransaction
    last     integer := total;
    answers  spillway.outcome[] := '{}';
    pending  spillway.outcome[];          -- the answers of this subtransaction
    blocked  text[] := '{}';     -- the accounts with an invalid record
    blocking text[];             -- the same, with those of this subtransaction
    culprit  spillway.outcome;            -- the answer for record last + 1, which raised an error,
    theirs   text;               -- and its account
    r        record;
    own      accounts;
    other    accounts;
    capture  captures;
    expected bigint;
    rule     text;               -- that rejects the event
    payer    text;
    payee    text;
    payers   bigint;             -- balances after the posting
    payees   bigint;
    place    bigint;
    verdict  spillway.outcome;
    code     text;
    broken   text;
BEGIN
    -- The locks of all accounts that the batch can touch, alone in the first statement: every later statement has a
    -- snapshot from after they were granted, so what it reads is what it will change. In ascending order, so batches
    -- that share accounts queue up and never deadlock. The event itself names both accounts, so nothing is read before.
    --
    -- The lock budget: locks live in memory that the whole server shares, about 14,500 at PostgreSQL's defaults. Ten
    -- records name at most 20 accounts, so 100 batches at once hold at most 2,000. With the accounts on 1,024 stripes a
    -- call of any size holds at most 1,024.
    PERFORM pg_advisory_xact_lock(1885435245, s.stripe)  -- the first number is "paym": other workers' locks are others
    FROM (
        SELECT DISTINCT hashtext(a.account) & 1023 AS stripe
        FROM jsonb_array_elements(p_batch) AS e(event),
             unnest(ARRAY[e.event ->> 'account', e.event ->> 'counterparty']) AS a(account)
        WHERE a.account IS NOT NULL
        ORDER BY stripe
    ) AS s;

    WHILE first <= total LOOP
        pending := '{}';
        blocking := blocked;
        BEGIN
            FOR r IN
                -- Scalars come in as text and are judged before they are cast: one bad record must not fail the others.
                SELECT i.n, i.account, i.type, i.currency, i.counterparty, i.payment_id, i.defect,
                       CASE WHEN pg_input_is_valid(i.id, 'uuid') THEN i.id::uuid END AS id,
                       CASE WHEN i.defect IS NULL THEN i.sequence::bigint END AS sequence,
                       CASE WHEN i.defect IS NULL THEN i.amount::bigint END AS amount,
                       CASE WHEN i.defect IS NULL THEN i.overdraft_limit::bigint END AS overdraft_limit
                FROM (
                    SELECT j.*,
                        row_number() OVER (PARTITION BY CASE WHEN pg_input_is_valid(j.id, 'uuid') THEN j.id::uuid END
                                           ORDER BY j.n) AS occurrence,
                        CASE
                            WHEN pg_input_is_valid(j.id, 'uuid') IS NOT TRUE THEN 'id: expected a UUID'
                            WHEN (j.type IN ('account.opened', 'payment.deposited', 'payment.captured',
                                             'payment.refunded', 'payment.transferred')) IS NOT TRUE
                                THEN 'type: expected a payment event'
                            WHEN (length(j.account) BETWEEN 1 AND 64 AND j.account <> 'outside') IS NOT TRUE
                                THEN 'account: expected 1 to 64 characters, not the reserved name'
                            WHEN pg_input_is_valid(j.sequence, 'bigint') IS NOT TRUE OR j.sequence::bigint < 1
                                THEN 'sequence: expected an integer >= 1'
                            WHEN (j.currency ~ '^[A-Z]{3}$') IS NOT TRUE THEN 'currency: expected three capital letters'
                            WHEN j.type = 'account.opened' THEN CASE
                                WHEN pg_input_is_valid(j.overdraft_limit, 'bigint') IS NOT TRUE OR j.overdraft_limit::bigint < 0
                                    THEN 'limit: expected an integer >= 0'
                                END
                            WHEN pg_input_is_valid(j.amount, 'bigint') IS NOT TRUE OR j.amount::bigint < 1
                                THEN 'amount: expected an integer >= 1'
                            WHEN j.type = 'payment.deposited' THEN NULL
                            WHEN (length(j.counterparty) BETWEEN 1 AND 64 AND j.counterparty <> 'outside') IS NOT TRUE
                                THEN 'counterparty: expected 1 to 64 characters, not the reserved name'
                            WHEN j.counterparty = j.account THEN 'counterparty: expected another account'
                            WHEN j.type <> 'payment.transferred' AND (length(j.payment_id) BETWEEN 1 AND 64) IS NOT TRUE
                                THEN 'payment_id: expected 1 to 64 characters'
                        END AS defect
                    FROM (
                        SELECT e.n, e.event ->> 'id' AS id, e.event ->> 'type' AS type,
                               e.event ->> 'account' AS account, e.event ->> 'sequence' AS sequence,
                               e.event ->> 'currency' AS currency, e.event ->> 'amount' AS amount,
                               e.event ->> 'limit' AS overdraft_limit, e.event ->> 'counterparty' AS counterparty,
                               e.event ->> 'payment_id' AS payment_id
                        FROM jsonb_array_elements(p_batch) WITH ORDINALITY AS e(event, n)
                    ) AS j
                ) AS i
                WHERE i.occurrence = 1 AND i.n BETWEEN first AND last
                ORDER BY i.n
            LOOP
                IF r.account = ANY (blocking) THEN
                    verdict := ROW(r.id, 'held', NULL, NULL);
                ELSIF r.defect IS NOT NULL THEN
                    verdict := ROW(r.id, 'invalid', '22023', r.defect);
                    blocking := array_append(blocking, r.account);
                ELSIF EXISTS (SELECT FROM payment_events e WHERE e.event_id = r.id) THEN
                    verdict := ROW(r.id, 'duplicate', NULL, NULL);
                ELSE
                    SELECT a.* INTO own FROM accounts a WHERE a.account = r.account;
                    expected := coalesce(own.next_sequence, 1);
                    IF r.sequence > expected THEN
                        verdict := ROW(r.id, 'gap', NULL, format('expected sequence %s, got %s', expected, r.sequence));
                    ELSE
                        SELECT a.* INTO other FROM accounts a WHERE a.account = r.counterparty;
                        SELECT c.* INTO capture FROM captures c WHERE c.account = r.account AND c.payment_id = r.payment_id;
                        rule := CASE
                            WHEN r.sequence < expected THEN 'sequence_replayed'
                            WHEN r.type = 'account.opened' THEN
                                CASE WHEN own.currency IS NOT NULL THEN 'account_exists' END
                            WHEN own.currency IS NULL THEN 'unknown_account'
                            WHEN r.currency <> own.currency THEN 'currency_mismatch'
                            WHEN r.type = 'payment.deposited' THEN NULL
                            WHEN r.type = 'payment.refunded' THEN CASE
                                WHEN capture.amount IS NULL THEN 'unknown_capture'
                                WHEN capture.merchant <> r.counterparty THEN 'merchant_mismatch'
                                WHEN capture.refunded + r.amount > capture.amount THEN 'refund_exceeds_capture'
                                WHEN other.balance - r.amount < -other.overdraft_limit THEN 'insufficient_funds'
                                END
                            WHEN r.type = 'payment.captured' AND capture.amount IS NOT NULL THEN 'payment_exists'
                            WHEN other.currency IS NULL THEN 'unknown_account'
                            WHEN other.currency <> r.currency THEN 'currency_mismatch'
                            WHEN own.balance - r.amount < -own.overdraft_limit THEN 'insufficient_funds'
                        END;
                        verdict := ROW(r.id, CASE WHEN rule IS NULL THEN 'applied' ELSE 'rejected' END, rule, NULL);

                        INSERT INTO payment_events (event_id, account, sequence, outcome, reason)
                        VALUES (r.id, r.account, r.sequence, verdict.outcome, rule)
                        RETURNING ordinal INTO place;
                        IF r.sequence = expected THEN
                            INSERT INTO accounts (account, next_sequence) VALUES (r.account, r.sequence + 1)
                            ON CONFLICT (account) DO UPDATE SET next_sequence = excluded.next_sequence;
                        END IF;

                        IF rule IS NULL AND r.type = 'account.opened' THEN
                            UPDATE accounts SET currency = r.currency, overdraft_limit = r.overdraft_limit
                            WHERE account = r.account;
                        ELSIF rule IS NULL THEN
                            payer := CASE r.type WHEN 'payment.deposited' THEN 'outside'
                                                 WHEN 'payment.refunded' THEN r.counterparty
                                                 ELSE r.account END;
                            payee := CASE WHEN payer = r.account THEN r.counterparty ELSE r.account END;
                            -- Relative, and checked by the table again. The rest of the world has no row: NULL.
                            UPDATE accounts SET balance = balance - r.amount WHERE account = payer RETURNING balance INTO payers;
                            UPDATE accounts SET balance = balance + r.amount WHERE account = payee RETURNING balance INTO payees;
                            INSERT INTO ledger (account, ordinal, event_id, currency, amount, balance)
                            VALUES (payer, place, r.id, r.currency, -r.amount, payers),
                                   (payee, place, r.id, r.currency, r.amount, payees);
                            IF r.type = 'payment.captured' THEN
                                INSERT INTO captures (account, payment_id, merchant, amount)
                                VALUES (r.account, r.payment_id, r.counterparty, r.amount);
                            ELSIF r.type = 'payment.refunded' THEN
                                UPDATE captures SET refunded = refunded + r.amount
                                WHERE account = r.account AND payment_id = r.payment_id;
                            END IF;
                        END IF;
                    END IF;
                END IF;
                pending := array_append(pending, verdict);
            END LOOP;
        EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
            -- The last resort, for what the predicates do not know. A loop knows which record it was: what comes before
            -- it is judged again without it, then it is answered for, then the rest follows in a new subtransaction. So
            -- the order is kept, no record is judged more than twice for one at fault, and a batch without one costs a
            -- single subtransaction. The message text is left out: it may quote the value.
            GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, broken = CONSTRAINT_NAME;
            culprit := ROW(r.id, 'invalid', code,
                           CASE WHEN broken <> '' THEN 'constraint ' || broken ELSE 'value out of range or malformed' END);
            theirs := r.account;
            last := r.n - 1;
            CONTINUE;
        END;
        answers := answers || pending;
        blocked := blocking;
        IF last < total THEN
            answers := array_append(answers, culprit);
            blocked := array_append(blocked, theirs);
        END IF;
        first := last + 2;
        last := total;
    END LOOP;
    RETURN QUERY SELECT * FROM unnest(answers);
END
$$;

REVOKE ALL ON FUNCTION spillway.apply_payments(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION spillway.apply_payments(jsonb) TO spillway_worker;
