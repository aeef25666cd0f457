"""Every way an order's message body can be broken, with what the worker says about it.

The table is written by hand and independent of the decoder, so that a test can hold one against the other. It covers
the envelope for all workers: theirs only add what their own contracts refuse.
"""

from __future__ import annotations

from collections.abc import Iterator

from spillway.samples.broken import BrokenBody, changed, contract, undecodable, without
from spillway.samples.events import body_of, eventbridge, sns
from spillway.samples.orders_events import CHANGED_AT, cancelled, placed, updated
from workers.runtime.failures import Reason

TYPES = "order.placed | order.updated | order.cancelled"


def _wrapped(name: str, shows: str, body: str, detail: str) -> BrokenBody:
    # The schemas describe events, not the envelopes of AWS services, so they refuse all of these.
    return BrokenBody(name, shows, body, Reason.CONTRACT, detail, schema_refuses=True)


def _not_json() -> Iterator[BrokenBody]:
    event = placed("ord-1001")
    body = body_of(event)
    malformed = "JSON is malformed: "
    yield undecodable("body.blank", "One space: SQS takes no empty body.", " ", "Input data was truncated")
    yield undecodable("body.text", "Plain text.", "hello", malformed + "invalid character (byte 0)")
    yield undecodable(
        "body.compressed",
        "Gzip in Base64: a compressing producer that nobody agreed with.",
        "H4sIAAAAAAACA6uuBQBDv6ajAgAAAA==",  # gzip's bytes differ from one zlib to the next, so these are literal
        malformed + "invalid character (byte 0)",
    )
    yield undecodable(
        "body.nested_too_deeply",
        "An unknown field nested 100,000 deep, which is beyond every interpreter's limit.",
        body[:-1] + ',"extra":' + "[" * 100_000 + "]" * 100_000 + "}",
        "JSON is nested too deeply",
    )
    yield undecodable("order_placed.truncated", "The end is missing.", body[:-40], "Input data was truncated")
    yield undecodable(
        "order_placed.trailing_text",
        "Text after the event: two events in one body.",
        body + body,
        f"{malformed}trailing characters (byte {len(body) + 1})",
    )
    yield undecodable(
        "order_placed.trailing_comma",
        "A comma before a closing brace.",
        body[:-1] + ",}",
        f"{malformed}trailing comma in object (byte {len(body)})",
    )
    yield undecodable(
        "order_placed.single_quotes",
        "Python's repr in place of JSON.",
        repr(event),
        malformed + "object keys must be strings (byte 1)",
    )
    yield undecodable(
        "order_placed.byte_order_mark",
        "A byte order mark before the event.",
        "\ufeff" + body,
        malformed + "invalid character (byte 0)",
    )
    not_a_number = body.replace('"total":4498', '"total":NaN')
    yield undecodable(
        "order_placed.nan",
        "`NaN`, which JSON does not have.",
        not_a_number,
        f"{malformed}invalid character (byte {not_a_number.index('NaN')})",
    )
    raw_line_feed = body.replace("cus-77", "cus\n77")
    yield undecodable(
        "order_placed.raw_control_character",
        "A line feed inside a string, not escaped.",
        raw_line_feed,
        f"{malformed}invalid character (byte {raw_line_feed.index(chr(10))})",
    )
    lone_surrogate = body.replace("/shop/checkout", "/shop/\\udc00")
    yield undecodable(
        "order_placed.lone_surrogate",
        "Half a surrogate pair, escaped: no character at all.",
        lone_surrogate,
        f"{malformed}invalid utf-16 surrogate pair (byte {lone_surrogate.index('udc00') + 5})",
    )


