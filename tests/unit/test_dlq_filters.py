"""Which letters a filter means, how it is written on a command line, and what is said about a bad one."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.commands.dlq.options import filter_of
from spillway.dlq.filters import REASONS, BadFilter, Filter, read_moment, root_of
from spillway.dlq.letters import FOREIGN, MOVED, Letter

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
EVENT = {
    "id": "018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a01",
    "type": "order.placed",
    "subject": "ord-1",
    "data": {"customer": "c-17", "total": 250, "items": [{"sku": "a"}, {"sku": "b"}], "note": ""},
}
REASONS_SAID = {
    "reason": "contract",
    "detail": "Expected `int`",
    "sqlstate": "22023",
    "worker-version": "1.0",
    "event-id": EVENT["id"],
    "event-type": "order.placed",
    "last-seen": "2026-11-21T10:00:00.000Z",
}


def letter(body: Any = EVENT, reasons: Any = None, **system: str) -> Letter:
    return Letter(
        message_id="m",
        receipt_handle="r",
        body=body if isinstance(body, str) else json.dumps(body),
        attributes={
            "tenant": {"DataType": "String", "StringValue": "t-1"},
            "digest": {"DataType": "Binary", "BinaryValue": b"\x01\xff"},
        },
        system={"SentTimestamp": "1763719200000"} | system,
        reasons=REASONS_SAID if reasons is None else reasons,
    )


LETTER = letter()
MOVED_LETTER = letter(reasons={}, DeadLetterQueueSourceArn="arn")


@pytest.mark.parametrize(
    ("chosen", "meant"),
    [
        (Filter(), True),
        (Filter(reasons=("contract",)), True),
        (Filter(reasons=("data", "contract")), True),
        (Filter(reasons=("data",)), False),
        (Filter(types=("order.placed",)), True),
        (Filter(types=("order.*",)), True),
        (Filter(types=("order.",)), False),
        (Filter(types=("order?placed", "*.cancelled")), False),
        (Filter(subjects=("ord-1",)), True),
        (Filter(subjects=("ord-*", "x")), True),
        (Filter(subjects=("ORD-1",)), False),
        (Filter(event_ids=(str(EVENT["id"]),)), True),
        (Filter(event_ids=("018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a02",)), False),
        (Filter(groups=(LETTER.cause.key,)), True),
        (Filter(groups=(MOVED_LETTER.cause.key,)), False),
        (Filter(since=datetime(2026, 11, 21, 10, tzinfo=UTC)), True),
        (Filter(since=datetime(2026, 11, 21, 10, 0, 1, tzinfo=UTC)), False),
        (Filter(until=datetime(2026, 11, 21, 10, tzinfo=UTC)), False),
        (Filter(until=datetime(2026, 11, 21, 10, 0, 1, tzinfo=UTC)), True),
        (Filter(reasons=("contract",), types=("order.cancelled",)), False),
    ],
)
def test_conditions(chosen: Filter, meant: bool) -> None:
    assert chosen.matches(LETTER) is meant
    assert chosen.empty is (chosen == Filter())


def test_letters_that_no_worker_sent() -> None:
    assert Filter(reasons=(MOVED,)).matches(MOVED_LETTER)
    assert not Filter(reasons=(FOREIGN,)).matches(MOVED_LETTER)
    text = letter("just text", reasons={})
    assert Filter(reasons=(FOREIGN,)).matches(text)
    assert not Filter(types=("*",)).matches(text)
    assert not Filter(subjects=("*",)).matches(text)
    assert not Filter(event_ids=("",)).matches(text)


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("data.customer == 'c-17'", True),
        ("data.customer == 'c-18'", False),
        ("data.total > `100` && data.total < `300`", True),
        ("data.items[?sku == 'b']", True),
        ("data.items[?sku == 'c']", False),  # an empty list is false
        ("length(data.items)", True),
        ("data.note", False),
        ("data.nothing", False),
        ("!(data.nothing)", True),
        ("`0`", True),  # JMESPath: only null, false and what is empty are false
        ("subject == 'ord-1'", True),
        ("dead_letter.sqlstate == '22023'", True),
        ("dead_letter.\"worker-version\" == '1.0'", True),
        ("attributes.tenant == 't-1'", True),
        ("attributes.digest == '01ff'", True),
        ("sqs.SentTimestamp == '1763719200000'", True),
        ("starts_with(data.total, '2')", False),  # a number: this event has something else there
        ("to_number(data.customer) > `1`", False),
        ("max_by(data.items, &sku).sku == 'b'", True),
        ("data.customer && 'x'", True),
    ],
)
def test_where(where: str, meant: bool) -> None:
    assert Filter(where=where).matches(LETTER) is meant


def test_where_on_a_body_that_is_no_event() -> None:
    for body in ("text", "[1]", '"x"', "{"):
        assert Filter(where="dead_letter.reason == 'contract'").matches(letter(body))
        assert not Filter(where="data.customer").matches(letter(body))
    assert root_of(letter({"attributes": 1, "sqs": 2}))["attributes"] == {"tenant": "t-1", "digest": "01ff"}


@pytest.mark.parametrize(
    ("where", "at", "said"),
    [
        ("data.customer ==", 16, "not complete"),
        ("data.customer = 'c'", 14, "'='"),
        ("data.[", 6, "not complete"),
        ("a..b", 2, "'.'"),
        ("a == 5", 5, "5"),
        ("data.x && 'y", 10, "Unclosed"),
        ("data.n > `1` && data.n > `[1`", 25, "JSON"),
        ("data.x == `abc`", 10, "JSON"),
        ("a && lenght(b)", 5, "did you mean length()?"),
        ("contains(a)", 0, "takes 2 arguments, got 1"),
        ("a | b(", 6, "not complete"),
        ("data.customer == c-17", 18, "-17"),
    ],
)
def test_a_bad_expression_is_shown_where_it_is_bad(where: str, at: int, said: str) -> None:
    with pytest.raises(BadFilter) as refused:
        Filter(where=where)
    first, shown, caret = refused.value.message.split("\n")
    assert said in first
    assert (shown, caret) == (f"  {where}", "  " + " " * at + "^")
    assert refused.value.exit_code == 2


@given(st.text(alphabet="ab.[]*?&|!@`'\"(){},:=<>-1 \\", max_size=20))
def test_an_expression_is_good_or_explained(where: str) -> None:
    try:
        chosen = Filter(where=where)
    except BadFilter:
        return
    assert chosen.matches(LETTER) in {True, False}
    assert chosen.matches(letter("text")) in {True, False}


MOMENTS = st.none() | st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
WORDS = st.lists(st.text(), max_size=2).map(tuple)
FILTERS = st.builds(
    Filter,
    reasons=st.lists(st.sampled_from(list(REASONS.values())), max_size=2).map(tuple),
    types=WORDS,
    event_ids=st.lists(st.uuids().map(str), max_size=2).map(tuple),
    subjects=WORDS,
    groups=st.lists(st.integers(0, 2**32 - 1).map("{:08x}".format), max_size=2).map(tuple),
    since=MOMENTS,
    until=MOMENTS,
    where=st.sampled_from([None, "data.total > `1`"]),
)
NAMES = {
    "--reason": "reason",
    "--type": "type_",
    "--event-id": "event_id",
    "--subject": "subject",
    "--group": "group",
    "--since": "since",
    "--until": "until",
    "--where": "where",
}


@given(FILTERS)
def test_a_filter_survives_json_and_the_command_line(chosen: Filter) -> None:
    assert msgspec.json.decode(msgspec.json.encode(chosen), type=Filter) == chosen
    given_: dict[str, Any] = {}
    words = chosen.options()
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option in {"--since", "--until", "--where"}:
            given_[NAMES[option]] = value
        else:
            given_.setdefault(NAMES[option], []).append(value)
    assert filter_of(**given_) == chosen
    conditions = [chosen.reasons, chosen.types, chosen.event_ids, chosen.subjects, chosen.groups]
    conditions += [chosen.since, chosen.until, chosen.where]  # type: ignore[list-item]
    assert len(chosen.described()) == sum(bool(one) for one in conditions)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("12h", NOW - timedelta(hours=12)),
        ("3d", NOW - timedelta(days=3)),
        ("1.5 h", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-21T10:00:00Z", NOW - timedelta(hours=2)),
        ("2026-11-21T12:00+02:00", NOW - timedelta(hours=2)),
        ("2026-11-21 15:30", NOW - timedelta(hours=2)),  # half past three in Kolkata
        ("2026-11-21", NOW - timedelta(hours=17, minutes=30)),
    ],
)
def test_moments(text: str, moment: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert read_moment(text, NOW) == moment
        assert read_moment(text, NOW).tzinfo is UTC
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "3", "3y", "-3h", "99999999w", "25:00", "2026-13-01", "0001-01-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(BadFilter, match="no moment"):
        read_moment(text, NOW)


def test_options_are_checked() -> None:
    chosen = filter_of(
        reason=["moved", "foreign"], event_id=[" 018F3C5E-7B1A-7E6F-9A3B-5D2C4E6F8A01 "], group=["00AB12CD"]
    )
    assert chosen.reasons == (MOVED, FOREIGN)
    assert chosen.event_ids == (EVENT["id"],)
    assert chosen.groups == ("00ab12cd",)
    with pytest.raises(BadFilter, match="Did you mean 'contract'"):
        filter_of(reason=["contrat"])
    with pytest.raises(BadFilter, match="no group"):
        filter_of(group=["orders"])
