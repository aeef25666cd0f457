"""What a function's answer does to its batch: Lambda's documented conditions, and our reading where AWS is silent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.stack.partial_response import Reason, Verdict, unacknowledged

IDS = ("m1", "m2", "m3")
NONE: tuple[str, ...] = ()


def entries(*identifiers: object) -> bytes:
    return json.dumps({"batchItemFailures": [{"itemIdentifier": one} for one in identifiers]}).encode()


@pytest.mark.parametrize(
    ("kind", "body", "failed", "reason"),
    [
        # Documented as complete success
        pytest.param("response", entries(), NONE, Reason.SUCCESS, id="empty list"),
        pytest.param("response", b'{"batchItemFailures": null}', NONE, Reason.UNREPORTED, id="null list"),
        pytest.param("response", b"{}", NONE, Reason.UNREPORTED, id="empty response"),
        pytest.param("response", b"null", NONE, Reason.UNREPORTED, id="null response: a forgotten return"),
        pytest.param("response", b"", NONE, Reason.UNREPORTED, id="no response"),
        pytest.param("response", b" \n", NONE, Reason.UNREPORTED, id="blank response"),
        # Documented as complete failure
        pytest.param("response", b"{batchItemFailures: []}", IDS, Reason.INVALID_JSON, id="invalid JSON"),
        pytest.param("response", entries("m1")[:-1], IDS, Reason.INVALID_JSON, id="cut off"),
        pytest.param("response", entries(""), IDS, Reason.BAD_IDENTIFIER, id="empty id"),
        pytest.param("response", entries(None), IDS, Reason.BAD_IDENTIFIER, id="null id"),
        pytest.param("response", b'{"batchItemFailures":[{"id":"m1"}]}', IDS, Reason.BAD_IDENTIFIER, id="wrong key"),
        pytest.param(
            "response", b'{"batchItemFailures":[{"ItemIdentifier":"m1"}]}', IDS, Reason.BAD_IDENTIFIER, id="key's case"
        ),
        pytest.param("response", entries("m9"), IDS, Reason.UNKNOWN_IDENTIFIER, id="unknown id"),
        pytest.param("error", b'{"errorType": "KeyError"}', IDS, Reason.ERROR, id="exception"),
        pytest.param("timeout", b"Task timed out after 3.00 seconds", IDS, Reason.TIMEOUT, id="timeout"),
        pytest.param("crash", b"", IDS, Reason.CRASH, id="crash"),
        pytest.param("error", entries("m1"), IDS, Reason.ERROR, id="the body of an error is not read"),
        # Documented as partial
        pytest.param("response", entries("m2"), ("m2",), Reason.PARTIAL, id="one"),
        pytest.param("response", entries("m3", "m1"), ("m1", "m3"), Reason.PARTIAL, id="two, in batch order"),
        pytest.param("response", entries(*IDS), IDS, Reason.PARTIAL, id="all"),
        # Mixed: one bad entry spoils the list
        pytest.param("response", entries("m1", ""), IDS, Reason.BAD_IDENTIFIER, id="good and empty id"),
        pytest.param("response", entries("m1", None), IDS, Reason.BAD_IDENTIFIER, id="good and null id"),
        pytest.param("response", entries("m1", "m9"), IDS, Reason.UNKNOWN_IDENTIFIER, id="good and unknown id"),
        # Undocumented: our reading, reasons in the module
        pytest.param("response", entries("m1", "m1"), ("m1",), Reason.PARTIAL, id="the same id twice"),
        pytest.param("response", entries(1), IDS, Reason.BAD_IDENTIFIER, id="id is a number"),
        pytest.param("response", entries(["m1"]), IDS, Reason.BAD_IDENTIFIER, id="id is a list"),
        pytest.param("response", b'{"batchItemFailures":["m1"]}', IDS, Reason.BAD_IDENTIFIER, id="entries are strings"),
        pytest.param("response", b'{"batchItemFailures":[null]}', IDS, Reason.BAD_IDENTIFIER, id="entry is null"),
        pytest.param("response", b'{"batchItemFailures":"m1"}', IDS, Reason.INVALID_RESPONSE, id="list is a string"),
        pytest.param("response", b'{"batchItemFailures":{}}', IDS, Reason.INVALID_RESPONSE, id="list is an object"),
        pytest.param("response", b'{"batchItemFailures":false}', IDS, Reason.INVALID_RESPONSE, id="list is false"),
        pytest.param("response", b'{"batchItemFailures":0}', IDS, Reason.INVALID_RESPONSE, id="list is zero"),
        pytest.param("response", b'""', NONE, Reason.UNREPORTED, id="response is an empty string"),
        pytest.param("response", b"[]", NONE, Reason.UNREPORTED, id="response is an empty list"),
        pytest.param("response", b'"ok"', IDS, Reason.INVALID_RESPONSE, id="response is a string"),
        pytest.param("response", b"200", IDS, Reason.INVALID_RESPONSE, id="response is a number"),
        pytest.param("response", b"0", IDS, Reason.INVALID_RESPONSE, id="response is zero"),
        pytest.param("response", b"false", IDS, Reason.INVALID_RESPONSE, id="response is false"),
        pytest.param("response", b'["m1"]', IDS, Reason.INVALID_RESPONSE, id="response is a list"),
        pytest.param("response", b'{"statusCode":200}', NONE, Reason.UNREPORTED, id="another kind of response"),
        pytest.param(
            "response", b'{"BatchItemFailures":[{"itemIdentifier":"m1"}]}', NONE, Reason.UNREPORTED, id="list's key"
        ),
        pytest.param("response", b"NaN", IDS, Reason.INVALID_JSON, id="NaN is not JSON"),
        pytest.param("response", b'{"batchItemFailures":[],"x":Infinity}', IDS, Reason.INVALID_JSON, id="Infinity"),
        pytest.param("response", b"\xff\xfe\x00", IDS, Reason.INVALID_JSON, id="not UTF-8"),
        pytest.param("response", b"[" * 100_000, IDS, Reason.INVALID_JSON, id="nested too deep"),
        pytest.param("response", b"9" * 10_000, IDS, Reason.INVALID_JSON, id="number too long"),
    ],
)
def test_conditions(kind: str, body: bytes, failed: tuple[str, ...], reason: Reason) -> None:
    assert unacknowledged(kind, body, IDS) == Verdict(failed, reason)


@pytest.mark.parametrize("body", [entries("m1"), entries("m9"), b"not JSON", b"null", b""])
def test_any_response_succeeds_unless_failures_are_reported(body: bytes) -> None:
    verdict = unacknowledged("response", body, IDS, report_batch_item_failures=False)
    assert verdict == Verdict((), Reason.SUCCESS)


@pytest.mark.parametrize("kind", ["error", "timeout", "crash"])
def test_failed_invocations_fail_the_batch_in_both_modes(kind: str) -> None:
    assert unacknowledged(kind, entries(), IDS, report_batch_item_failures=False) == Verdict(IDS, Reason(kind))


def test_a_kind_that_does_not_exist_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="expected kind response, error, timeout or crash, got 'throttled'"):
        unacknowledged("throttled", b"", IDS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(IDS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["batchItemFailures", "itemIdentifier"]), inner),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_has_a_verdict(body: bytes) -> None:
    verdict = unacknowledged("response", body, IDS)
    if verdict.reason in {Reason.SUCCESS, Reason.UNREPORTED}:
        assert verdict.failed == ()
    elif verdict.reason is Reason.PARTIAL:
        assert verdict.failed
        assert set(verdict.failed) <= set(IDS)
    else:
        assert verdict.failed == IDS