def _broken_envelope() -> Iterator[BrokenBody]:
    event = placed("ord-1001")
    no_offset = "Expected `datetime` with a timezone component"
    yield contract("body.null", "JSON's `null`.", None, "Expected `object`, got `null`")
    yield contract("body.array", "Two events in an array.", [event, event], "Expected `object`, got `array`")
    yield contract(
        "body.s3_test_event",
        "What S3 sends when a bucket notification is set up.",
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026-01-15T09:30:00.000Z", "Bucket": "shop"},
        "Object missing required field `type`",
    )
    yield contract(
        "order_placed.missing_type", "No `type`.", without(event, "type"), "Object missing required field `type`"
    )
    yield contract(
        "order_placed.unknown_type",
        "An event this queue does not carry.",
        changed(event, "type", "order.shipped"),
        f"Expected {TYPES} - at `$.type`",
    )
    yield contract("order_placed.missing_id", "No `id`.", without(event, "id"), "Object missing required field `id`")
    yield contract(
        "order_placed.bad_id", "An id that is no UUID.", changed(event, "id", "42"), "Invalid UUID - at `$.id`"
    )
    yield contract(
        "order_placed.old_specversion",
        "CloudEvents 0.3.",
        changed(event, "specversion", "0.3"),
        "Expected the contract's constant - at `$.specversion`",
    )
    yield contract(
        "order_placed.empty_source",
        "An empty `source`.",
        changed(event, "source", ""),
        "Expected `str` of length >= 1 - at `$.source`",
    )
    yield contract(
        "order_placed.time_without_offset",
        "A local time.",
        changed(event, "time", "2026-01-15T10:30:00"),
        f"{no_offset} - at `$.time`",
    )
    yield contract(
        "order_placed.time_as_number",
        "A time in epoch seconds.",
        changed(event, "time", 1_768_469_400),
        "Expected `datetime`, got `int` - at `$.time`",
    )
    yield contract(
        "order_placed.utc_offset_too_large",
        "A UTC offset that RFC 3339 allows and PostgreSQL does not.",
        changed(event, "time", "2026-01-15T10:30:00+16:00"),
        "Expected `time` with a UTC offset below 16:00",
        schema_refuses=False,
    )
    yield contract(
        "order_placed.xml_data",
        "`data` announced as XML.",
        changed(event, "datacontenttype", "application/xml"),
        "Expected the contract's constant - at `$.datacontenttype`",
    )
    yield contract(
        "order_placed.missing_data", "No `data`.", without(event, "data"), "Object missing required field `data`"
    )
    yield contract(
        "order_placed.data_as_text",
        "`data` encoded twice.",
        changed(event, "data", body_of(event["data"])),
        "Expected `object`, got `str` - at `$.data`",
    )
    yield contract(
        "order_placed.subject_mismatch",
        "`subject` names another order than `data`.",
        changed(event, "subject", "ord-1002"),
        "Expected `subject` to equal `data.order_id`",
        schema_refuses=False,
    )
    yield contract(
        "order_placed.nul_in_source",
        "An escaped U+0000, which PostgreSQL's text cannot hold.",
        changed(event, "source", "/shop\0/checkout"),
        "Expected text without the character U+0000 - at `$.source`",
    )


