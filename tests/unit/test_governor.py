"""The governor's decisions: a table of single ones, properties of whole histories, and a simulated pool."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workers.governor.decision import (
    BLIND_LIMIT,
    CALM_MINUTES,
    FORGOTTEN_AFTER,
    Action,
    Decision,
    Seen,
    World,
    decide,
    give_back,
)
from workers.governor.load import (
    OUTAGE_REASONS,
    SETTLED_S,
    WINDOW,
    Health,
    Level,
    Minute,
    Values,
    judge,
    last_minutes,
    target_health,
)
from workers.governor.record import MAX_TAG_VALUE, NOTE_TAG, RECORD_TAG, Record, Setting
from workers.governor.settings import GovernorSettings
from workers.runtime.settings import SettingsError

T0 = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FULL = Setting(True, 10)
#: What a tag's value may hold (botocore, lambda, TagValue).
TAG_VALUE = re.compile(r"[\w\s.:/=+\-@]*")


def world(*levels: Level, health: Health | None = Health.AVAILABLE, now: datetime = T0) -> World:
    """The last minutes' levels, newest first; what is older was calm."""
    newest = int(now.timestamp()) // 60 * 60 - 60
    padded = [*levels, *[Level.CALM] * (WINDOW - len(levels))]
    return World(health, tuple(Minute(newest - 60 * i, level) for i, level in enumerate(padded)))


def held(there: Setting, /, *, minutes_ago: int = 30, **changes: object) -> Record:
    """The record of a change that was made and seen."""
    record = Record(was=there, to=there, goal=there.concurrency or 10, at=T0 - minutes_ago * MINUTE)
    return replace(record, **changes)  # type: ignore[arg-type]


CALM = world()
WAITING = world(Level.WAITING)
SATURATED = world(Level.SATURATED)
DOWN = world(health=Health.DOWN)
ON, OFF = "Enabled", "Disabled"


