"""Whatever a queue holds, the decoder returns an event or raises Poison: nothing else, at once, and with no payload."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillway.samples.events import body_of, eventbridge, sns
from spillway.samples.orders import examples
from workers.orders.contract import OrderEvent
from workers.runtime.envelope import MAX_DETAIL, CloudEvent, EventDecoder
from workers.runtime.failures import Poison, Reason

DECODER: EventDecoder[Any] = EventDecoder(OrderEvent)
EVENTS = list(examples().values())
MARKER = "s3cr3t"
DUPLICATE = "\x01again"
#: Far above what any body of this file takes, far below what a person would call a hang.
AT_ONCE_S = 2.0
#: Instead of hypothesis's deadline, which a busy machine breaks.
unhurried = settings(deadline=None)

# characters() has the surrogates that text() leaves out by default.
any_text = st.text(st.characters())
marked_text = st.builds(
    lambda before, after: before + MARKER + after, *[st.text(st.sampled_from("'\"`\\\0\n\ud800é -$.x"), max_size=8)] * 2
)
numbers = st.one_of(
    st.integers(),
    st.integers(min_value=10**15, max_value=10**400),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 1e400, 2.0]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, any_text, marked_text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(any_text, inner, max_size=4)),
    max_leaves=12,
)


def _bridged(event: dict[str, Any]) -> str:
    """Like `eventbridge`, for an event that may have lost its type."""
    return body_of(json.loads(eventbridge(EVENTS[0])) | {"detail": event})


wrappers: st.SearchStrategy[Callable[[dict[str, Any]], str]] = st.sampled_from(
    [body_of, _bridged, lambda event: sns(body_of(event)), lambda event: sns(_bridged(event))]
)


def _strings(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            return [text for item in value.items() for part in item for text in _strings(part)]
        case list():
            return [text for part in value for text in _strings(part)]
        case _:
            return []


def _decoded(body: str | bytes, decoder: EventDecoder[Any]) -> CloudEvent | Poison:
    started = time.perf_counter()
    try:
        outcome: CloudEvent | Poison = decoder.decode(body)
    except Poison as poison:
        outcome = poison
    assert time.perf_counter() - started < AT_ONCE_S
    return outcome


def holds(body: str | bytes, decoder: EventDecoder[Any] = DECODER) -> CloudEvent | None:
    """Assert what the decoder promises about any body; the event, or None for poison."""
    outcome = _decoded(body, decoder)
    if isinstance(outcome, Poison):
        assert outcome.reason in {Reason.UNDECODABLE, Reason.CONTRACT}
        assert 0 < len(outcome.detail) <= MAX_DETAIL
        assert MARKER not in outcome.detail
        assert "\0" not in outcome.detail
        assert outcome.detail.encode()
        return None
    again = msgspec.json.encode(outcome)
    assert not any("\0" in text for text in _strings(msgspec.json.decode(again)))
    assert decoder.decode(again) == outcome
    return outcome


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [place for key in keys for place in [(*path, key), *_places(value[key], (*path, key))]]


@st.composite
def mutated_events(draw: st.DrawFn) -> str:
    """A valid event, damaged in one to three places, in any envelope, as JSON with or without raw Unicode."""
    event: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(EVENTS)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(_places(event)))
        parent: Any = event
        for step in path:
            parent = parent[step]
        change = draw(st.sampled_from(["replace", "remove", "add", "duplicate"]))
        if change == "remove":
            del parent[last]
        elif change == "replace" or isinstance(parent, list):
            parent[last] = draw(json_values)
        elif change == "duplicate":
            parent[last + DUPLICATE] = draw(st.one_of(st.just(parent[last]), json_values))
        else:
            parent[draw(any_text)] = draw(json_values)
        if not _places(event):
            break
    body = draw(wrappers)(event)
    if draw(st.booleans()):
        body = json.dumps(json.loads(body), ensure_ascii=False)
    # Gone from the text, what json.dumps wrote as two keys is one key twice; within SNS the text is escaped once more.
    return body.replace("\\\\u0001again", "").replace("\\u0001again", "")


@unhurried
@given(any_text)
def test_arbitrary_text(body: str) -> None:
    holds(body)


@unhurried
@given(st.binary())
def test_arbitrary_bytes(body: bytes) -> None:
    holds(body)
    holds(body.decode("latin-1"))


@unhurried
@given(json_values, st.booleans())
def test_arbitrary_json(value: Any, ascii_only: bool) -> None:
    holds(json.dumps(value, ensure_ascii=ascii_only))


@unhurried
@given(mutated_events())
def test_damaged_events(body: str) -> None:
    holds(body)


@unhurried
@given(
    st.sampled_from(EVENTS),
    wrappers,
    st.data(),
    st.sampled_from(["\0", "\\u0000", "\ud800", "\\ud800", "'", '"', "\\"]),
)
def test_damaged_text(
    event: dict[str, Any], wrap: Callable[[dict[str, Any]], str], data: st.DataObject, inserted: str
) -> None:
    body = wrap(event)
    at = data.draw(st.integers(0, len(body)))
    removed = data.draw(st.integers(0, 8))
    holds(body[:at] + inserted + body[at + removed :])


@unhurried
@given(st.sampled_from(EVENTS), st.data(), st.binary(max_size=3))
def test_damaged_bytes(event: dict[str, Any], data: st.DataObject, inserted: bytes) -> None:
    body = body_of(event).encode()
    at = data.draw(st.integers(0, len(body)))
    damaged = body[:at] + inserted + body[at + len(inserted) :]
    holds(damaged)
    holds(damaged.decode("latin-1"))


@unhurried
@given(st.sampled_from(EVENTS), st.data(), marked_text)
def test_details_hold_no_payload(event: dict[str, Any], data: st.DataObject, secret: str) -> None:
    path = data.draw(st.sampled_from(_places(event)))
    event = copy.deepcopy(event)
    parent: Any = event
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = secret
    holds(data.draw(wrappers)(event))


@unhurried
@given(
    st.sampled_from(["", "extra", "data", "Type", "Message", "detail", "detail-type", "type"]),
    st.sampled_from(["[", '{"a":', '[{"a":', "[[],"]),
    st.integers(1, 50_000),
    st.booleans(),
)
def test_deep_nesting(field: str, opening: str, depth: int, closed: bool) -> None:
    closing = "".join({"[": "]", "{": "}"}[bracket] for bracket in reversed(opening) if bracket in "[{")
    if opening == "[[],":
        closing = "]"
    nested = opening * depth + "0" + closing * depth * closed
    holds(nested)
    holds(body_of(EVENTS[0])[:-1] + f',"{field}":{nested}}}')
    holds(f'{{"{field}":{nested}}}')


@unhurried
@given(
    st.sampled_from(["version", "total", "quantity", "extra"]),
    st.one_of(
        st.builds(lambda sign, digits: sign + "9" * digits, st.sampled_from(["", "-"]), st.integers(1, 10_000)),
        st.builds(lambda exponent: f"1e{exponent}", st.integers(-100_000, 100_000)),
        st.builds(lambda digits: "0." + "9" * digits, st.integers(1, 10_000)),
        st.sampled_from(["-0", "00", "+1", "1.", ".5", "1e", "0x1", "Infinity", "-NaN", "1_000"]),
    ),
)
def test_huge_and_malformed_numbers(field: str, number: str) -> None:
    body = body_of(EVENTS[0])[:-1] + ',"extra":0}'
    for value in (0, 1, 2, 4498):
        body = body.replace(f'"{field}":{value}', f'"{field}":{number}')
    holds(body)


@unhurried
@given(
    st.sampled_from([("time",), ("data", "placed_at")]),
    st.one_of(
        st.datetimes().map(lambda moment: moment.isoformat()),
        st.from_regex(
            r"[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,12})?", fullmatch=True
        ),
    ),
    st.from_regex(r"[Zz]|[+-][0-2][0-9]:?[0-6][0-9]", fullmatch=True),
)
def test_timestamps(path: tuple[str, ...], moment: str, offset: str) -> None:
    event = copy.deepcopy(EVENTS[0])
    parent = event if len(path) == 1 else event["data"]
    parent[path[-1]] = moment + offset
    holds(body_of(event))


def test_a_megabyte_of_a_hostile_value_takes_no_time() -> None:
    for hostile in ("'", '"', " - at `", " - at `$.type`", "\\", "\\u0000", "a" * 16):
        value = hostile * (1_000_000 // len(hostile))
        for field in ("type", "specversion", "datacontenttype", "source", "id", "time", "data", "extra"):
            holds(body_of(EVENTS[0] | {field: value}))


# A contract that uses what the orders contract does not: closed structs, free dictionaries, recursion.


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    labels: dict[str, str] = {}
    kind: Literal["leaf", "branch", 7] = "leaf"
    child: _Node | None = None


class _TreeGrown(CloudEvent, kw_only=True, frozen=True, tag="tree.grown", forbid_unknown_fields=True):
    data: _Node


TREES: EventDecoder[_TreeGrown] = EventDecoder(_TreeGrown)


def _tree(data: Any, **more: Any) -> str:
    return body_of(EVENTS[0] | {"type": "tree.grown", "data": data} | more)


@unhurried
@given(marked_text)
def test_closed_contracts_name_no_unknown_field(secret: str) -> None:
    assert holds(_tree({}), TREES) is not None
    assert holds(_tree({secret: 1}), TREES) is None
    assert holds(_tree({}, **{secret: 1}), TREES) is None
    assert holds(_tree({"kind": secret}), TREES) is None


def test_a_detail_is_bounded_however_long_its_path() -> None:
    data: Any = {"kind": MARKER}
    for _ in range(100):
        data = {"child": data}
    assert holds(_tree(data), TREES) is None
    assert holds(_tree({"labels": {"k" * 2000: "\0"}}), TREES) is None


@pytest.mark.parametrize("labels", [{"a\0": "b"}, {"a": "b\0"}])
def test_nul_in_a_dictionary_is_found_in_keys_and_values(labels: dict[str, str]) -> None:
    assert holds(_tree({"labels": labels}), TREES) is None