def _broken_order() -> Iterator[BrokenBody]:
    event = placed("ord-1001")
    yield contract(
        "order_placed.bad_total",
        "`total` is not the sum of the items.",
        changed(event, "data.total", 4499),
        "Expected `total` to equal the sum of quantity x unit_price over `items` - at `$.data`",
        schema_refuses=False,
    )
    yield contract(
        "order_placed.missing_order_id",
        "No `order_id`.",
        without(event, "data.order_id"),
        "Object missing required field `order_id` - at `$.data`",
    )
    yield contract(
        "order_placed.version_zero",
        "Versions start at 1.",
        changed(event, "data.version", 0),
        "Expected `int` >= 1 - at `$.data.version`",
    )
    yield contract(
        "order_placed.version_too_large",
        "A version beyond PostgreSQL's integer.",
        changed(event, "data.version", 2**31),
        "Expected `int` <= 2147483647 - at `$.data.version`",
    )
    yield contract(
        "order_placed.version_beyond_64_bits",
        "A number of 40 digits.",
        changed(event, "data.version", 10**39),
        "Expected `int` <= 2147483647 - at `$.data.version`",
    )
    yield contract(
        "order_placed.bad_currency",
        "A currency in lower case.",
        changed(event, "data.currency", "eur"),
        "Expected `currency` to be three capital letters A-Z - at `$.data`",
    )
    yield contract(
        "order_placed.currency_with_line_feed",
        "A currency that ends in a line feed, which Python's `$` would let through.",
        changed(event, "data.currency", "EUR\n"),
        "Expected `str` of length <= 3 - at `$.data.currency`",
    )
    yield contract(
        "order_placed.empty_customer",
        "An empty identifier.",
        changed(event, "data.customer", ""),
        "Expected `str` of length >= 1 - at `$.data.customer`",
    )
    yield contract(
        "order_placed.no_items",
        "An order of nothing.",
        changed(changed(event, "data.items", []), "data.total", 0),
        "Expected `array` of length >= 1 - at `$.data.items`",
    )
    yield contract(
        "order_placed.too_many_items",
        "501 items.",
        changed(event, "data.items", [{"sku": "S", "quantity": 1, "unit_price": 1}] * 501),
        "Expected `array` of length <= 500 - at `$.data.items`",
    )
    yield contract(
        "order_placed.nul_in_sku",
        "An escaped U+0000 in the second item.",
        changed(event, "data.items.1.sku", "SKU\0"),
        "Expected text without the character U+0000 - at `$.data.items[1].sku`",
    )
    yield contract(
        "order_placed.sku_too_long",
        "A SKU of 65 characters.",
        changed(event, "data.items.0.sku", "S" * 65),
        "Expected `str` of length <= 64 - at `$.data.items[0].sku`",
    )
    yield contract(
        "order_placed.quantity_zero",
        "An item of no pieces.",
        changed(event, "data.items.0.quantity", 0),
        "Expected `int` >= 1 - at `$.data.items[0].quantity`",
    )
    yield contract(
        "order_placed.quantity_as_text",
        "A number in quotes.",
        changed(event, "data.items.0.quantity", "2"),
        "Expected `int`, got `str` - at `$.data.items[0].quantity`",
    )
    yield contract(
        "order_placed.quantity_with_fraction_part",
        "`2.0`: an integer to JSON Schema, a float to the worker.",
        changed(event, "data.items.0.quantity", 2.0),
        "Expected `int`, got `float` - at `$.data.items[0].quantity`",
        schema_refuses=False,
    )
    yield contract(
        "order_placed.negative_price",
        "A negative price.",
        changed(event, "data.items.0.unit_price", -1),
        "Expected `int` >= 0 - at `$.data.items[0].unit_price`",
    )
    yield contract(
        "order_placed.bad_placed_at",
        "The 30th of February.",
        changed(event, "data.placed_at", "2026-02-30T10:30:00Z"),
        "Invalid RFC3339 encoded datetime - at `$.data.placed_at`",
    )
    yield contract(
        "order_placed.leap_second",
        "Second 60, which RFC 3339 allows and Python's datetime cannot hold.",
        changed(event, "data.placed_at", "2016-12-31T23:59:60Z"),
        "Invalid RFC3339 encoded datetime - at `$.data.placed_at`",
        schema_refuses=False,
    )
    yield contract(
        "order_updated.missing_updated_at",
        "The body of `order.placed` under another type.",
        changed(event, "type", "order.updated"),
        "Object missing required field `updated_at` - at `$.data`",
    )
    yield contract(
        "order_updated.updated_at_without_offset",
        "A local time.",
        changed(updated("ord-1001", version=2, quantity=3), "data.updated_at", CHANGED_AT[:19]),
        "Expected `datetime` with a timezone component - at `$.data.updated_at`",
    )
    yield contract(
        "order_cancelled.reason_too_long",
        "A reason of 257 characters.",
        changed(cancelled("ord-1002", version=2), "data.reason", "x" * 257),
        "Expected `str` of length <= 256 - at `$.data.reason`",
    )


def _broken_inside_wrappers() -> Iterator[BrokenBody]:
    event = placed("ord-1001")
    bad_total = changed(event, "data.total", 4499)
    yield _wrapped(
        "eventbridge.bad_total",
        "A broken event inside an EventBridge event.",
        eventbridge(bad_total),
        "Expected `total` to equal the sum of quantity x unit_price over `items` - at `$.data`",
    )
    yield _wrapped(
        "sns.bad_total",
        "A broken event inside an SNS notification.",
        sns(body_of(bad_total)),
        "Expected `total` to equal the sum of quantity x unit_price over `items` - at `$.data`",
    )
    yield BrokenBody(
        "sns.text",
        "An SNS notification of plain text.",
        sns("hello"),
        Reason.UNDECODABLE,
        "JSON is malformed: invalid character (byte 0)",
        schema_refuses=True,
    )
    yield _wrapped(
        "sns.three_wrappers",
        "SNS in SNS in SNS: nothing wraps deeper than twice on purpose.",
        sns(sns(sns(body_of(event)))),
        "Object missing required field `type`",
    )


BROKEN: tuple[BrokenBody, ...] = (
    *_not_json(),
    *_broken_envelope(),
    *_broken_order(),
    *_broken_inside_wrappers(),
)