@pytest.mark.parametrize(
    ("state", "there", "note", "record", "looked", "action", "to"),
    [
        # at rest
        (ON, FULL, "", None, CALM, Action.HOLD, None),
        (ON, FULL, "", None, world(Level.BUSY), Action.HOLD, None),
        (ON, FULL, "", None, World(Health.UNKNOWN, ()), Action.HOLD, None),
        # lowered, by how bad it is, never below 2
        (ON, FULL, "", None, WAITING, Action.LOWER, Setting(True, 7)),
        (ON, FULL, "", None, SATURATED, Action.LOWER, Setting(True, 5)),
        (ON, FULL, "", None, world(Level.UNKNOWN, Level.UNKNOWN, Level.WAITING), Action.LOWER, Setting(True, 7)),
        (ON, FULL, "", None, world(Level.CALM, Level.SATURATED), Action.HOLD, None),
        (ON, Setting(True, 3), "", held(Setting(True, 3)), WAITING, Action.LOWER, Setting(True, 2)),
        (ON, Setting(True, 3), "", held(Setting(True, 3)), SATURATED, Action.LOWER, Setting(True, 2)),
        (ON, Setting(True, 2), "", held(Setting(True, 2)), SATURATED, Action.HOLD, None),
        # a change is given time to show: the minute it was made in, and the next
        (ON, Setting(True, 7), "", held(Setting(True, 7), minutes_ago=1), WAITING, Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7), minutes_ago=2), WAITING, Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7), minutes_ago=3), WAITING, Action.LOWER, Setting(True, 4)),
        # raised when calm for three minutes
        (ON, Setting(True, 7), "", held(Setting(True, 7)), CALM, Action.RAISE, Setting(True, 8)),
        (ON, Setting(True, 7), "", held(Setting(True, 7), minutes_ago=4), CALM, Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7), minutes_ago=5), CALM, Action.RAISE, Setting(True, 8)),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), world(Level.BUSY), Action.HOLD, None),
        (
            ON,
            Setting(True, 7),
            "",
            held(Setting(True, 7)),
            world(Level.CALM, Level.CALM, Level.BUSY),
            Action.HOLD,
            None,
        ),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), world(*[Level.UNKNOWN] * 8), Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), world(*[Level.UNKNOWN] * 7), Action.RAISE, Setting(True, 8)),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), world(health=None), Action.RAISE, Setting(True, 8)),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), world(health=Health.UNKNOWN), Action.HOLD, None),
        (ON, FULL, "", None, world(Level.WAITING, health=Health.UNKNOWN), Action.LOWER, Setting(True, 7)),
        # doubled up to what was good before an outage, after one calm minute
        (ON, Setting(True, 2), "", held(Setting(True, 2), goal=7, minutes_ago=3), CALM, Action.RAISE, Setting(True, 4)),
        (ON, Setting(True, 4), "", held(Setting(True, 4), goal=7, minutes_ago=3), CALM, Action.RAISE, Setting(True, 7)),
        (ON, Setting(True, 7), "", held(Setting(True, 7), goal=7, minutes_ago=3), CALM, Action.HOLD, None),
        (ON, Setting(True, 2), "", held(Setting(True, 2), goal=7, minutes_ago=2), CALM, Action.HOLD, None),
        (ON, Setting(True, 8), "", held(Setting(True, 8), goal=50), CALM, Action.RAISE, FULL),
        # an outage is believed at second sight, in a row
        (ON, FULL, "", None, DOWN, Action.HOLD, None),
        (ON, FULL, "", held(FULL, down=T0 - MINUTE), DOWN, Action.DISABLE, Setting(False, 2)),
        (ON, FULL, "", held(FULL, down=T0 - MINUTE / 4), DOWN, Action.HOLD, None),
        (ON, FULL, "", held(FULL, down=T0 - FORGOTTEN_AFTER), DOWN, Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7), down=T0 - MINUTE), DOWN, Action.DISABLE, Setting(False, 2)),
        (ON, FULL, "", held(FULL, down=T0 - MINUTE), World(Health.UNKNOWN, ()), Action.HOLD, None),
        (OFF, Setting(False, 2), "", held(Setting(False, 2), down=T0 - MINUTE), DOWN, Action.HOLD, None),
        # and over at first sight, or when it could not be seen for too long
        (OFF, Setting(False, 2), "", held(Setting(False, 2), down=T0), CALM, Action.ENABLE, Setting(True, 2)),
        (OFF, Setting(False, 2), "", held(Setting(False, 2), down=T0), SATURATED, Action.ENABLE, Setting(True, 2)),
        (OFF, Setting(False, 2), "", held(Setting(False, 2)), world(health=None), Action.ENABLE, Setting(True, 2)),
        *(
            (OFF, Setting(False, 2), "", held(Setting(False, 2), down=T0 - ago), World(Health.UNKNOWN, ()), action, to)
            for ago, action, to in [
                (BLIND_LIMIT - MINUTE, Action.HOLD, None),
                (BLIND_LIMIT, Action.ENABLE, Setting(True, 2)),
            ]
        ),
        # in transition nothing is done
        *((state, FULL, "", None, SATURATED, Action.WAIT, None) for state in ("Creating", "Enabling", "Updating")),
        *((state, FULL, "", None, SATURATED, Action.WAIT, None) for state in ("Disabling", "Deleting", "")),
        # hands off what somebody else set or tagged
        (ON, Setting(True, 6), "", None, SATURATED, Action.HANDS_OFF, None),
        (ON, Setting(True, 50), "", None, CALM, Action.HANDS_OFF, None),
        (ON, Setting(True, None), "", None, CALM, Action.HANDS_OFF, None),
        (ON, Setting(True, 6), "", held(Setting(True, 7)), SATURATED, Action.HANDS_OFF, None),
        (ON, Setting(True, 2), "", held(Setting(False, 2)), DOWN, Action.HANDS_OFF, None),
        (OFF, Setting(False, 10), "", None, CALM, Action.HANDS_OFF, None),
        (OFF, Setting(False, 7), "", held(Setting(True, 7)), CALM, Action.HANDS_OFF, None),
        (OFF, Setting(False, 2), "", held(Setting(False, 2), manual=True), CALM, Action.HANDS_OFF, None),
        (OFF, Setting(False, 10), "", held(Setting(False, 2), manual=True), CALM, Action.HANDS_OFF, None),
        (ON, FULL, "off", None, SATURATED, Action.HANDS_OFF, None),
        (ON, FULL, "whatever", None, SATURATED, Action.HANDS_OFF, None),
        (OFF, Setting(False, 2), "off", held(Setting(False, 2)), CALM, Action.HANDS_OFF, None),
        (ON, FULL, "on", None, WAITING, Action.LOWER, Setting(True, 7)),
        # and on again when it is set back, or its note is removed
        (ON, Setting(True, 7), "manual: x", held(Setting(True, 7), manual=True), CALM, Action.RAISE, Setting(True, 8)),
        (ON, FULL, "manual: x", held(Setting(True, 7), manual=True), CALM, Action.HOLD, None),
        (ON, Setting(True, 6), "manual: x", held(Setting(True, 7), manual=True), CALM, Action.HANDS_OFF, None),
        (ON, Setting(True, 6), "", held(Setting(True, 7), manual=True), CALM, Action.HOLD, None),
        (OFF, Setting(False, 6), "", held(Setting(True, 7), manual=True), CALM, Action.HANDS_OFF, None),
        (ON, Setting(True, 6), "manual: x", None, CALM, Action.HANDS_OFF, None),
        # a deployment is no change by hand
        (ON, FULL, "", held(Setting(True, 7)), CALM, Action.HOLD, None),
        (ON, FULL, "", held(Setting(True, 7)), SATURATED, Action.HOLD, None),
        (ON, FULL, "", held(Setting(False, 2), down=T0), DOWN, Action.HOLD, None),
        (OFF, Setting(False, 10), "", held(Setting(False, 2)), CALM, Action.ENABLE, Setting(True, 2)),
        (ON, Setting(True, 20), "", held(Setting(True, 20)), CALM, Action.LOWER, FULL),
        (ON, Setting(True, None), "", held(Setting(True, None)), CALM, Action.LOWER, FULL),
        # a change that was written down and not made is made now; one that was made is no change by hand
        *(
            (ON, there, "", held(FULL, to=Setting(True, 7), minutes_ago=1), WAITING, action, to)
            for there, action, to in [
                (FULL, Action.LOWER, Setting(True, 7)),
                (Setting(True, 7), Action.HOLD, None),
                (Setting(True, 8), Action.HANDS_OFF, None),
            ]
        ),
    ],
)
def test_a_single_decision(
    state: str,
    there: Setting,
    *,
    note: str,
    record: Record | None,
    looked: World,
    action: Action,
    to: Setting | None,
) -> None:
    decision = decide(T0, Seen(state, there, note), 10, record, looked)
    assert (decision.action, decision.setting) == (action, to), decision


