"""apply_payments against the reference: strict order within an account, whatever the other accounts do meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.payments import PaymentsHistory, generate
from spillway.histories.payments_bank import Bank
from spillway.samples.payments import MERCHANT, captured, deposited, opened, refunded, transferred
from tests.conftest import BOTH_ROUTES
from workers.payments.contract import PaymentEvent
from workers.payments.handler import to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.histories.base import Message
    from tests.conftest import TestDatabase

APPLY = statement("payments")
#: apply.sql's: the first number of its advisory locks, and how many stripes there are.
LOCKS, STRIPES = 1885435245, 1024
#: The tables that the function writes, beside that of the claims.
CHANGED = ("accounts", "ledger", "captures")
#: Lambda's for a FIFO queue.
BATCH_SIZE = 10
decode = EventDecoder[Any](PaymentEvent).decode

Answer = tuple[UUID, str, str | None, str | None]


def apply(connection: psycopg.Connection[Any], rows: list[Any]) -> list[Answer]:
    connection.adapters.register_dumper(JsonText, JsonTextDumper)
    return connection.execute(APPLY, (JsonText(msgspec.json.encode(rows)),)).fetchall()


def row(event: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The row of a sample event as JSON-like values, with `changes` to it: what a worker would never send."""
    return msgspec.to_builtins(to_row(decode(msgspec.json.encode(event)))) | changes


def outcomes(answers: list[Answer]) -> dict[UUID, str]:
    """Outcome by event id; of a rejection, its reason."""
    assert len({answer[0] for answer in answers}) == len(answers), "one answer for each id"
    return {answer[0]: answer[2] or "" if answer[1] == "rejected" else answer[1] for answer in answers}


def ends(connection: psycopg.Connection[Any], *events: dict[str, Any]) -> list[str]:
    """What becomes of sample events that come in one batch, in their order."""
    by_id = outcomes(apply(connection, [row(event) for event in events]))
    return [by_id[UUID(event["id"])] for event in events]


def good(history: PaymentsHistory) -> list[Message]:
    return [message for message in history.messages if message.kind in (VALID, DUPLICATE)]


def row_of(message: Message) -> Any:
    return to_row(decode(message.body))


def balances(owner: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(owner.execute("SELECT account, balance FROM spillway.accounts").fetchall())


def everything(owner: psycopg.Connection[Any]) -> list[Any]:
    """All that the function can change, but for claims."""
    return [owner.execute(f"TABLE spillway.{table} ORDER BY 1, 2").fetchall() for table in CHANGED]


def reset(connection: psycopg.Connection[Any]) -> None:
    connection.execute("TRUNCATE spillway.accounts, spillway.payment_events, spillway.ledger, spillway.captures")


@BOTH_ROUTES
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(60, 300), largest=st.sampled_from([1, 3, BATCH_SIZE, 150]))
def test_any_split_and_redelivery_gives_the_reference(
    database: TestDatabase, seed: int, size: int, largest: int
) -> None:
    history = generate(size, seed=seed, duplicates=0.1, poison=0)
    rng = random.Random(seed)
    bank, expected = Bank(), {}
    for event in history.events.values():
        expected[event.id] = bank.process(event)[0] or "applied"
    rows = [row_of(message) for message in good(history)]
    seen: set[UUID] = set()
    with database.owner() as owner, database.worker() as worker:
        reset(owner)
        while rows:
            cut = rng.randint(1, largest)
            batch, rows = rows[:cut], rows[cut:]
            for _ in range(rng.choice([1, 1, 2])):  # now and then the whole batch comes again
                found = outcomes(apply(worker, batch))
                assert found == {row.id: "duplicate" if row.id in seen else expected[row.id] for row in batch}
                seen |= found.keys()
        assert history.violations(owner) == []
    assert len(seen) == len(expected)


