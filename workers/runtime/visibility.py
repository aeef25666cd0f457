"""Delays what was given back: full-jitter exponential back-off by receive count, as visibility timeouts.

Without it a message comes again when its queue's visibility timeout is over, which is a fine back-off too. So nothing
here is worth failing a batch for, or much billed time: a request costs 1.1 ms of a whole processor (botocore 1.43,
10 messages, measured against the local SQS server), 4 ms of the 0.29 processors that 512 MB of a Lambda have, and a
batch of 1,000 takes 100 of them. Hence `MIN_BUDGET_S`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.runtime.failures import POLICIES, Failure
from workers.runtime.sqs import CONNECTIONS, MAX_ENTRIES, REQUEST_S, Sqs, group_of, is_fifo, receive_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.runtime.sqs import Record

#: Seconds of each invocation that are kept free for it, and the most that it takes.
VISIBILITY_BUDGET_S = REQUEST_S
#: Otherwise it may take as long as the invocation has taken so far, which at most doubles the bill, or this: an
#: invocation that the breaker turned away took 20 ms, and 100 requests after it would be twenty times its price.
MIN_BUDGET_S = 0.1

#: SQS's bound on how long a message may stay invisible since it was received, in seconds.
MAX_INVISIBLE_S = 43_200
#: What is taken off it for what passed between the receive and the invocation: batching window and retries.
MAX_AGE_S = 600

GivenBack = tuple["Record", Failure]


@dataclass(slots=True)
class Delayed:
    """How many messages got their delay, how many SQS refused it for, and why ('' if none). The others had no turn."""

    delayed: int = 0
    refused: int = 0
    trouble: str = ""


class Visibility:
    """The visibility timeouts of one queue's messages. Without a URL there is no back-off but the queue's own."""

    def __init__(self, url: str, sqs: Sqs, *, max_delay_s: int, rng: random.Random | None = None) -> None:
        self._url = url
        self._sqs = sqs
        self._max_delay_s = max_delay_s
        self._rng = rng or random.Random()  # noqa: S311

    @property
    def budget_s(self) -> float:
        """What an invocation has to keep free for it, in seconds."""
        return VISIBILITY_BUDGET_S if self._url else 0.0

    def delay(
        self, given_back: Sequence[GivenBack], remaining_s: Callable[[], float], elapsed_s: float = 0.0
    ) -> Delayed:
        """Delay what was given back, within the invocation's `remaining_s()`; `elapsed_s` is what it has taken so far.

        Raises nothing, and never takes longer than `VISIBILITY_BUDGET_S` and one request.
        """
        done = Delayed()
        if not self._url or not given_back:
            return done
        try:
            client = self._sqs.client
        except Exception as error:  # no boto3, no region, no credentials: the messages come back all the same
            return Delayed(refused=len(given_back), trouble=type(error).__name__)
        before_s = remaining_s()
        budget_s = min(VISIBILITY_BUDGET_S, max(MIN_BUDGET_S, elapsed_s))

        def change(entries: list[dict[str, Any]]) -> tuple[int, int, str]:
            remaining = remaining_s()
            if remaining < REQUEST_S or before_s - remaining > budget_s:
                return 0, 0, ""
            try:
                answer = client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
            except Exception as error:
                return 0, len(entries), type(error).__name__
            failed = answer.get("Failed", ())
            why = next((str(one.get("Code", "unknown")) for one in failed), "")
            return len(entries) - len(failed), len(failed), why

        for delayed, refused, trouble in _each(change, self._requests(given_back, elapsed_s)):
            done.delayed += delayed
            done.refused += refused
            done.trouble = done.trouble or trouble
        return done

    def _requests(self, given_back: Sequence[GivenBack], elapsed_s: float) -> list[list[dict[str, Any]]]:
        entries = [
            {"ReceiptHandle": record.get("receiptHandle", ""), "VisibilityTimeout": delay_s}
            for (record, _), delay_s in zip(given_back, self.delays(given_back, elapsed_s), strict=True)
        ]
        groups = [entries[start : start + MAX_ENTRIES] for start in range(0, len(entries), MAX_ENTRIES)]
        return [[entry | {"Id": str(index)} for index, entry in enumerate(group)] for group in groups]

    def delays(self, given_back: Sequence[GivenBack], elapsed_s: float = 0.0) -> list[int]:
        """Seconds for each message.

        All messages of one FIFO group get the same: SQS hands out nothing of a group while any message of it is
        invisible ("Interleaving multiple ordered message groups"), so a longer one for a later message would only hold
        the failed one back. It is the first one's that is not merely held.
        """
        most = min(self._max_delay_s, MAX_INVISIBLE_S - MAX_AGE_S - int(elapsed_s))
        first: dict[str, GivenBack] = {}
        for record, failure in given_back:
            if is_fifo(record):
                group = group_of(record)
                if group not in first or first[group][1] is Failure.HELD:
                    first[group] = record, failure
        common = {group: self._draw(*one, most) for group, one in first.items()}
        return [
            common[group_of(record)] if is_fifo(record) else self._draw(record, failure, most)
            for record, failure in given_back
        ]

    def _draw(self, record: Record, failure: Failure, most: int) -> int:
        policy = POLICIES[failure]
        # The exponent is bounded because a float's range is.
        ceiling = min(most, policy.max_delay_s, policy.delay_s * policy.growth ** min(receive_count(record) - 1, 40))
        # At least a second: zero would bring it back before this invocation's answer is read.
        return max(1, round(self._rng.uniform(0, ceiling)))


def _each(
    change: Callable[[list[dict[str, Any]]], tuple[int, int, str]], requests: list[list[dict[str, Any]]]
) -> list[tuple[int, int, str]]:
    if len(requests) == 1:
        return [change(requests[0])]
    # Imported here because a cold start need not pay for what few environments use.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(min(CONNECTIONS, len(requests))) as pool:
        return list(pool.map(change, requests))
