"""A checker that cannot fail is worthless: it is fed lies, and must name each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from spillway.contracts import CONTRACTS
from spillway.histories.base import VALID
from spillway.histories.orders import generate
from tests.chaos.checker import Found, Kind, Letter, check, check_fleet, letters_of
from tests.chaos.faults import load
from tests.chaos.histories import CLAIMS, killer_ids, killers, workers_with_histories
from tests.chaos.histories import generate as generate_for
from tests.chaos.plan import plan
from tests.chaos.report import markdown
from tests.chaos.runner import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TestDatabase

WORKERS = ("orders", "inventory", "payments", "audit")
KILLERS = killers("orders", 3)


def honest() -> Found:
    """A run of the orders worker in which everything went as it should."""
    history = generate(120, seed=5, poison=0.1, duplicates=0.1)
    killer = KILLERS[0].body
    letters = [Letter(body, history.reasons[body]) for body in history.broken.elements()]
    return Found(
        worker="orders",
        event_ids=frozenset(map(str, history.event_ids)),
        broken=history.broken,
        reasons=history.reasons,
        claimed=sorted(map(str, history.event_ids)),
        letters=[*letters, Letter(killer, "crashed")],
        invariants=[],
        killers={killer: killer_ids(KILLERS)[0]},
        batches={"success": 9, "partial": 2, "crash": 1, "timeout": 0},
    )


def a_healthy_body() -> str:
    return next(message.body for message in generate(50, seed=5).messages if message.kind == VALID)


def test_the_truth_is_not_a_violation() -> None:
    found = honest()
    assert len(found.letters) > 10
    assert check(found) == []
    assert check_fleet(pins=0, deadlocks=0) == []


def test_a_second_copy_of_a_dead_letter_is_not_a_violation() -> None:
    found = honest()
    assert check(replace(found, letters=[*found.letters, found.letters[0]])) == []


LIES: dict[str, tuple[Callable[[Found], Found], Kind, str]] = {
    "a lost event": (lambda f: replace(f, claimed=f.claimed[1:]), Kind.LOST, "1 events are lost"),
    "all events lost": (lambda f: replace(f, claimed=[]), Kind.LOST, "events are lost"),
    "more lost than are left in the queue": (
        lambda f: replace(f, claimed=f.claimed[3:], left=2),
        Kind.LOST,
        "3 events are lost",
    ),
    "an event claimed twice": (
        lambda f: replace(f, claimed=[*f.claimed, f.claimed[0]]),
        Kind.TWICE,
        "claimed twice",
    ),
    "a doubled effect": (
        lambda f: replace(f, invariants=["SKU-1 has 3 pieces, expected 5"]),
        Kind.TWICE,
        "SKU-1 has 3 pieces",
    ),
    "a healthy dead letter": (
        lambda f: replace(f, letters=[*f.letters, Letter(a_healthy_body(), "data")]),
        Kind.HEALTHY,
        "is in the dead-letter queue because ['data']",
    ),
    "a healthy dead letter that is said to have killed": (
        lambda f: replace(f, letters=[*f.letters, Letter(a_healthy_body(), "crashed")]),
        Kind.HEALTHY,
        "because ['crashed']",
    ),
    "a wrong reason": (
        lambda f: replace(f, letters=[Letter(f.letters[0].body, "gap"), *f.letters[1:]]),
        Kind.DEAD_LETTER,
        "because ['gap'], not",
    ),
    "a second copy with another reason": (
        lambda f: replace(f, letters=[*f.letters, Letter(f.letters[0].body, "data")]),
        Kind.DEAD_LETTER,
        "not",
    ),
    "no reason": (
        lambda f: replace(f, letters=[Letter(f.letters[0].body, ""), *f.letters[1:]]),
        Kind.DEAD_LETTER,
        "because ['']",
    ),
    "a broken message that is gone": (
        lambda f: replace(f, letters=f.letters[1:]),
        Kind.DEAD_LETTER,
        "1 broken messages are gone",
    ),
    "a killer that is gone": (
        lambda f: replace(f, letters=f.letters[:-1]),
        Kind.DEAD_LETTER,
        "1 broken messages are gone",
    ),
    "a killer that is dead for another reason": (
        lambda f: replace(f, letters=[*f.letters[:-1], Letter(f.letters[-1].body, "data")]),
        Kind.DEAD_LETTER,
        "not 'crashed'",
    ),
    "a killer that took effect": (
        lambda f: replace(f, killers_claimed=list(f.killers.values())),
        Kind.OTHER,
        "took effect",
    ),
    "messages that never end": (lambda f: replace(f, left=4), Kind.STUCK, "4 messages are still not done"),
    "an invocation out of time": (
        lambda f: replace(f, batches={"success": 1, "timeout": 2}),
        Kind.OTHER,
        "{'timeout': 2}",
    ),
    "an invocation that raised": (lambda f: replace(f, batches={"error": 1}), Kind.OTHER, "{'error': 1}"),
    "an unreported batch": (lambda f: replace(f, batches={"unreported": 1}), Kind.OTHER, "{'unreported': 1}"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(lie: str) -> None:
    doctor, kind, words = LIES[lie]
    violations = [one for one in check(doctor(honest())) if one.kind is not Kind.STUCK or kind is Kind.STUCK]
    assert [violation.kind for violation in violations] == [kind]
    assert words in violations[0].what


def test_messages_still_in_the_queue_are_not_lost() -> None:
    found = honest()
    violations = check(replace(found, claimed=found.claimed[3:], left=3, invariants=["order 7 has no row"]))
    assert [violation.kind for violation in violations] == [Kind.STUCK]


def test_a_timeout_is_no_violation_where_the_fault_makes_it() -> None:
    assert check(replace(honest(), batches={"timeout": 2}, may_time_out=True)) == []


def test_pins_and_deadlocks_are_violations() -> None:
    assert [violation.kind for violation in check_fleet(pins=1, deadlocks=0)] == [Kind.OTHER]
    assert [violation.kind for violation in check_fleet(pins=0, deadlocks=1)] == [Kind.OTHER]


@pytest.mark.parametrize("worker", CONTRACTS)
def test_a_history_notices_an_empty_database(worker: str, database: TestDatabase) -> None:
    """Nothing was processed: a history that finds nothing wrong with that would find nothing ever."""
    history = generate_for(worker, 4, 80)
    with database.owner() as connection:
        assert history.violations(connection) != []
        table = connection.execute("SELECT to_regclass(%s)::text", [f"spillway.{CLAIMS[worker]}"]).fetchone()
        assert table != (None,)


def test_all_workers_of_the_template_have_histories() -> None:
    assert set(workers_with_histories()) == set(CONTRACTS) >= set(WORKERS)


def test_the_reason_is_read_from_either_attribute() -> None:
    def letter(**attributes: str) -> Any:
        values = {f"spillway.{name.replace('_', '-')}": {"StringValue": value} for name, value in attributes.items()}
        return {"Body": "x", "MessageAttributes": values}

    received = [letter(reason="gap"), letter(dead_letter='{"reason": "data"}'), letter(), {"Body": "x"}]
    assert [one.reason for one in letters_of(received)] == ["gap", "data", "", ""]


def test_runs_of_one_seed_share_no_key_and_can_be_planned_again() -> None:
    plans = [plan(3, run, WORKERS) for run in range(300)]
    assert plans == [plan(3, run, WORKERS) for run in range(300)]
    assert plans != [plan(4, run, WORKERS) for run in range(300)]
    assert (
        len({one.history_seed for one in plans} | {plan(3, run, WORKERS, attempt=1).history_seed for run in range(300)})
        == 600
    )


def test_every_fault_has_its_turn_before_any_comes_again() -> None:
    alone = [plan(9, run, WORKERS).faults for run in range(200)]
    names = [faults[0].fault for faults in alone if len(faults) == 1]
    size = len(load())
    assert set(names[:size]) == set(names[size : 2 * size]) == set(load())
    together = [faults for faults in alone if len(faults) > 1]
    assert len(together) == 50
    for faults in together:
        takes = [what for one in faults if (what := load()[one.fault].takes)]
        assert len(set(takes)) == len(takes)
        assert len({one.fault for one in faults}) == len(faults)


def test_what_did_not_happen_is_not_counted() -> None:
    happened = Report(1, ("latency",), injected={"latency": 4}, first_commit_s=0.5, ninety_s=1.0)
    nothing = Report(2, ("latency",), injected={"latency": 0})
    table = markdown([happened, nothing], 1, 60)
    assert "| latency | 1 | 4 | 0 | 0 | 0 | 0 | 0.5 / 0.5 s | 1.0 / 1.0 s |" in table
    assert "1 without their fault" in table