class FifoQueue:
    """A FIFO queue of several groups as concurrent consumers see it: a group is in one batch at a time."""

    def __init__(self, messages: list[Message], seed: int) -> None:
        self._groups: defaultdict[str, deque[Any]] = defaultdict(deque)
        for message in messages:
            self._groups[message.group].append(row_of(message))
        self._busy: set[str] = set()
        self._lost: list[list[Any]] = []  # batches whose visibility timeout ended while they were worked on
        self._rng = random.Random(seed)
        self._changed = threading.Condition()
        self._stopped = False

    def take(self) -> tuple[list[Any], set[str]] | None:
        """A batch and the groups in it; None when there is nothing left."""
        with self._changed:
            while not self._stopped:
                free = [group for group, waiting in self._groups.items() if waiting and group not in self._busy]
                if self._lost and (not free or self._rng.random() < 0.3):
                    return self._lost.pop(self._rng.randrange(len(self._lost))), set()
                if free:
                    return self._next(free)
                if not self._busy:
                    break
                self._changed.wait()
            return None

    def _next(self, free: list[str]) -> tuple[list[Any], set[str]]:
        groups = self._rng.sample(free, k=min(len(free), self._rng.randint(1, 4)))
        batch = [row for group in groups for row in list(self._groups[group])[:3]][:BATCH_SIZE]
        self._busy.update(groups)
        if self._rng.random() < 0.2:
            self._lost.append(batch)
        return batch, set(groups)

    def done(self, batch: list[Any], groups: set[str]) -> None:
        with self._changed:
            if groups and self._rng.random() > 0.1:  # else not deleted, so that it is received again
                for row in batch:
                    assert self._groups[row.account].popleft() is row
            self._busy -= groups
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@BOTH_ROUTES
def test_batches_at_once_are_exact(database: TestDatabase) -> None:
    """Eight consumers, accounts that pay each other and few merchants, batches delivered again, some while in work."""
    history = generate(3_000, seed=11, duplicates=0.1, poison=0, accounts=40)
    queue = FifoQueue(good(history), seed=5)
    counts: Counter[str] = Counter()
    failures: list[BaseException] = []

    def consume() -> None:
        try:
            with database.worker() as connection:
                while (taken := queue.take()) is not None:
                    batch, groups = taken
                    answers = apply(connection, batch)
                    queue.done(batch, groups)
                    counts.update(answer[1] for answer in answers)
        except BaseException as error:
            failures.append(error)
            queue.stop()

    run_at_once([consume] * 8)
    assert failures == [], "a deadlock would show here"
    with database.owner() as owner:
        assert history.violations(owner) == []
    assert set(counts) == {"applied", "rejected", "duplicate"}
    assert counts["applied"] + counts["rejected"] == len(history.events)
    assert counts["rejected"] > 200


def run_at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_accounts_that_pay_each_other_at_once_do_not_deadlock(database: TestDatabase) -> None:
    """The harshest case: every batch touches the same accounts, in any order."""
    accounts = [f"acc-{number}" for number in range(12)]
    with database.worker() as worker:
        for account in accounts:
            assert ends(worker, opened(account, limit=10**6)) == ["applied"]
    failures: list[BaseException] = []

    def pay(account: str) -> None:
        others = [other for other in accounts if other != account]
        rng = random.Random(account)
        try:
            with database.worker() as worker:
                for first in range(2, 200, BATCH_SIZE):
                    batch = [transferred(account, first + n, 1, rng.choice(others)) for n in range(BATCH_SIZE)]
                    assert ends(worker, *batch) == ["applied"] * BATCH_SIZE
        except BaseException as error:
            failures.append(error)

    run_at_once([lambda account=account: pay(account) for account in accounts[:8]])
    assert failures == []
    with database.owner() as owner:
        assert sum(balances(owner).values()) == 0
        assert owner.execute("SELECT count(*), sum(amount) FROM spillway.ledger").fetchone() == (8 * 200 * 2, 0)


# Order: gaps, replays, duplicates.


