"""What a letter says about itself, whoever put it there; groups, intervals, and what may be shown of a body."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spillway.dlq import letter_screen, screens
from spillway.dlq.contents import contents_of, indented
from spillway.dlq.filters import BadFilter
from spillway.dlq.groups import Groups
from spillway.dlq.letters import FOREIGN, MOVED, NO_ROOM, Cause, Letter, read_letter, template_of
from spillway.dlq.reading import Coverage, Depth, interval
from spillway.dlq.redaction import HIDDEN, Path
from spillway.fleet.fleet import Fleet
from spillway.packing import MAX_MESSAGE_BYTES
from workers.runtime.dead_letters import ATTRIBUTE, DeadLetterQueue
from workers.runtime.failures import Poison, Reason
from workers.runtime.sqs import Sqs

EVENT_ID = "018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a01"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": EVENT_ID,
    "type": "order.placed",
    "subject": "ord-1",
    "data": {"customer": "Jane", "items": [{"sku": "a", "price": 1.5}, {"sku": "b"}]},
}
NOW = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
OWN = {
    "tenant": {"DataType": "String", "StringValue": "t-1"},
    "digest": {"DataType": "Binary", "BinaryValue": bytes(range(8))},
}


def message(body: str = json.dumps(EVENT), attributes: Any = None, **system: str) -> dict[str, Any]:
    return {
        "MessageId": "m-1",
        "ReceiptHandle": "handle",
        "Body": body,
        "Attributes": {"SentTimestamp": "1795303800123", "ApproximateReceiveCount": "7"} | system,
        "MessageAttributes": attributes or {},
    }


def dead_lettered(body: str, poison: Poison, own: Any = None, worker: str = "orders") -> Letter:
    """What arrives of a message that a worker really dead-letters."""
    sent: list[dict[str, Any]] = []

    class Client:
        def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
            sent.extend(Entries)
            return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    record = {
        "messageId": "before",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1", "ApproximateFirstReceiveTimestamp": "1795303800000"},
        "messageAttributes": {
            name: {
                "dataType": value["DataType"],
                "stringValue": value.get("StringValue"),
                "binaryValue": base64.b64encode(value["BinaryValue"]).decode() if "BinaryValue" in value else None,
            }
            for name, value in (own or {}).items()
        },
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:orders",
    }
    queue = DeadLetterQueue("https://sqs/orders-dlq", worker, Sqs(Client), now=lambda: NOW)
    assert queue.send([(record, poison)], lambda: 60.0) == ({"before"}, "")
    return read_letter(message(sent[0]["MessageBody"], sent[0].get("MessageAttributes")))


POISON = Poison(Reason.CONTRACT, "Expected `int`, got `str` - at `$.data.items[3].quantity`", "22023")


def test_a_letter_of_a_worker() -> None:
    letter = dead_lettered(json.dumps(EVENT), POISON, OWN)
    version = letter.reasons["worker-version"]
    detail = "Expected `int`, got `str` - at `$.data.items[*].quantity`"
    assert letter.cause == Cause("contract", "22023", detail, "order.placed", version)
    assert letter.place == "$.data.items[3].quantity"
    assert (letter.dead_since, letter.event_id, letter.subject) == (NOW, EVENT_ID, "ord-1")
    assert letter.own_attributes == OWN
    assert (letter.event, letter.receives, letter.group_id) == (EVENT, 7, None)


def test_letters_that_no_worker_sent() -> None:
    sent = datetime(2026, 11, 21, 23, 30, 0, 123_000, tzinfo=UTC)
    moved = read_letter(message(DeadLetterQueueSourceArn="arn:aws:sqs:eu-west-1:1:orders", MessageGroupId="g"))
    assert moved.cause == Cause(MOVED, event_type="order.placed")
    assert (moved.dead_since, moved.sent_at, moved.group_id, moved.place) == (sent, sent, "g", "")
    foreign = read_letter(message("just text", OWN))
    assert foreign.cause == Cause(FOREIGN)
    assert (foreign.event, foreign.event_id, foreign.event_type, foreign.subject) == (None, None, None, None)
    assert foreign.own_attributes == OWN
    bare = read_letter({"MessageId": "m", "ReceiptHandle": "r"})
    assert (bare.body, bare.cause, bare.receives, bare.size) == ("", Cause(FOREIGN), 1, 0)


def test_a_letter_of_a_worker_that_sqs_moved_later_keeps_its_reason() -> None:
    letter = dead_lettered(json.dumps(EVENT), POISON)
    again = read_letter(message(letter.body, letter.attributes, DeadLetterQueueSourceArn="arn"))
    assert again.cause == letter.cause


def test_a_letter_too_large_for_a_reason_says_so() -> None:
    letter = dead_lettered("x" * MAX_MESSAGE_BYTES, POISON)
    assert ATTRIBUTE not in letter.attributes
    assert letter.cause == Cause(FOREIGN, detail=NO_ROOM)
    assert read_letter(message("x" * 10_000)).cause == Cause(FOREIGN)


@pytest.mark.parametrize("value", ['"text"', "[1]", "{", "", '{"reason": 7}', '{"last-seen": "yesterday"}'])
def test_somebody_elses_attribute_of_that_name_does_no_harm(value: str) -> None:
    letter = read_letter(message(attributes={ATTRIBUTE: {"DataType": "String", "StringValue": value}}))
    assert letter.cause.reason in {FOREIGN, "7"}
    assert letter.dead_since == letter.sent_at
    assert screens.json_text(contents_of(letter))


def sns(inner: str) -> str:
    return json.dumps({"Type": "Notification", "TopicArn": "arn:t", "Message": inner})


def eventbridge(inner: Any) -> str:
    return json.dumps({"detail-type": "x", "source": "y", "detail": inner})


@pytest.mark.parametrize(
    "body", [json.dumps(EVENT), sns(json.dumps(EVENT)), eventbridge(EVENT), sns(eventbridge(EVENT))]
)
def test_the_event_is_taken_out_of_its_wrappers(body: str) -> None:
    letter = read_letter(message(body))
    assert (letter.event, letter.event_id, letter.event_type) == (EVENT, EVENT_ID, "order.placed")


@pytest.mark.parametrize(
    ("detail", "template"),
    [
        ("Expected `int` >= 1 - at `$.data.items[12].quantity`", "Expected `int` >= 1 - at `$.data.items[*].quantity`"),
        ("JSON is malformed: invalid character (byte 1017)", "JSON is malformed: invalid character (byte *)"),
        ("expected sequence 17, got 23", "expected sequence *, got *"),
        ('invalid input syntax for type integer: "12 a"', 'invalid input syntax for type integer: "*"'),
        ("Key (order_id)=(ord-7) already exists.", "Key (order_id)=(*) already exists."),
        (f"no event {EVENT_ID} before 'x''s'", "no event * before '*''*'"),
        ("Expected `str` of length <= 64 - at `$.subject`", "Expected `str` of length <= 64 - at `$.subject`"),
        ("constraint orders_total_check", "constraint orders_total_check"),
        ("the account's limit isn't met", "the account's limit isn't met"),
    ],
)
def test_a_template_has_no_part_that_differs_from_message_to_message(detail: str, template: str) -> None:
    assert template_of(detail) == template
    assert template_of(template) == template


@given(st.lists(st.text(), min_size=5, max_size=5))
def test_a_key_is_stable_and_takes_any_text(fields: list[str]) -> None:
    key = Cause(*fields).key
    assert key == Cause(*fields).key
    assert len(key) == 8
    assert int(key, 16) >= 0


def test_keys_do_not_change_between_versions() -> None:
    # People and the journal keep them.
    assert Cause("contract", "", "Expected `int`", "order.placed", "1.0+7").key == "794492d3"
    assert Cause("a", "b").key != Cause("ab").key


def test_groups_count_and_keep_the_latest_example() -> None:
    groups = Groups()
    for number, (reason, hour) in enumerate([("data", 3), ("contract", 2), ("data", 1), ("data", 2)]):
        reasons = {"reason": reason, "last-seen": f"2026-11-21T0{hour}:00:00Z"}
        groups.add(Letter(message_id=f"m{number}", receipt_handle="", body="{}", reasons=reasons))
    found = list(groups)
    assert [(one.cause.reason, one.count, one.example.message_id) for one in found] == [
        ("data", 3, "m0"),
        ("contract", 1, "m1"),
    ]
    assert [found[0].first_seen.hour, found[0].last_seen.hour] == [1, 3]
    assert (groups.count, len(groups)) == (4, 2)


def test_the_interval_is_wilsons() -> None:
    # Worked by hand from the formula: 10 of 100, z = 1.959964.
    assert interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    count, of = counts
    low, high = interval(count, of)
    assert 0 <= low <= count / of + 1e-12
    assert count / of - 1e-12 <= high <= 1
    other_low, other_high = interval(of - count, of)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(5)
    for share in (0.05, 0.5, 0.9):
        samples = [sum(rng.random() < share for _ in range(200)) for _ in range(400)]
        covered = sum(low <= share <= high for low, high in (interval(one, 200) for one in samples))
        assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("coverage", "complete", "said"),
    [
        (Coverage(read=0, depth=Depth(visible=0), to_the_end=True), True, "It is empty."),
        (Coverage(read=12, depth=Depth(visible=12), to_the_end=True), True, "All 12 were read"),
        (Coverage(read=100, depth=Depth(visible=4310), to_the_end=False), False, "100 of about 4,310 were read."),
        (Coverage(read=5, depth=Depth(visible=5), to_the_end=False), False, "5 of about 5 were read."),
        (Coverage(read=5, depth=Depth(visible=5, in_flight=2), to_the_end=True), False, "are in flight"),
        (Coverage(read=95, depth=Depth(visible=100), to_the_end=True), False, "counts about 100"),
        (Coverage(read=20, depth=Depth(visible=52), to_the_end=True, fifo=True), False, "at most the first 10 of each"),
        (Coverage(read=119_000, depth=Depth(visible=300_000), to_the_end=True), False, "while about 120,000 messages"),
        (
            Coverage(read=60_000, depth=Depth(visible=200_000, in_flight=60_000), to_the_end=True),
            False,
            "while about 120,000 messages",
        ),
        (Coverage(read=120_000, depth=Depth(visible=120_000), to_the_end=True), True, "All 120,000 were read"),
    ],
)
def test_coverage_says_how_sure_the_numbers_are(coverage: Coverage, complete: bool, said: str) -> None:
    assert coverage.complete is complete
    assert said in coverage.described()


# What may be shown.


def redacted(body: str, *paths: str, attributes: Any = None) -> Any:
    return contents_of(read_letter(message(body, attributes)), [Path.parse(path) for path in paths])


def test_without_redaction_the_body_is_byte_exact() -> None:
    for body in ('{"a": 1.10, "a" : 2}', "no JSON", '{"Type":"Notification"}', '"\\ud800"'):
        assert redacted(body).body == body


def test_redaction_hides_in_body_event_and_attributes() -> None:
    found = redacted(
        json.dumps(EVENT),
        "data.customer",
        "data.items[*].sku",
        "$.subject",
        "attributes.tenant",
        "data.no",
        attributes=OWN,
    )
    assert found.event["data"] == {
        "customer": HIDDEN,
        "items": [{"sku": HIDDEN, "price": 1.5}, {"sku": HIDDEN}],
    }
    assert json.loads(found.body) == found.event
    assert (found.event["subject"], found.attributes["tenant"].text) == (HIDDEN, HIDDEN)
    assert found.attributes["digest"].hex == bytes(range(8)).hex()
    assert found.missing == ["data.no"]
    assert redacted(json.dumps(EVENT), "attributes.digest", attributes=OWN).attributes["digest"].hex is None
    assert {one.text for one in redacted("{}", "attributes", attributes=OWN).attributes.values()} == {HIDDEN}


@pytest.mark.parametrize("body", [sns(json.dumps(EVENT)), eventbridge(EVENT), sns(eventbridge(EVENT))])
def test_redaction_reaches_into_wrappers(body: str) -> None:
    found = redacted(body, "data.customer")
    assert "Jane" not in screens.json_text(found)
    assert (found.event["data"]["customer"], found.missing) == (HIDDEN, [])


@pytest.mark.parametrize(
    "body", ["Jane", '{"data": {"customer": "Jane"}', sns("Jane"), '"\\ud800 Jane"', "[" * 5000 + "Jane"]
)
def test_what_cannot_be_read_is_not_shown_when_something_is_to_be_hidden(body: str) -> None:
    found = redacted(body, "data.customer")
    assert found.body is None
    head, text = letter_screen.letter(found, 0, NOW)
    assert "Jane" not in text + rendered(head) + screens.json_text(found)
    assert "not shown" in rendered(head)


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("data", {"data": HIDDEN, "l": [[1, 2], [3]], "odd name": 1}),
        ("l[0][1]", {"data": {"x": 1}, "l": [[1, HIDDEN], [3]], "odd name": 1}),
        ("l[*][0]", {"data": {"x": 1}, "l": [[HIDDEN, 2], [HIDDEN]], "odd name": 1}),
        ("l[-1]", {"data": {"x": 1}, "l": [[1, 2], HIDDEN], "odd name": 1}),
        ("data.*", {"data": {"x": HIDDEN}, "l": [[1, 2], [3]], "odd name": 1}),
        ('"odd name"', {"data": {"x": 1}, "l": [[1, 2], [3]], "odd name": HIDDEN}),
    ],
)
def test_paths(path: str, hidden: Any) -> None:
    value = {"data": {"x": 1}, "l": [[1, 2], [3]], "odd name": 1}
    assert Path.parse(path).hide(value)
    assert value == hidden


@pytest.mark.parametrize(
    ("path", "at"), [("data..x", 4), ("data.items[x]", 10), (".data", 0), ("a b", 1), ('"\\q"', 0)]
)
def test_a_bad_path_is_shown_where_it_is_bad(path: str, at: int) -> None:
    with pytest.raises(BadFilter) as refused:
        Path.parse(path)
    assert refused.value.message.splitlines()[-1] == "  " + " " * at + "^"
    with pytest.raises(BadFilter):
        Path.parse("")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_indenting_changes_nothing_but_blanks(value: Any) -> None:
    assert json.loads(indented(json.dumps(value))) == value


def test_numbers_are_shown_as_they_were_written() -> None:
    body = '{"a":1.10,"b":1e400,"c":123456789012345678901234567890}'
    assert "".join(indented(body).split()) == body
    assert "1.10" in redacted(body, "c").body


# Nothing of a message reaches a terminal as anything but text.

TRICKS = "\x1b[31m\x9b31m\x07\x00\x7f\u202e\u2028\ud800\U000e0041[red]\t\r"


def rendered(renderable: Any, width: int = 100) -> str:
    out = Console(width=width, force_terminal=False, highlight=False)
    with out.capture() as captured:
        out.print(renderable)
    return captured.get()


@given(st.text())
def test_safe_text_is_printable_and_reversible(text: str) -> None:
    shown = screens.safe(text)
    assert all(char.isprintable() or char == "\n" for char in shown)
    if "\\" not in text and '"' not in text and "\n" not in text:
        assert json.loads(f'"{shown}"').encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_no_screen_lets_an_escape_sequence_through() -> None:
    reasons = dict.fromkeys(
        ("reason", "detail", "sqlstate", "event-type", "event-id", "worker-version", TRICKS), TRICKS
    )
    letter = Letter(
        message_id="m" + TRICKS,
        receipt_handle="r",
        body=msgspec.json.encode(
            {"subject": TRICKS.replace("\ud800", ""), "id": TRICKS.replace("\ud800", "")}
        ).decode(),
        attributes={TRICKS: {"DataType": "String" + TRICKS, "StringValue": TRICKS}},
        system={"SentTimestamp": "1795303800123", TRICKS: TRICKS},
        reasons=reasons,
    )
    groups = Groups()
    groups.add(letter)
    fleet = Fleet(name="spillway", workers={}, region="eu-west-1")
    coverage = Coverage(read=1, depth=Depth(visible=1), to_the_end=True)
    head, body = letter_screen.letter(contents_of(letter), 0, NOW)
    screen = screens.group_list(fleet, "orders", "orders-dlq", groups, coverage, conditions=[TRICKS], now=NOW)
    wide = [rendered(screen, 5_000), rendered(head, 5_000)]
    shown = [
        *wide,
        body,
        letter_screen.letter(contents_of(Letter(message_id="m", receipt_handle="r", body=TRICKS)), 0, NOW)[1],
        screens.json_text(contents_of(letter)),
    ]
    for text in shown:
        assert all(char.isprintable() or char == "\n" for char in text), text
    assert all("[red]" in text for text in shown)
    assert [text.count("[red]") for text in wide] == [9, 16], "taken for a colour"


def test_a_long_body_is_cut_and_says_so() -> None:
    letter = read_letter(message(json.dumps({"text": "é" * 1000}, ensure_ascii=False)))
    head, body = letter_screen.letter(contents_of(letter), 101, NOW)
    assert len(body.encode()) in {100, 101}
    assert "the first 101 of it" in " ".join(rendered(head).split())
    head, body = letter_screen.letter(contents_of(letter), 0, NOW)
    assert "é" * 1000 in body
    assert "the first" not in rendered(head)


@pytest.mark.parametrize("width", [80, 100])
def test_screens_fit(width: int) -> None:
    groups = Groups()
    for number in range(13):
        poison = Poison(Reason.CONTRACT, f"Expected {'a long story ' * number}- at `$.data.items[{number}].{'x' * 40}`")
        groups.add(dead_lettered(json.dumps(EVENT), poison, OWN))
    fleet = Fleet(name="spillway", workers={}, region="eu-west-1")
    coverage = Coverage(read=13, depth=Depth(visible=5_000), to_the_end=False)
    screen = screens.group_list(fleet, "orders", "orders-dlq", groups, coverage, conditions=[], now=NOW, top=5)
    text = rendered(screen, width)
    assert max(map(len, text.splitlines())) <= width
    assert "8 smaller groups with 8 letters" in text
    assert "1 letter, 8 % (1 to 33 %)" in text
    head, _ = letter_screen.letter(contents_of(dead_lettered(json.dumps(EVENT), POISON, OWN)), 0, NOW)
    assert max(map(len, rendered(head, width).splitlines())) <= width


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (59, "59 s"), (75, "1 min 15 s"), (725, "12 min"), (3_600, "1 h"), (100_000, "1 d 3 h")],
)
def test_ages(seconds: int, said: str) -> None:
    assert screens.age(NOW - timedelta(seconds=seconds), NOW) == said


def test_commands_name_the_same_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPILLWAY_STACK", raising=False)
    fleet = Fleet(name="my prod", workers={}, region="eu-west-1", profile="ops")
    assert screens.command(fleet, "dlq", "list") == (
        "spillway dlq list --stack 'my prod' --region eu-west-1 --profile ops"
    )
    monkeypatch.setenv("SPILLWAY_STACK", "my prod")
    assert "--stack" not in screens.command(fleet, "dlq", "list")
