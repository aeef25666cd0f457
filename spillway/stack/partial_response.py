"""What a function's answer says about its batch: Lambda's rules for partial batch responses, without I/O.

Source of every rule, unless a comment says otherwise: AWS Lambda Developer Guide, "Handling errors for an SQS event
source in Lambda", section "Success and failure conditions"
(https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html). Where AWS is silent, the safe reading is
taken: the batch failed, so its messages come again, which a consumer must survive anyway.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Reason(StrEnum):
    """Why a batch ended as it did; a closed set, fit for metric names and log fields."""

    SUCCESS = "success"
    """The function answered, and no message failed."""
    UNREPORTED = "unreported"
    """No failure list at all (a forgotten `return`, a misspelt key): Lambda deletes the whole batch all the same."""
    PARTIAL = "partial"
    """Every listed message, and no other, failed."""
    ERROR = "error"
    """The function raised."""
    TIMEOUT = "timeout"
    CRASH = "crash"
    """The environment died, or could not be made."""
    INVALID_JSON = "invalid_json"
    INVALID_RESPONSE = "invalid_response"
    """Valid JSON of a shape that is no partial batch response."""
    BAD_IDENTIFIER = "bad_identifier"
    """An entry whose `itemIdentifier` is missing, misspelt, null, empty or no string."""
    UNKNOWN_IDENTIFIER = "unknown_identifier"
    """An `itemIdentifier` that names no message of this batch."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The messages of one batch that must not be deleted, in batch order, and why."""

    failed: tuple[str, ...]
    reason: Reason


def unacknowledged(
    kind: str, body: bytes, message_ids: Sequence[str], *, report_batch_item_failures: bool = True
) -> Verdict:
    """Decide which messages of a batch stay in the queue.

    `kind` is how the invocation ended: `response`, `error`, `timeout` or `crash`; `body` is what the function returned,
    undecoded, and only read for `response`. `message_ids` are the batch's, in order. Never raises on any `body`;
    raises ValueError on another `kind`.
    """
    everything = tuple(message_ids)
    match kind:
        case "error" | "timeout" | "crash":
            return Verdict(everything, Reason(kind))
        case "response":
            pass
        case _:
            raise ValueError(f"expected kind response, error, timeout or crash, got {kind!r}")
    if not report_batch_item_failures:
        # "Even when your function code returns partial batch failure responses, these responses will not be processed
        # by Lambda unless the ReportBatchItemFailures feature is explicitly turned on": any answer is a success.
        return Verdict((), Reason.SUCCESS)
    listed = _listed_failures(body)
    if isinstance(listed, Reason):
        succeeded = listed in {Reason.SUCCESS, Reason.UNREPORTED}
        return Verdict(() if succeeded else everything, listed)
    known = frozenset(everything)
    if not listed <= known:
        return Verdict(everything, Reason.UNKNOWN_IDENTIFIER)
    return Verdict(tuple(one for one in everything if one in listed), Reason.PARTIAL)


def _listed_failures(body: bytes) -> frozenset[str] | Reason:
    """Return the identifiers a response lists (at least one), or the reason why it lists none."""
    try:
        response = json.loads(body, parse_constant=_reject_constant) if body.strip() else None
    except (ValueError, RecursionError):  # also: not UTF-8, nested deeper than the parser goes
        return Reason.INVALID_JSON
    # Null and empty responses succeed. That "" and [] count as empty is AWS-validated in LocalStack's tests of the
    # same rules for streams (test_kinesis_report_batch_item_success_scenarios); zero and false are nobody's "empty".
    if response is None or response in ("", [], {}):
        return Reason.UNREPORTED
    if not isinstance(response, dict):
        # "ok", 200, true, ["id"]: undocumented. Lambda reads the answer as an EventResponse object, which these are
        # not, so they are nearer to "an invalid JSON response" than to an empty one.
        return Reason.INVALID_RESPONSE
    # Other keys are ignored, so {"statusCode": 200} and the misspelt {"BatchItemFailures": [...]} are null lists. That
    # the latter retries nothing is a field report (github.com/awsdocs/aws-lambda-developer-guide/issues/320); were this
    # emulator kinder, the mistake would first show on AWS, as lost messages.
    failures = response.get("batchItemFailures")
    return Reason.UNREPORTED if failures is None else _identifiers(failures)


def _identifiers(failures: Any) -> frozenset[str] | Reason:
    """Return the identifiers in the value of `batchItemFailures` (at least one), or the reason why there are none."""
    if not isinstance(failures, list):
        return Reason.INVALID_RESPONSE  # undocumented, and an object with a null list is something else: fail
    if not failures:
        return Reason.SUCCESS
    identifiers: set[str] = set()  # the same identifier twice says the same thing twice
    for entry in failures:
        # Extra keys are ignored; "an itemIdentifier with a bad key name" is one that is missing.
        identifier = entry.get("itemIdentifier") if isinstance(entry, dict) else None
        if not isinstance(identifier, str) or not identifier:
            return Reason.BAD_IDENTIFIER
        identifiers.add(identifier)
    return frozenset(identifiers)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON, got {name}")  # Python's parser takes NaN and Infinity, JSON does not
