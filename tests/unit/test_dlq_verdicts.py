"""The trials of a redrive's groups: whose turn it is, and what the fates of a canary decide."""

from __future__ import annotations

from datetime import UTC, datetime

from spillway.dlq.letters import Cause
from spillway.dlq.verdicts import DIED, NO_CANARY, PASSED, UNPROVEN, Trials, Turn, Verdict
from spillway.fleet.canaries import Fate

ONE, TWO = Cause("data"), Cause("contract")


class Script:
    """A watch and a clock that a test moves on."""

    def __init__(self) -> None:
        self.fates: list[Fate] = []
        self.now = 1000.0

    def poll(self) -> list[Fate]:
        fates, self.fates = self.fates, []
        self.now += 1  # past the pause between two looks
        return fates

    def tells(self, message_id: str, outcome: str, **why: str) -> None:
        self.fates.append(Fate(message_id=message_id, outcome=outcome, at=datetime.now(UTC), **why))


def trials(script: Script, **more: object) -> Trials:
    return Trials(script, timeout_s=10, poll_s=0.5, clock=lambda: script.now, **more)  # type: ignore[arg-type]


def ask(of: Trials, cause: Cause, *, room: bool = True) -> Turn:
    return of.ask(cause, lambda: room)


def test_one_goes_ahead_and_the_others_wait_for_it() -> None:
    script = Script()
    all_of = trials(script)
    assert [ask(all_of, ONE), ask(all_of, ONE), ask(all_of, TWO)] == [Turn.CANARY, Turn.WAIT, Turn.CANARY]
    all_of.sent(ONE, "m1", "g")
    all_of.sent(TWO, "m2", None)
    assert (all_of.pending, all_of.poll()) == (2, [])
    script.tells("m1", "applied")
    script.tells("m2", "dead-lettered", reason="data", sqlstate="23514", detail="constraint c")
    script.tells("somebody else's", "applied")
    assert all_of.poll() == [
        Verdict(ONE, PASSED, "applied", "g"),
        Verdict(TWO, DIED, "the canary was dead-lettered again: data 23514 (constraint c)", None),
    ]
    assert [ask(all_of, ONE), ask(all_of, TWO)] == [Turn.GO, Turn.STAY]
    assert (all_of.pending, all_of.poll()) == (0, []), "each verdict is told once"


def test_a_worker_that_is_quicker_than_sqs_answer() -> None:
    script = Script()
    all_of = trials(script)
    ask(all_of, ONE)
    script.tells("m1", "rejected")
    assert all_of.poll() == []
    all_of.sent(ONE, "m1", None)
    assert all_of.poll() == [Verdict(ONE, PASSED, "rejected", None)]


def test_one_that_is_given_back_has_another_chance_until_the_time_is_over() -> None:
    script = Script()
    all_of = trials(script)
    for cause, message_id in ((ONE, "m1"), (TWO, "m2")):
        ask(all_of, cause)
        all_of.sent(cause, message_id, None)
        script.tells(message_id, "unavailable")
    assert all_of.poll() == []
    script.tells("m1", "duplicate")
    assert all_of.poll() == [Verdict(ONE, PASSED, "duplicate", None)]
    script.now += 10
    [late] = all_of.poll()
    assert (late.verdict, late.why) == (
        UNPROVEN,
        "no outcome of the canary within 10 s; last given back as unavailable",
    )
    script.tells("m2", "applied")
    all_of.poll()
    assert ask(all_of, TWO) == Turn.STAY, "too late: its group was let stay"


def test_the_time_counts_from_the_sending() -> None:
    script = Script()
    all_of = trials(script)
    ask(all_of, ONE)
    script.now += 100
    assert all_of.poll() == []
    all_of.sent(ONE, "m1", None)
    script.now += 8
    assert all_of.poll() == []
    assert all_of.state(ONE) == ""


def test_if_a_canary_cannot_be_sent_another_letter_is_it() -> None:
    all_of = trials(Script())
    ask(all_of, ONE)
    all_of.unsent(ONE)
    assert all_of.state(ONE) is None
    assert ask(all_of, ONE) == Turn.CANARY


def test_a_group_none_of_whose_letters_can_be_one_stays() -> None:
    all_of = trials(Script())
    assert ask(all_of, ONE, room=False) == Turn.WAIT
    all_of.give_up(ONE)
    assert (ask(all_of, ONE), all_of.why(ONE)) == (Turn.STAY, NO_CANARY)


def test_without_a_watch_everything_goes() -> None:
    all_of = Trials(None)
    assert (ask(all_of, ONE), all_of.poll(), all_of.pending) == (Turn.GO, [], 0)


def test_verdicts_of_the_run_that_is_resumed_still_hold() -> None:
    all_of = trials(Script(), known={ONE: (PASSED, "applied"), TWO: (DIED, "it died")})
    assert [ask(all_of, ONE), ask(all_of, TWO), all_of.why(TWO)] == [Turn.GO, Turn.STAY, "it died"]
    assert all_of.poll() == []