def test_what_is_written_down_before_a_change() -> None:
    lowered = decide(T0, Seen(ON, FULL), 10, None, WAITING)
    assert lowered.record == Record(was=FULL, to=Setting(True, 7), goal=7, at=T0)
    assert lowered.note == ""
    assert decide(T0, Seen(ON, FULL), 10, None, CALM).record is None

    down = decide(T0, Seen(ON, Setting(True, 7)), 10, held(Setting(True, 7), down=T0 - MINUTE), DOWN)
    assert down.record == Record(was=Setting(True, 7), to=Setting(False, 2), goal=7, at=T0, down=T0)
    ramping = held(Setting(True, 4), goal=8, down=T0 - MINUTE)
    assert getattr(decide(T0, Seen(ON, Setting(True, 4)), 10, ramping, DOWN).record, "goal", None) == 8
    assert down.record
    up = decide(T0 + MINUTE, Seen(OFF, Setting(False, 2)), 10, down.record, CALM)
    assert up.record == Record(was=Setting(False, 2), to=Setting(True, 2), goal=7, at=T0 + MINUTE)


def test_a_target_that_stays_down_is_noted_now_and_then() -> None:
    disabled = Setting(False, 2)
    for ago, noted in ((1, False), (4, False), (5, True), (60, True)):
        record = held(disabled, down=T0 - ago * MINUTE)
        decision = decide(T0, Seen(OFF, disabled), 10, record, DOWN)
        assert decision.record == (replace(record, down=T0) if noted else record), ago


def test_a_change_by_hand_is_said_once_in_both_tags() -> None:
    first = decide(T0, Seen(ON, Setting(True, 6)), 10, None, CALM)
    assert first.note == "manual: on:6 is not on:10"
    assert first.record == Record(was=FULL, to=FULL, goal=10, manual=True)
    again = decide(T0 + MINUTE, Seen(ON, Setting(True, 6), first.note), 10, first.record, CALM)
    assert (again.note, again.record) == (first.note, first.record)

    taken = decide(T0 + MINUTE, Seen(ON, Setting(True, 6)), 10, first.record, CALM)
    assert (taken.note, taken.record) == ("", Record(was=Setting(True, 6), to=Setting(True, 6), goal=6, at=T0 + MINUTE))
    back = decide(T0 + MINUTE, Seen(ON, FULL, first.note), 10, first.record, CALM)
    assert (back.note, back.record) == ("", None)


def test_the_persons_own_note_is_left_as_it_is() -> None:
    for note in ("off", "on", "leave me"):
        assert decide(T0, Seen(ON, FULL, note), 10, None, CALM).note == note
        assert give_back(T0, Seen(ON, FULL, note), 10, None).note == note


def test_memory_is_dropped_when_it_means_nothing_any_more() -> None:
    for minutes_ago, kept in ((10, True), (13, False)):
        decision = decide(T0, Seen(ON, FULL), 10, held(FULL, minutes_ago=minutes_ago), CALM)
        assert (decision.record is not None) is kept
    # at the maximum nothing is left of a goal
    assert decide(T0, Seen(ON, FULL), 10, held(FULL, goal=7), CALM).record is None


@pytest.mark.parametrize(
    ("state", "there", "note", "record", "action", "to"),
    [
        (ON, FULL, "", None, Action.HOLD, None),
        (ON, FULL, "", held(FULL), Action.HOLD, None),
        (ON, Setting(True, 7), "", held(Setting(True, 7)), Action.GIVE_BACK, FULL),
        (OFF, Setting(False, 2), "", held(Setting(False, 2)), Action.GIVE_BACK, FULL),
        (OFF, Setting(False, 10), "", held(Setting(False, 2)), Action.GIVE_BACK, FULL),
        (ON, Setting(True, 6), "", held(Setting(True, 7)), Action.HANDS_OFF, None),
        (ON, Setting(True, 6), "", None, Action.HOLD, None),
        (OFF, Setting(False, 10), "", None, Action.HOLD, None),
        (OFF, Setting(False, 2), "", held(Setting(False, 2), manual=True), Action.HANDS_OFF, None),
        (ON, Setting(True, 7), "off", held(Setting(True, 7)), Action.HANDS_OFF, None),
        ("Updating", Setting(True, 7), "", held(Setting(True, 7)), Action.WAIT, None),
    ],
)
def test_turned_off_it_gives_back_what_it_holds_and_nothing_else(
    state: str, there: Setting, *, note: str, record: Record | None, action: Action, to: Setting | None
) -> None:
    decision = give_back(T0, Seen(state, there, note), 10, record)
    assert (decision.action, decision.setting) == (action, to)
    if to:
        assert decision.record
        assert (decision.record.was, decision.record.to) == (there, FULL)
    if there == FULL:
        assert decision.record is None


