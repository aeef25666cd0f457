"""SQS events as Lambda delivers them, as JSON text, from the history that the demo sends too."""

from __future__ import annotations

import base64
import hashlib
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from spillway.histories.orders import generate
from spillway.stack.batch import MAX_PAYLOAD_BYTES, received

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

QUEUE_ARN = "arn:aws:sqs:eu-central-1:123456789012:spillway-orders"
REGION = "eu-central-1"
_HEAD, _TAIL = b'{"Records":[', b"]}"


def bodies(count: int, seed: int = 1) -> list[str]:
    """Message bodies without poison: 5 % sent twice, versions out of order, a few hot orders."""
    return [message.body for message in generate(count, seed=seed, poison=0).messages]


def records(texts: Iterable[str], seed: int = 1) -> Iterator[bytes]:
    """Each body as the JSON of one record, about 1.3 KB of it: ids and receipt handles as long as those of SQS."""
    rng = random.Random(seed)
    for text in texts:
        digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        message: dict[str, Any] = {
            "MessageId": str(UUID(int=rng.getrandbits(128), version=4)),
            "ReceiptHandle": "AQEB" + base64.b64encode(rng.randbytes(306)).decode(),
            "Body": text,
            "MD5OfBody": digest,
            "Attributes": {
                "ApproximateReceiveCount": "1",
                "AWSTraceHeader": f"Root=1-6968b398-{rng.getrandbits(96):024x};Parent={rng.getrandbits(64):016x}",
                "SentTimestamp": "1768469400000",
                "SenderId": "AIDAEXAMPLESENDERID00",
                "ApproximateFirstReceiveTimestamp": "1768469400025",
            },
        }
        yield received(message, queue_arn=QUEUE_ARN, region=REGION).record


def event(batch: Iterable[bytes]) -> bytes:
    """The JSON of the event that holds these records."""
    return _HEAD + b",".join(batch) + _TAIL


def full_count(encoded: Iterable[bytes]) -> int:
    """How many of these records, from the first on, fit the 6 MB that an event may have."""
    size, count = len(_HEAD) + len(_TAIL) - 1, 0
    for record in encoded:
        size += len(record) + 1
        if size > MAX_PAYLOAD_BYTES:
            break
        count += 1
    return count
