"""Faults of SQS: what it delivers, what it refuses, and answers that are lost; and an operator's redrive meanwhile."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from spillway.stack.snapshot import depth
from tests.chaos.faults import Fault, Strike, fault
from tests.chaos.proxy_faults import Saturation
from tests.chaos.sqs_faults import ACCESS_DENIED, INTERNAL_ERROR, THROTTLED, UNAVAILABLE

if TYPE_CHECKING:
    from tests.chaos import sqs_faults


def _queues(strike: Strike) -> list[str]:
    """The workers' queues, not those of dead letters."""
    return [strike.fleet.queue_name(name) for name in strike.fleet.names]


class _OfQueues(Fault):
    """Injects faults of SQS for a while; they happened as often as the endpoint counted."""

    def __init__(self) -> None:
        self.injected: list[sqs_faults.Fault] = []

    @abstractmethod
    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        """Start the faults."""

    def meanwhile(self, strike: Strike) -> None:
        strike.pause(strike.seconds(4, 8))

    def strike(self, strike: Strike) -> int:
        self.injected = self.inject(strike)
        self.meanwhile(strike)
        strike.wait(lambda: any(one.injected for one in self.injected))
        return sum(one.injected for one in self.injected)

    def heal(self, strike: Strike) -> None:
        for one in self.injected:
            one.remove()


@fault
class Duplicates(_OfQueues):
    """At-least-once delivery at its worst: everything comes twice, while it is in flight or after it was deleted."""

    name = "SQS delivers every message twice"

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        within_s = strike.rng.choice([0.5, 3.0])
        duplicate = strike.fleet.sqs_faults.duplicate
        return [duplicate(1.0, within_s=within_s, queue=queue) for queue in _queues(strike)]


@fault
class OutOfOrder(_OfQueues):
    """Standard queues only; FIFO queues keep their promise."""

    name = "SQS delivers out of order"

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        reorder = strike.fleet.sqs_faults.reorder
        return [reorder(window=40, within_s=1.0, queue=queue) for queue in _queues(strike)]


@fault
class DeleteFails(_OfQueues):
    """Messages that are done come again."""

    name = "errors on delete"

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        faults = strike.fleet.sqs_faults
        return [
            faults.fail("DeleteMessageBatch", strike.rng.choice([INTERNAL_ERROR, UNAVAILABLE, THROTTLED]), share=0.3),
            faults.fail_entries("DeleteMessageBatch", share=0.3),
            faults.lose("DeleteMessageBatch", share=0.3),
        ]


@fault
class ReceiveFails(_OfQueues):
    """Among them messages that were received by nobody, and are invisible."""

    name = "errors on receive"

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        faults = strike.fleet.sqs_faults
        return [faults.fail("ReceiveMessage", UNAVAILABLE, share=0.4), faults.lose("ReceiveMessage", share=0.3)]


@fault
class VisibilityFails(_OfQueues):
    """The back-off of what is given back cannot be set; the pool is saturated, so that there is something to give."""

    name = "errors on ChangeMessageVisibility"
    takes = "the proxy"  # it saturates the pool

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        faults, action = strike.fleet.sqs_faults, "ChangeMessageVisibility*"
        return [
            faults.fail(action, strike.rng.choice([INTERNAL_ERROR, ACCESS_DENIED, THROTTLED]), share=0.3),
            faults.fail_entries("ChangeMessageVisibilityBatch", share=0.3),
            faults.lose(action, share=0.2),
            faults.hang(action, 3, share=0.3),
        ]

    def meanwhile(self, strike: Strike) -> None:
        Saturation().strike(strike)

    def heal(self, strike: Strike) -> None:
        super().heal(strike)
        Saturation().heal(strike)


@fault
class DeadLettersFail(_OfQueues):
    """Poison that cannot leave stays in its queue, and nobody says that it is done."""

    name = "errors on sending dead letters"

    def inject(self, strike: Strike) -> list[sqs_faults.Fault]:
        faults, result = strike.fleet.sqs_faults, []
        for name in strike.fleet.names:
            queue = strike.fleet.queue_name(name, dead_letters=True)
            error = strike.rng.choice([INTERNAL_ERROR, ACCESS_DENIED, THROTTLED])
            result += [
                faults.fail("SendMessage*", error, share=0.4, queue=queue),
                faults.fail_entries("SendMessageBatch", share=0.4, queue=queue),
                faults.lose("SendMessage*", share=0.3, queue=queue),
            ]
        return result


@fault
class Redrive(Fault):
    """An operator sends dead letters back that were never mended: they must come again, with their reason."""

    name = "redrive of the dead-letter queues"

    def strike(self, strike: Strike) -> int:
        fleet, sent = strike.fleet, 0

        def some() -> bool:
            return any(depth(fleet.stack.client, url, None).waiting for url in fleet.dead_letter_urls.values())

        for _ in range(3):
            if strike.wait(some):
                sent += sum(fleet.redrive(name, limit=20) for name in fleet.names)
            strike.pause(0.5)
        return sent