def test_a_gap_changes_nothing_and_holds_no_other_account_up(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, opened("a"), opened("b")) == ["applied"] * 2
        before = everything(owner)
        late = [deposited("a", 3, 100), deposited("a", 4, 100), deposited("a", 5, 100)]
        answers = apply(worker, [row(event) for event in late])
        assert [answer[1:] for answer in answers] == [
            ("gap", None, f"expected sequence 2, got {number}") for number in (3, 4, 5)
        ]
        assert everything(owner) == before
        assert owner.execute("SELECT count(*) FROM spillway.payment_events").fetchone() == (2,), "nothing was claimed"
        assert ends(worker, *late, deposited("b", 2, 7)) == ["gap", "gap", "gap", "applied"]
        assert ends(worker, deposited("new", 2, 1)) == ["gap"]
        # The missing one comes first, the others after it: in one batch, it need not be looked at twice.
        assert ends(worker, deposited("a", 2, 1), *late) == ["applied"] * 4
        assert balances(owner) == {"a": 301, "b": 7}


def test_a_number_that_was_used_is_a_replay_and_has_no_effect(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, opened("a"), deposited("a", 2, 100)) == ["applied"] * 2
        before = everything(owner)
        again = row(deposited("a", 2, 100), id=str(uuid4()))
        assert outcomes(apply(worker, [again])) == {UUID(again["id"]): "sequence_replayed"}
        assert outcomes(apply(worker, [again])) == {UUID(again["id"]): "duplicate"}
        assert everything(owner) == before
        recorded = "SELECT outcome, reason FROM spillway.payment_events WHERE event_id = %s"
        assert owner.execute(recorded, (again["id"],)).fetchall() == [("rejected", "sequence_replayed")]


def test_an_event_that_comes_again_after_its_claim_was_pruned_has_no_second_effect(database: TestDatabase) -> None:
    events = [opened(MERCHANT), opened("a"), deposited("a", 2, 100), captured("a", 3, 60), refunded("a", 4, 60)]
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, *events) == ["applied"] * 5
        before = everything(owner)
        owner.execute("TRUNCATE spillway.payment_events")
        assert ends(worker, *events) == ["sequence_replayed"] * 5
        assert everything(owner) == before


