"""What became of an event that was to be sent, and which failures another try can heal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: 4xx answers that another try can heal ("Common errors" and "SendMessageBatch", SQS API reference).
_THROTTLES = frozenset({"Throttling", "ThrottlingException", "RequestThrottled", "OverLimit", "KmsThrottled"})


class SendError(msgspec.Struct, kw_only=True, frozen=True):
    """Why an event was not sent.

    `code` is SQS's own, an exception's name, or an EventRefused's reason. `final` says that trying again cannot help.
    `whole_call` says that the call failed as a whole, so the next one probably will, too.
    """

    code: str
    message: str
    final: bool = True
    whole_call: bool = False


class SendResult(msgspec.Struct, kw_only=True, frozen=True):
    """What became of the event at position `index` of those given: `message_id`, or `error`."""

    index: int
    event_id: str | None = None
    message_id: str | None = None
    sequence_number: str | None = None
    error: SendError | None = None


def refused_call(error: ClientError) -> SendError:
    """The service answered with an error: worth another try if it is the service's own, or throttling."""
    code = error.response.get("Error", {}).get("Code", "Unknown")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    passing = status >= 500 or status == 429 or code.rpartition(".")[2] in _THROTTLES
    message = error.response.get("Error", {}).get("Message") or f"HTTP status {status}"
    return SendError(code=code, message=message, final=not passing, whole_call=True)


def broken_call(error: Exception) -> SendError:
    """No answer: worth another try unless it never was a network matter (credentials, parameters)."""
    from botocore.exceptions import ConnectionError as BotoConnectionError  # noqa: PLC0415
    from botocore.exceptions import HTTPClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    passing = isinstance(error, HTTPClientError | BotoConnectionError | ResponseParserError)
    return SendError(code=type(error).__name__, message=str(error), final=not passing, whole_call=True)