# Histories


@dataclass
class Mapping:
    """A mapping and its tags, as Lambda keeps them, with a governor that may die at any point of a run."""

    maximum: int
    now: datetime = T0
    setting: Setting = FULL
    tags: dict[str, str] = field(default_factory=dict)
    levels: list[Level] = field(default_factory=list)
    taken: list[tuple[Setting, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.setting = Setting(True, self.maximum)

    @property
    def record(self) -> Record | None:
        return Record.decode(self.tags.get(RECORD_TAG))

    def pass_minute(self, level: Level = Level.CALM) -> None:
        self.now += MINUTE
        self.levels.insert(0, level)

    def run(self, health: Health | None = Health.AVAILABLE, *, dies: str = "", blind: bool = False) -> Decision:
        # The newest minute has not shown up yet.
        seen_world = world(Level.UNKNOWN, *self.levels[1:WINDOW], health=health, now=self.now)
        if blind:
            seen_world = World(Health.UNKNOWN, ())
        state = ON if self.setting.enabled else OFF
        seen = Seen(state, self.setting, self.tags.get(NOTE_TAG, ""))
        decision = decide(self.now, seen, self.maximum, self.record, seen_world)
        return self.carry_out(decision, dies)

    def carry_out(self, decision: Decision, dies: str = "") -> Decision:
        if dies != "before":
            self.tags = {
                key: value
                for key, value in (
                    (RECORD_TAG, decision.record.encode() if decision.record else ""),
                    (NOTE_TAG, decision.note),
                )
                if value
            }
            for value in self.tags.values():
                assert len(value) <= MAX_TAG_VALUE
                assert TAG_VALUE.fullmatch(value)
            if decision.setting:
                assert 2 <= (decision.setting.concurrency or 0) <= self.maximum
            if decision.setting and dies != "between":
                self.taken.append((self.setting, decision))
                self.setting = decision.setting
        return decision


LEVELS = st.sampled_from([*Level] * 2 + [Level.CALM] * 6)
MAXIMA = st.one_of(st.integers(2, 12), st.integers(2, 1000))


@st.composite
def minutes(draw: st.DrawFn) -> tuple[str, Level, str]:
    """What happens in a minute to a fleet that nobody touches by hand: the target, the load, and when a run dies."""
    what = draw(st.sampled_from(["available"] * 4 + ["down"] * 5 + ["unknown", "blind", "no run", "deployed"]))
    return what, draw(LEVELS), draw(st.sampled_from(["", "", "", "before", "between"]))


def play(mapping: Mapping, what: str, level: Level, dies: str) -> None:
    mapping.pass_minute(level)
    if what == "deployed":
        mapping.setting = Setting(True, mapping.maximum)
    elif what == "deployed over":  # CloudFormation names the concurrency, and leaves Enabled alone
        mapping.setting = Setting(mapping.setting.enabled, mapping.maximum)
    if what != "no run":
        health = {"down": Health.DOWN, "unknown": Health.UNKNOWN}.get(what, Health.AVAILABLE)
        mapping.run(health, dies=dies, blind=what == "blind")


@settings(max_examples=80)
@given(MAXIMA, st.lists(minutes(), max_size=40))
def test_after_any_history_it_ends_as_deployed_and_forgets(maximum: int, history: list[tuple[str, Level, str]]) -> None:
    mapping = Mapping(maximum)
    for what, level, dies in history:
        play(mapping, what, level, dies)
        assert NOTE_TAG not in mapping.tags, "nobody touched it"
        assert 2 <= (mapping.setting.concurrency or 0) <= maximum
    for _ in range(110):  # at most 10 steps of 5 minutes, the ramp, and the time to forget
        play(mapping, "available", Level.CALM, "")
    assert (mapping.setting, mapping.tags) == (Setting(True, maximum), {})


@settings(max_examples=80)
@given(MAXIMA, st.lists(minutes(), max_size=25), st.integers(1, 29))
def test_a_second_run_in_the_same_minute_changes_nothing(
    maximum: int, history: list[tuple[str, Level, str]], seconds: int
) -> None:
    mapping = Mapping(maximum)
    for what, level, dies in history:
        play(mapping, what, level, dies)
        if what in ("available", "down") and not dies:
            before = mapping.setting
            mapping.now += timedelta(seconds=seconds)
            health = Health.DOWN if what == "down" else Health.AVAILABLE
            assert mapping.run(health).setting is None
            assert mapping.setting == before
            mapping.now -= timedelta(seconds=seconds)


@settings(max_examples=80)
@given(MAXIMA, st.lists(minutes(), max_size=25), LEVELS, LEVELS)
def test_a_worse_minute_never_allows_more(
    maximum: int, history: list[tuple[str, Level, str]], one: Level, other: Level
) -> None:
    better, worse = sorted((one, other))
    assume(better is not Level.UNKNOWN)
    mapping = Mapping(maximum)
    for what, level, dies in history:
        play(mapping, what, level, dies)
    mapping.pass_minute()

    def after(level: Level) -> int:
        seen = Seen(ON if mapping.setting.enabled else OFF, mapping.setting, mapping.tags.get(NOTE_TAG, ""))
        looked = world(level, *mapping.levels[1:WINDOW], now=mapping.now)
        decision = decide(mapping.now, seen, maximum, mapping.record, looked)
        return (decision.setting or mapping.setting).concurrency or 0

    assert after(worse) <= after(better)


@settings(max_examples=100)
@given(
    st.integers(3, 40),
    st.lists(minutes(), max_size=20),
    st.booleans(),
    st.integers(2, 60),
    st.lists(minutes(), min_size=1, max_size=30),
)
def test_what_somebody_set_by_hand_stays(
    maximum: int,
    history: list[tuple[str, Level, str]],
    enabled: bool,
    concurrency: int,
    later: list[tuple[str, Level, str]],
) -> None:
    mapping = Mapping(maximum)
    for what, level, dies in history:
        play(mapping, what, level, dies)
    by_hand = Setting(enabled, concurrency)
    record = mapping.record
    ours = {record.was, record.to} if record else set()
    assume(by_hand not in ours | {Setting(True, maximum)})
    # What is disabled already nobody can disable; that it was meant is said by the tag.
    assume(enabled or mapping.setting.enabled)
    assume(enabled or not record or record.to.enabled)
    mapping.setting = by_hand
    for what, level, dies in later:
        if what != "deployed":
            play(mapping, what, level, dies)
            assert mapping.setting == by_hand
    decision = mapping.run()
    assert (decision.action, mapping.setting) == (Action.HANDS_OFF, by_hand)
    assert mapping.tags[NOTE_TAG].startswith("manual")


@settings(max_examples=50)
@given(st.integers(3, 40), st.lists(minutes(), max_size=20), st.integers(2, 60), st.booleans())
def test_what_was_set_by_hand_is_taken_over_when_it_is_handed_back(
    maximum: int, history: list[tuple[str, Level, str]], concurrency: int, by_tag: bool
) -> None:
    mapping = Mapping(maximum)
    for what, level, dies in history:
        play(mapping, what, level, dies)
    mapping.setting = Setting(True, concurrency)
    for _ in range(3):
        play(mapping, "available", Level.CALM, "")
    if by_tag:
        mapping.tags.pop(NOTE_TAG, None)
    else:
        mapping.setting = Setting(True, maximum)
    for _ in range(110):
        play(mapping, "available", Level.CALM, "")
    assert (mapping.setting, mapping.tags) == (Setting(True, maximum), {})


def test_a_deployment_during_an_outage_leaves_nothing_disabled() -> None:
    mapping = Mapping(10)
    for _ in range(3):
        play(mapping, "down", Level.UNKNOWN, "")
    assert not mapping.setting.enabled
    play(mapping, "deployed over", Level.UNKNOWN, "between")
    assert NOTE_TAG not in mapping.tags
    for _ in range(60):
        play(mapping, "available", Level.CALM, "")
    assert (mapping.setting, mapping.tags) == (FULL, {})


def test_a_new_maximum_is_taken_over_whichever_is_deployed_first() -> None:
    for maximum in (5, 20):
        for held_at in (None, 4):
            mapping = Mapping(10)
            if held_at:
                mapping.setting = Setting(True, held_at)
                mapping.tags[RECORD_TAG] = held(mapping.setting).encode()
            mapping.setting = Setting(True, maximum)  # the mapping first, because the function names its id
            play(mapping, "available", Level.CALM, "")
            assert mapping.setting == Setting(True, maximum)
            mapping.maximum = maximum
            for _ in range(15):
                play(mapping, "available", Level.CALM, "")
            assert (mapping.setting, mapping.tags) == (Setting(True, maximum), {})


def test_the_ramp_after_an_outage() -> None:
    mapping = Mapping(100)
    outage = ["down"] * 4 + ["available"] * 60
    changes = []
    for number, what in enumerate(outage, 1):
        play(mapping, what, Level.CALM, "")
        if not changes or changes[-1][1] != mapping.setting:
            changes.append((number, mapping.setting))
    concurrency = [setting.concurrency for _, setting in changes]
    assert concurrency == [100, 2, 2, 4, 8, 16, 32, 64, 100]
    assert [setting.enabled for _, setting in changes] == [True, False, *[True] * 7]
    # Disabled at second sight, enabled at first; then a minute to take effect, one to be judged, one for it to show up.
    assert [number for number, _ in changes] == [1, 2, 5, *range(9, 30, 4)]


def test_records_are_read_as_they_were_written() -> None:
    settings_ = st.builds(Setting, st.booleans(), st.one_of(st.none(), st.integers(2, 1000)))
    times = st.one_of(st.none(), st.integers(0, 10**9).map(lambda s: datetime.fromtimestamp(s, UTC)))
    records = st.builds(
        Record, was=settings_, to=settings_, goal=st.integers(2, 1000), at=times, down=times, manual=st.booleans()
    )

    @given(records)
    def check(record: Record) -> None:
        text = record.encode()
        assert Record.decode(text) == record
        assert len(text) <= MAX_TAG_VALUE
        assert TAG_VALUE.fullmatch(text)

    check()


@given(st.text(max_size=80))
def test_what_is_no_record_is_none(text: str) -> None:
    assert Record.decode(text) is None
    assert Record.decode(None) is None
    assert Record.decode("was=on:10 to=on:x goal=3") is None
    assert Record.decode("was=up:10 to=on:7 goal=3") is None
    assert Record.decode("was=on:10 to=on:7 goal=3 at=yesterday") is None


# The load


@pytest.mark.parametrize(
    ("values", "age_s", "level"),
    [
        (Values(100_000, 1000, 0), 0, Level.CALM),
        (Values(100_000, 1000, None), 0, Level.CALM),  # the same EMF record carries both: no value is none given back
        (Values(999_999, 1000), 0, Level.CALM),
        (Values(1_000_000, 1000), 0, Level.BUSY),  # 5 % of 20 s, in microseconds
        (Values(1_999_999, 1000), 0, Level.BUSY),
        (Values(2_000_000, 1000), 0, Level.WAITING),
        (Values(100_000, 1000, 1), 0, Level.BUSY),
        (Values(100_000, 1000, 49), 0, Level.BUSY),
        (Values(100_000, 1000, 50), 0, Level.SATURATED),
        (Values(9_000_000, 1000, 50), 0, Level.SATURATED),
        (Values(None, 1000, 50), 0, Level.SATURATED),
        (Values(2_000_000, None), 0, Level.WAITING),
        (Values(1_000_000, None), 0, Level.BUSY),
        # missing is unknown while it may still come, and nothing later on
        (Values(), 0, Level.UNKNOWN),
        (Values(100_000, None), SETTLED_S - 1, Level.UNKNOWN),
        (Values(None, 1000), SETTLED_S - 1, Level.UNKNOWN),
        (Values(100_000, None), SETTLED_S, Level.CALM),
        (Values(None, 1000), SETTLED_S, Level.CALM),
        (Values(), SETTLED_S, Level.CALM),
    ],
)
def test_how_a_minute_is_judged(values: Values, age_s: int, level: Level) -> None:
    assert judge(values, age_s=age_s, borrow_timeout=20) is level


def test_without_a_proxy_only_saturation_counts() -> None:
    assert judge(Values(None, 1000), age_s=0, borrow_timeout=0) is Level.CALM
    assert judge(Values(9e9, 1000), age_s=0, borrow_timeout=0) is Level.CALM
    assert judge(Values(None, 1000, 500), age_s=0, borrow_timeout=0) is Level.SATURATED
    assert judge(Values(), age_s=0, borrow_timeout=0) is Level.UNKNOWN


def test_the_last_complete_minutes() -> None:
    now = 1_000_000 * 60 + 59.0
    values = {999_999 * 60: Values(0, 10, 10), 999_990 * 60: Values(0, 10, 10), 1_000_000 * 60: Values(0, 10, 10)}
    found = last_minutes(values, now=now, borrow_timeout=20)
    assert [m.start // 60 for m in found] == list(range(999_999, 999_989, -1))
    assert [m.level for m in found] == [Level.SATURATED, *[Level.UNKNOWN] * 4, *[Level.CALM] * 4, Level.SATURATED]
    assert WINDOW * 60 >= SETTLED_S + CALM_MINUTES * 60, "an idle fleet is calm for long enough within the window"


def target(state: str | None, reason: str | None = None, role: str = "READ_WRITE", kind: str = "RDS_INSTANCE") -> dict:
    health = {key: value for key, value in (("State", state), ("Reason", reason)) if value}
    return {"Role": role, "Type": kind, **({"TargetHealth": health} if health else {})}


@pytest.mark.parametrize(
    ("targets", "health", "said"),
    [
        ([target("AVAILABLE")], Health.AVAILABLE, "AVAILABLE"),
        ([target("UNAVAILABLE", "UNREACHABLE")], Health.DOWN, "UNAVAILABLE:UNREACHABLE"),
        ([target("UNAVAILABLE", "CONNECTION_FAILED")], Health.DOWN, "UNAVAILABLE:CONNECTION_FAILED"),
        ([target("UNAVAILABLE", "CONNECTION_FAILED", role="UNKNOWN")], Health.DOWN, "UNAVAILABLE:CONNECTION_FAILED"),
        ([target("UNAVAILABLE", "AUTH_FAILURE")], Health.UNKNOWN, "UNAVAILABLE:AUTH_FAILURE"),
        ([target("UNAVAILABLE", "PENDING_PROXY_CAPACITY")], Health.UNKNOWN, "UNAVAILABLE:PENDING_PROXY_CAPACITY"),
        ([target("UNAVAILABLE", "PROMOTED")], Health.UNKNOWN, "UNAVAILABLE:PROMOTED"),
        ([target("UNAVAILABLE")], Health.UNKNOWN, "UNAVAILABLE"),
        ([target("REGISTERING", "UNREACHABLE")], Health.UNKNOWN, "REGISTERING:UNREACHABLE"),
        ([target("UNUSED")], Health.UNKNOWN, "UNUSED"),
        ([target(None)], Health.UNKNOWN, "no state"),
        ([], Health.UNKNOWN, "no writer"),
        # Aurora: the cluster's own entry says nothing, and readers are not written to
        (
            [
                target(None, role="UNKNOWN", kind="TRACKED_CLUSTER"),
                target("UNAVAILABLE", "UNREACHABLE"),
                target("AVAILABLE", role="READ_ONLY"),
            ],
            Health.DOWN,
            "UNAVAILABLE:UNREACHABLE",
        ),
        (
            [target("AVAILABLE"), target("UNAVAILABLE", "UNREACHABLE", role="READ_ONLY")],
            Health.AVAILABLE,
            "AVAILABLE",
        ),
        ([target("AVAILABLE", role="READ_ONLY")], Health.UNKNOWN, "no writer"),
        # a failover in progress: one of the two is up
        (
            [target("UNAVAILABLE", "UNREACHABLE", role="UNKNOWN"), target("AVAILABLE")],
            Health.AVAILABLE,
            "AVAILABLE, UNAVAILABLE:UNREACHABLE",
        ),
        (
            [target("UNAVAILABLE", "UNREACHABLE"), target("REGISTERING", role="UNKNOWN")],
            Health.UNKNOWN,
            "REGISTERING, UNAVAILABLE:UNREACHABLE",
        ),
    ],
)
def test_the_health_of_a_target(targets: list[dict], health: Health, said: str) -> None:
    assert target_health(targets) == (health, said)
    assert frozenset({"UNREACHABLE", "CONNECTION_FAILED"}) == OUTAGE_REASONS


# A pool, simulated: closed queueing, no chance in it


@dataclass
class Pool:
    """Batches that each hold one of `connections` for `statement_s`, with demand for `wanted` of them at once."""

    connections: float
    statement_s: float
    wanted: float = float("inf")

    def values(self, concurrency: float) -> Values:
        """A minute's: whoever is beyond the connections waits for his turn, and gives back after 20 s."""
        active = min(concurrency, self.wanted)
        wait = max(0.0, active - self.connections) / self.connections * self.statement_s
        late = max(0.0, wait - 20) / wait if wait else 0.0
        return Values(min(wait, 20) * 1e6, 1000, round(1000 * late))


def simulate(pool: Pool, mappings: list[Mapping], minutes_: int) -> tuple[list[int], list[Values]]:
    """The sum of all concurrency after each minute, and what CloudWatch had of it."""
    sums, history = [], []
    for _ in range(minutes_):
        values = pool.values(sum(mapping.setting.concurrency or 0 for mapping in mappings))
        for mapping in mappings:
            mapping.pass_minute(judge(values, age_s=0, borrow_timeout=20))
            mapping.run()
        history.append(values)
        sums.append(sum(mapping.setting.concurrency or 0 for mapping in mappings))
    return sums, history


@pytest.mark.parametrize(
    ("connections", "statement_s"), [(20, 2.0), (30, 3.0), (12, 8.0), (60, 1.0), (8, 0.5), (10, 10.0), (25, 5.0)]
)
@pytest.mark.parametrize("maxima", [(200,), (100, 50, 40, 10)], ids=["one mapping", "four mappings"])
def test_it_settles_where_the_pool_is_used_and_nobody_waits_long(
    connections: float, statement_s: float, maxima: tuple[int, ...]
) -> None:
    mappings = [Mapping(maximum) for maximum in maxima]
    pool = Pool(connections, statement_s)
    sums, history = simulate(pool, mappings, 240)
    [settled] = set(sums[60:])  # one value: it does not swing
    # All connections are used, and the wait stays below a tenth of the borrow timeout, from where on it lowers.
    assert connections <= settled < connections * (1 + 2.0 / statement_s)
    assert all((values.wait_us or 0) < 2e6 for values in history[60:])
    assert sum(values.saturated or 0 for values in history[60:]) == 0
    # When demand goes, everybody gets back what was deployed.
    simulate(replace(pool, wanted=1), mappings, 110)
    assert [mapping.setting for mapping in mappings] == [Setting(True, maximum) for maximum in maxima]


def test_it_follows_a_pool_that_slows_down_and_recovers() -> None:
    mappings = [Mapping(100), Mapping(100)]
    found = []
    for statement_s in (3.0, 9.0, 3.0, 0.1):
        sums, _ = simulate(Pool(30, statement_s), mappings, 120)
        [settled] = set(sums[-30:])
        found.append(settled)
    for settled, low, high in zip(found[:3], (40, 30, 40), (50, 36.7, 50), strict=True):
        assert low <= settled < high
    assert found[3] == 200


def test_it_lowers_for_saturation_without_a_proxy() -> None:
    mapping = Mapping(100)
    pool = Pool(5, 10.0)
    for _ in range(120):
        values = pool.values(mapping.setting.concurrency or 0)
        mapping.pass_minute(judge(values, age_s=0, borrow_timeout=0))
        mapping.run(health=None)
    changed = [decision.setting.concurrency for _, decision in mapping.taken if decision.setting]
    assert changed[:3] == [50, 25, 12]
    # 20 s of waiting for 5 connections of 10 s each is where messages begin to be given back: 15 batches.
    assert all(10 <= (c or 0) <= 25 for c in changed[3:])


# Settings

UUIDS = ("0f0e0d0c-0b0a-0908-0706-050403020100", "1f0e0d0c-0b0a-0908-0706-050403020100")
ENVIRONMENT = {
    "GOVERNOR_MODE": "on",
    "FLEET_NAME": "spillway",
    "POWERTOOLS_METRICS_NAMESPACE": "Spillway/spillway",
    "PROXY_NAME": "spillway",
    "BORROW_TIMEOUT": "20",
    "MAPPINGS": f"orders={UUIDS[0]}:10 audit={UUIDS[1]}:5",
}


def test_settings_are_read_from_the_environment() -> None:
    read = GovernorSettings.from_env(ENVIRONMENT)
    assert [(m.worker, m.uuid, m.maximum) for m in read.mappings] == [
        ("orders", UUIDS[0], 10),
        ("audit", UUIDS[1], 5),
    ]
    assert (read.mode, read.fleet, read.proxy_name, read.borrow_timeout) == ("on", "spillway", "spillway", 20)
    assert read.namespace == "Spillway/spillway"
    without = GovernorSettings.from_env(ENVIRONMENT | {"PROXY_NAME": "", "BORROW_TIMEOUT": "0"})
    assert (without.proxy_name, without.borrow_timeout) == ("", 0)


MAPPING_EXPECTED = (
    "MAPPINGS: expected worker=<uuid of its mapping>:<maximum concurrency from 2 to 1000>, separated by spaces, got "
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"GOVERNOR_MODE": "ON"}, "GOVERNOR_MODE: expected one of off, observe, on, got 'ON'"),
        ({"GOVERNOR_MODE": ""}, "GOVERNOR_MODE: expected a value, got nothing"),
        ({"FLEET_NAME": ""}, "FLEET_NAME: expected a value, got nothing"),
        ({"POWERTOOLS_METRICS_NAMESPACE": ""}, "POWERTOOLS_METRICS_NAMESPACE: expected a value, got nothing"),
        ({"BORROW_TIMEOUT": "0"}, "BORROW_TIMEOUT: expected an integer from 1 to 300, got '0'"),
        ({"MAPPINGS": "  "}, "MAPPINGS: expected at least one mapping, got none"),
        *(
            ({"MAPPINGS": text}, f"{MAPPING_EXPECTED}{text!r}")
            for text in (
                f"orders={UUIDS[0]}:1",
                f"orders={UUIDS[0]}:1001",
                f"orders={UUIDS[0]}",
                "orders=none:5",
                f"={UUIDS[0]}:5",
                f"orders={UUIDS[0]}:\N{FULLWIDTH DIGIT FIVE}",
                f"orders={UUIDS[0]}:5,audit={UUIDS[1]}:5",
            )
        ),
        *(
            ({"MAPPINGS": text}, f"MAPPINGS: expected every worker and every mapping once, got {text!r}")
            for text in (f"a={UUIDS[0]}:5 a={UUIDS[1]}:5", f"a={UUIDS[0]}:5 b={UUIDS[0]}:5")
        ),
    ],
)
def test_a_wrong_environment_is_refused_in_one_sentence(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        GovernorSettings.from_env(ENVIRONMENT | changes)


def test_there_is_a_decision_for_every_combination() -> None:
    """Whatever is found and whatever is remembered: an answer, within the bounds, and none against a person's note."""
    somethings = [Setting(enabled, n) for enabled in (True, False) for n in (None, 2, 7, 10, 11, 1000)]
    records: list[Record | None] = [None]
    records += [
        Record(was=was, to=to, goal=goal, at=at, down=down, manual=manual)
        for was, to in itertools.product(somethings[::2], somethings[1::2])
        for goal, at, down, manual in ((2, None, T0, False), (1000, T0 - MINUTE, None, True), (7, T0, T0, True))
    ]
    worlds = [CALM, WAITING, SATURATED, DOWN, World(Health.UNKNOWN, ()), World(None, ())]
    for there, note, record, looked in itertools.product(somethings, ("", "off", "manual: x"), records, worlds):
        state = ON if there.enabled else OFF
        for decision in (
            decide(T0, Seen(state, there, note), 10, record, looked),
            give_back(T0, Seen(state, there, note), 10, record),
        ):
            if decision.setting:
                assert note != "off"
                assert decision.setting != there
                assert 2 <= (decision.setting.concurrency or 0) <= 10
                assert decision.record
                assert (decision.record.was, decision.record.to) == (there, decision.setting)