def test_a_rejected_event_uses_its_number_and_comes_again_as_a_duplicate(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        poor = [opened(MERCHANT), opened("a"), captured("a", 2, 1)]
        assert ends(worker, *poor) == ["applied", "applied", "insufficient_funds"]
        assert ends(worker, deposited("a", 3, 1), captured("a", 2, 1)) == ["applied", "duplicate"]
        assert balances(owner) == {"a": 1, MERCHANT: 0}


def test_an_account_that_was_not_opened_uses_its_numbers_too(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, deposited("a", 1, 5), opened("a", 2), deposited("a", 3, 5), opened("a", 4)) == [
            "unknown_account",
            "applied",
            "applied",
            "account_exists",
        ]
        assert balances(owner) == {"a": 5}


def test_the_same_event_twice_in_one_batch_gets_one_answer(database: TestDatabase) -> None:
    event = opened("a")
    with database.worker() as worker:
        assert [answer[1] for answer in apply(worker, [row(event), row(event)])] == ["applied"]
        # In whatever spelling the id comes.
        assert [answer[1] for answer in apply(worker, [row(event), row(event, id=event["id"].upper())])] == [
            "duplicate"
        ]


def test_an_empty_batch_has_no_answer(database: TestDatabase) -> None:
    with database.worker() as worker:
        assert apply(worker, []) == []


# Rules.


def test_the_limit_may_be_reached_and_not_passed(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, opened(MERCHANT), opened("a", limit=50), deposited("a", 2, 100)) == ["applied"] * 3
        assert ends(worker, captured("a", 3, 151), captured("a", 4, 150), captured("a", 5, 1, "pay-2")) == [
            "insufficient_funds",
            "applied",
            "insufficient_funds",
        ]
        assert balances(owner) == {"a": -50, MERCHANT: 150}


def test_refunds(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        ready = [opened(MERCHANT), opened("a"), opened("b"), deposited("a", 2, 100), captured("a", 3, 60)]
        assert ends(worker, *ready) == ["applied"] * 5
        other_merchant = refunded("a", 6, 1)
        other_merchant["data"]["merchant"] = "b"
        assert ends(
            worker,
            refunded("a", 4, 20),
            refunded("a", 5, 1, "pay-other"),
            other_merchant,
            refunded("a", 7, 41),
            refunded("a", 8, 40),
            refunded("a", 9, 1),
            refunded("b", 2, 1),
        ) == [
            "applied",
            "unknown_capture",
            "merchant_mismatch",
            "refund_exceeds_capture",
            "applied",
            "refund_exceeds_capture",
            "unknown_capture",
        ]
        assert balances(owner) == {"a": 100, "b": 0, MERCHANT: 0}
        assert owner.execute("SELECT * FROM spillway.captures").fetchall() == [("a", "pay-5001", MERCHANT, 60, 60)]


def test_a_merchant_that_paid_out_cannot_refund(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        ready = [opened(MERCHANT), opened("a"), deposited("a", 2, 100), captured("a", 3, 60)]
        assert ends(worker, *ready, transferred(MERCHANT, 2, 1, "a"), refunded("a", 4, 60), refunded("a", 5, 59)) == [
            *["applied"] * 5,
            "insufficient_funds",
            "applied",
        ]
        assert balances(owner) == {"a": 100, MERCHANT: 0}


def test_other_rules(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        francs, dollars = opened("francs"), deposited("a", 3, 1)
        francs["data"]["currency"], dollars["data"]["currency"] = "CHF", "USD"
        assert ends(worker, opened(MERCHANT), opened("a"), francs, deposited("a", 2, 100), dollars) == [
            *["applied"] * 4,
            "currency_mismatch",
        ]
        assert ends(
            worker,
            transferred("a", 4, 1, "nobody"),
            transferred("a", 5, 1, "francs"),
            captured("a", 6, 1),
            captured("a", 7, 1),
            transferred("a", 8, 1, MERCHANT),
        ) == ["unknown_account", "currency_mismatch", "applied", "payment_exists", "applied"]
        assert balances(owner) == {"a": 98, MERCHANT: 2, "francs": 0}, "nobody got no row"


# A record that is at fault.

DEFECTS: list[tuple[dict[str, Any], str]] = [
    ({"sequence": 0}, "sequence"),
    ({"sequence": "x"}, "sequence"),
    ({"sequence": 1.5}, "sequence"),
    ({"sequence": None}, "sequence"),
    ({"sequence": 10**30}, "sequence"),
    ({"amount": 0}, "amount"),
    ({"amount": -1}, "amount"),
    ({"amount": "NaN"}, "amount"),
    ({"amount": None}, "amount"),
    ({"amount": 10**30}, "amount"),
    ({"currency": "eur"}, "currency"),
    ({"currency": "EUR\n"}, "currency"),
    ({"type": "payment.teleported"}, "type"),
    ({"type": None}, "type"),
    ({"type": "account.opened"}, "limit"),
    ({"type": "account.opened", "limit": -1}, "limit"),
    ({"counterparty": None}, "counterparty"),
    ({"counterparty": "a"}, "counterparty"),
    ({"counterparty": "outside"}, "counterparty"),
    ({"counterparty": "x" * 65}, "counterparty"),
    ({"payment_id": ""}, "payment_id"),
    ({"payment_id": None}, "payment_id"),
]


def test_after_an_invalid_record_the_rest_of_its_account_is_held(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, opened(MERCHANT)) == ["applied"]
        for number, (defect, place) in enumerate(DEFECTS):
            a, b = f"a-{number}", f"b-{number}"
            good, later = captured(a, 3, 10), deposited(a, 4, 5)
            bad = row(good, **{name: a if value == "a" else value for name, value in defect.items()})
            assert ends(worker, opened(a), opened(b), deposited(a, 2, 100)) == ["applied"] * 3
            before = everything(owner)
            answers = apply(worker, [bad, row(later)])
            assert [answer[:3] for answer in answers] == [
                (UUID(good["id"]), "invalid", "22023"),
                (UUID(later["id"]), "held", None),
            ], defect
            assert (answers[0][3] or "").startswith(f"{place}: expected"), defect
            assert everything(owner) == before, defect
            # Another account goes on, before and after it in the batch.
            around = [row(deposited(b, 2, 1)), bad, row(later), row(deposited(b, 3, 1))]
            assert [answer[1] for answer in apply(worker, around)] == ["applied", "invalid", "held", "applied"], defect
            # Nothing was claimed for either: without the invalid one there is a gap, with it corrected all is well.
            assert ends(worker, later) == ["gap"]
            assert ends(worker, good, later) == ["applied"] * 2


def test_a_record_that_cannot_be_told_apart_is_invalid_and_no_other_suffers(database: TestDatabase) -> None:
    nameless = [{"id": "x"}, {"id": None}, {"account": ""}, {"account": "x" * 65}, {"account": None}]
    records = [*(row(opened("a"), **defect) for defect in nameless), None, 1, "text", [], {}]
    with database.worker() as worker:
        for number, record in enumerate(records):
            answers = apply(worker, [record, row(opened(f"b-{number}"))])
            assert [answer[1] for answer in answers] == ["invalid", "applied"], record


@BOTH_ROUTES
@pytest.mark.parametrize("bad_share", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("batch_size", [BATCH_SIZE, 1_000])
def test_what_the_predicates_do_not_know_is_isolated_in_order(
    database: TestDatabase, bad_share: float, batch_size: int
) -> None:
    """A rule that only the table knows: a constraint added later, as in a migration that is ahead of the function."""
    history = generate(300, seed=9, duplicates=0, poison=0)
    rng = random.Random(2)
    forbidden = {key for key in history.events if rng.random() < bad_share}
    defective = {key for key in history.events if rng.random() < 0.02}  # for the predicates, all the same
    with database.worker() as worker, database.owner() as owner:
        forbid(owner, forbidden)
        bank = Bank()
        events = list(history.events.values())
        for start in range(0, len(events), batch_size):
            batch = events[start : start + batch_size]
            expected: dict[UUID, str] = {}
            held: set[str] = set()
            for event in batch:
                account = event.data.account
                if account in held:
                    expected[event.id] = "held"
                elif event.id in defective:
                    expected[event.id] = "invalid"
                    held.add(account)
                elif event.data.sequence > bank.accounts[account].next_sequence:
                    expected[event.id] = "gap"
                elif event.id in forbidden:
                    expected[event.id] = "invalid"
                    held.add(account)
                else:
                    expected[event.id] = bank.process(event)[0] or "applied"
            changes = {key: {"currency": "?"} for key in defective}
            rows = [msgspec.structs.replace(to_row(event), **changes.get(event.id, {})) for event in batch]
            answers = apply(worker, rows)
            assert outcomes(answers) == expected
            assert [answer[0] for answer in answers] == [event.id for event in batch], "in the order of the batch"
            assert {answer[2:] for answer in answers if answer[1] == "invalid"} <= {
                ("23514", "constraint later"),
                ("22023", "currency: expected three capital letters"),
            }
        used = {name: state for name, state in bank.accounts.items() if state.next_sequence > 1}
        assert balances(owner) == {name: state.balance for name, state in used.items()}
        if bad_share < 1:
            # The operator mends the table and redrives in order: all that was put aside finds its place.
            owner.execute("ALTER TABLE spillway.payment_events DROP CONSTRAINT later")
            apply(worker, [to_row(event) for event in events])
            assert history.violations(owner) == []


def forbid(owner: psycopg.Connection[Any], event_ids: set[UUID]) -> None:
    owner.execute("CREATE TABLE spillway.forbidden (event_id uuid PRIMARY KEY)")
    owner.cursor().executemany("INSERT INTO spillway.forbidden VALUES (%s)", [(one,) for one in event_ids])
    owner.execute(
        "CREATE FUNCTION spillway.allowed(uuid) RETURNS boolean LANGUAGE sql"
        " RETURN NOT EXISTS (SELECT FROM spillway.forbidden WHERE event_id = $1)"
    )
    owner.execute("ALTER TABLE spillway.payment_events ADD CONSTRAINT later CHECK (spillway.allowed(event_id))")


def test_a_balance_beyond_bigint_is_the_messages_fault(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        assert ends(worker, opened("a"), opened("b"), deposited("a", 2, 1)) == ["applied"] * 3
        owner.execute("UPDATE spillway.accounts SET balance = 9223372036854775807 WHERE account = 'b'")
        answers = apply(worker, [row(opened("c")), row(transferred("a", 3, 1, "b")), row(deposited("c", 2, 1))])
        assert [answer[1:3] for answer in answers] == [("applied", None), ("invalid", "22003"), ("applied", None)]
        assert ends(worker, deposited("a", 3, 1)) == ["applied"], "its number was not used"


def test_an_answer_never_quotes_a_value(database: TestDatabase) -> None:
    fields = ("type", "sequence", "amount", "currency", "counterparty", "account", "payment_id")
    with database.worker() as worker:
        assert ends(worker, opened(MERCHANT), opened("a")) == ["applied"] * 2
        for field in fields:
            answers = apply(worker, [row(captured("a", 2, 1), id=str(uuid4()), **{field: "S3CRET" * 20})])
            assert [answer[1] for answer in answers] == ["invalid"]
            assert "S3CRET" not in str(answers)


# Locks.


def stripes(owner: psycopg.Connection[Any], accounts: list[str]) -> list[int]:
    """The stripes of `accounts`, ascending."""
    query = "SELECT DISTINCT hashtext(name) & %s FROM unnest(%s::text[]) AS name ORDER BY 1"
    return [stripe for (stripe,) in owner.execute(query, (STRIPES - 1, accounts))]


def held_stripes(owner: psycopg.Connection[Any], pid: int) -> list[int]:
    query = (
        "SELECT objid::integer FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = %s AND classid = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1"
    )
    return [stripe for (stripe,) in owner.execute(query, (pid, LOCKS))]


def wait_until_blocked(owner: psycopg.Connection[Any], by: int, work: threading.Thread) -> int:
    """Wait until somebody waits for a lock that the session with process id `by` holds, and return who it is."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND %s = ANY(pg_blocking_pids(pid))"
    while not (found := owner.execute(query, (by,)).fetchall()):
        assert work.is_alive(), "it was not blocked"
    ((pid,),) = found
    return int(pid)


def test_what_was_spent_while_a_batch_waited_is_spent(database: TestDatabase) -> None:
    """The snapshot trap: the balance must be read after the lock was granted. Twice the same money would be spent."""
    with database.worker() as first, database.worker() as second, database.owner() as owner:
        assert ends(first, opened(MERCHANT), opened("a"), opened("b"), deposited("a", 2, 100)) == ["applied"] * 4
        found: list[str] = []
        # The refund is paid from what the merchant has, whose account is another group's: nothing but the lock orders
        # it against what the merchant does meanwhile.
        assert ends(first, captured("a", 3, 100)) == ["applied"]
        refund = threading.Thread(target=lambda: found.extend(ends(second, refunded("a", 4, 100))))
        with first.transaction():
            assert ends(first, transferred(MERCHANT, 2, 100, "b")) == ["applied"]
            refund.start()
            wait_until_blocked(owner, first.info.backend_pid, refund)
        refund.join()
        assert found == ["insufficient_funds"]
        assert balances(owner) == {"a": 0, "b": 100, MERCHANT: 0}


def test_the_same_batch_twice_at_once_is_judged_once(database: TestDatabase) -> None:
    """Two environments own the same messages: one was frozen beyond the visibility timeout."""
    events = [opened(MERCHANT), opened("a"), deposited("a", 2, 100), captured("a", 3, 60)]
    with database.worker() as first, database.worker() as second, database.owner() as owner:
        found: list[str] = []
        twin = threading.Thread(target=lambda: found.extend(ends(second, *events)))
        with first.transaction():
            assert ends(first, *events) == ["applied"] * 4
            twin.start()
            wait_until_blocked(owner, first.info.backend_pid, twin)
        twin.join()
        assert found == ["duplicate"] * 4
        assert balances(owner) == {"a": 40, MERCHANT: 60}


def test_locks_are_taken_in_ascending_order_for_both_ends_of_every_event(database: TestDatabase) -> None:
    """Whichever lock a batch has to wait for, it holds exactly the smaller ones."""
    batch = [transferred(f"acc-{number}", 1, 1, f"acc-{number + 100}") for number in (7, 3, 1, 9, 5)]
    names = [event["data"][end] for event in batch for end in ("account", "to")]
    with database.owner() as owner, database.owner() as holder, database.worker() as worker:
        expected = stripes(owner, names)
        assert len(expected) == len(names), "no two on one stripe"
        for position, stripe in enumerate(expected):
            found: list[str] = []
            waiting = threading.Thread(target=lambda found=found: found.extend(ends(worker, *batch)))
            with holder.transaction():
                holder.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, stripe))
                waiting.start()
                pid = wait_until_blocked(owner, holder.info.backend_pid, waiting)
                assert held_stripes(owner, pid) == expected[:position]
            waiting.join()
            assert found


def test_a_batch_of_any_size_holds_a_bounded_number_of_locks(database: TestDatabase) -> None:
    batch = [row(transferred(f"from-{number}", 1, 1, f"to-{number}")) for number in range(1_500)]
    with database.worker() as worker, database.owner() as owner, worker.transaction():
        assert {answer[1] for answer in apply(worker, batch)} == {"rejected"}
        held = held_stripes(owner, worker.info.backend_pid)
    assert STRIPES * 0.9 < len(held) <= STRIPES
    assert min(held) >= 0
    assert max(held) < STRIPES


def test_the_application_role_touches_no_table(database: TestDatabase) -> None:
    with database.worker() as worker:
        for table in (*CHANGED, "payment_events"):
            for sql in (f"TABLE spillway.{table}", f"TRUNCATE spillway.{table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    worker.execute(sql)
        assert apply(worker, []) == []


# The check of a history, which must be able to fail.


@pytest.fixture
def applied(database: TestDatabase) -> Iterator[tuple[PaymentsHistory, psycopg.Connection[Any]]]:
    """A history that was applied as it should be, beside another one's, and the owner's connection.

    In the schema `mine` there is what belongs to the history.
    """
    histories = [generate(600, seed=seed, poison=0.08) for seed in (1, 11)]
    with database.worker() as worker, database.owner() as owner:
        for history in histories:
            ahead = [message for message in history.messages if message.kind == "ahead_of_its_turn"]
            assert {answer[1] for answer in apply(worker, [row_of(message) for message in ahead])} == {"gap"}
            messages = good(history)
            for start in range(0, len(messages), 200):
                apply(worker, [row_of(message) for message in messages[start : start + 200]])
            assert history.violations(owner) == []
        owner.execute("CREATE SCHEMA mine")
        for table in (*CHANGED, "payment_events"):
            owner.execute(
                f"CREATE VIEW mine.{table} AS SELECT * FROM spillway.{table} WHERE starts_with(account, '1-')"  # noqa: S608
            )
        owner.execute("ALTER TABLE spillway.payment_events ALTER ordinal SET GENERATED BY DEFAULT")
        owner.execute("SET search_path = mine")
        yield histories[0], owner


TAMPERING = {
    "a lost event": "DELETE FROM payment_events WHERE ordinal = (SELECT max(ordinal) FROM payment_events)",
    "a rejection forgotten": "DELETE FROM payment_events WHERE reason = 'sequence_replayed'",
    "an event that nobody sent": "INSERT INTO payment_events (event_id, account, sequence, outcome)"
    " VALUES (gen_random_uuid(), '1-x', 1, 'applied')",
    "an event under another number": "UPDATE payment_events SET sequence = sequence + 1 WHERE ordinal ="
    " (SELECT max(ordinal) FROM payment_events WHERE reason IS DISTINCT FROM 'sequence_replayed')",
    "an account that nobody opened": "INSERT INTO accounts VALUES ('1-x', 'EUR', 0, 0, 2)",
    "another reason": "UPDATE payment_events SET reason = 'unknown_account' WHERE reason = 'refund_exceeds_capture'",
    "a refusal of what was possible": "UPDATE payment_events SET outcome = 'rejected', reason = 'insufficient_funds'"
    " WHERE ordinal = (SELECT max(ordinal) FROM payment_events WHERE outcome = 'applied')",
    "a posting left out": "DELETE FROM spillway.ledger WHERE ordinal = (SELECT max(ordinal) FROM ledger)",
    "half a posting left out": "DELETE FROM spillway.ledger WHERE account = 'outside'"
    " AND ordinal = (SELECT max(l.ordinal) FROM ledger m JOIN spillway.ledger l USING (event_id)"
    " WHERE l.account = 'outside')",
    "a posting too many": "INSERT INTO spillway.ledger VALUES ('outside', 0, gen_random_uuid(), 'EUR', -5, NULL),"
    " ('1-acc-00001', 0, gen_random_uuid(), 'EUR', 5, 5)",
    "a wrong amount at both ends": "UPDATE spillway.ledger SET amount = amount * 2"
    " WHERE ordinal = (SELECT max(ordinal) FROM ledger)",
    "a wrong running balance": "UPDATE ledger SET balance = balance + 1"
    " WHERE ordinal = (SELECT max(ordinal) FROM ledger)",
    "another currency": "UPDATE ledger SET currency = 'CHF' WHERE ordinal = (SELECT max(ordinal) FROM ledger)",
    "a wrong balance": "UPDATE accounts SET balance = balance + 1 WHERE account = '1-acc-00001'",
    "a wrong limit": "UPDATE accounts SET overdraft_limit = overdraft_limit + 1 WHERE account = '1-acc-00001'",
    "a wrong next number": "UPDATE accounts SET next_sequence = next_sequence + 1 WHERE account = '1-acc-00001'",
    "a refund forgotten": "UPDATE captures SET refunded = 0 WHERE refunded > 0",
    "a capture forgotten": "DELETE FROM captures WHERE refunded = 0",
    "two events judged in the wrong order": "UPDATE payment_events AS e SET ordinal = p.a + p.b - ordinal"
    " FROM (SELECT min(ordinal) AS a, max(ordinal) AS b FROM payment_events) AS p WHERE e.ordinal IN (p.a, p.b)",
    "everything lost": "TRUNCATE spillway.accounts, spillway.payment_events, spillway.ledger, spillway.captures",
}


def test_the_check_of_a_history_can_fail(applied: tuple[PaymentsHistory, psycopg.Connection[Any]]) -> None:
    history, owner = applied
    for name, sql in TAMPERING.items():
        with owner.transaction(force_rollback=True):
            assert owner.execute(sql).rowcount != 0, name
            assert history.violations(owner) != [], name
    assert history.violations(owner) == []


def test_two_histories_in_one_database_do_not_see_each_other(
    applied: tuple[PaymentsHistory, psycopg.Connection[Any]],
) -> None:
    history, owner = applied
    for table in ("accounts", "payment_events", "captures"):
        assert owner.execute(f"DELETE FROM spillway.{table} WHERE starts_with(account, '11-')").rowcount > 0  # noqa: S608
    owner.execute("DELETE FROM spillway.ledger WHERE event_id NOT IN (SELECT event_id FROM ledger)")
    assert history.violations(owner) == []
