"""Probes: harmless orders that can be told from everybody else's, and the trickle of them in a drill."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from spillway.fleet.canaries import CANARY
from spillway.ids import uuid7
from spillway.pace import TokenBucket
from workers.orders.contract import Item, Order, OrderEvent, OrderPlaced

if TYPE_CHECKING:
    from spillway.producer import Producer

#: What a worker must take to be drilled.
CONTRACT = OrderEvent
CUSTOMER = "spillway-drill"
SOURCE = "/spillway/failover-drill"


class Sent(msgspec.Struct, kw_only=True, frozen=True):
    """One probe: `at` is when SQS had answered, in seconds since the epoch; without a `message_id` it was not sent."""

    order_id: str
    event_id: str
    at: float
    message_id: str | None = None
    error: str = ""


def run_name(run: str) -> str:
    """What the probes of `run` have as their canary attribute, and their order ids begin with."""
    return f"drill-{run}"


def probe(run: str, number: int) -> OrderPlaced:
    """The order number `number` of `run`, placed now."""
    now = datetime.now(UTC)
    order = f"{run_name(run)}-{number}"
    return OrderPlaced(
        specversion="1.0",
        id=uuid7(),
        source=SOURCE,
        subject=order,
        time=now,
        data=Order(
            order_id=order,
            version=1,
            customer=CUSTOMER,
            currency="EUR",
            items=[Item(sku="SPILLWAY-DRILL", quantity=1, unit_price=1)],
            total=1,
            placed_at=now,
        ),
    )


class Trickle:
    """Sends `rate` probes per second from a thread of its own, until stopped.

    `producer` should try once: a failed send is what the drill is to see, and another try would hide it.
    """

    def __init__(self, producer: Producer, run: str, rate: float, *, clock: Callable[[], float] = time.time) -> None:
        self._producer = producer
        self._run = run
        self._clock = clock
        self._stopped = threading.Event()
        self._bucket = TokenBucket(rate, sleep=self._stopped.wait)
        self._thread = threading.Thread(target=self._flow, name="drill-trickle", daemon=True)
        self._sent: list[Sent] = []
        self._failure: Exception | None = None

    @property
    def sent(self) -> list[Sent]:
        """All probes so far, in order. Raises what ended the trickle, if it was not `stop`."""
        if self._failure is not None:
            raise self._failure
        return list(self._sent)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Send no more; the probe that is on its way is waited for, for `timeout_s` at most."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _flow(self) -> None:
        try:
            number = 0
            self._bucket.take()
            while not self._stopped.is_set():
                number += 1
                self._sent.append(self._send(number))
                self._bucket.take()
        except Exception as error:
            self._failure = error

    def _send(self, number: int) -> Sent:
        event = self._producer.prepare(probe(self._run, number), attributes={CANARY: run_name(self._run)})
        [result] = self._producer.send([event])
        return Sent(
            order_id=f"{run_name(self._run)}-{number}",
            event_id=str(event.event_id),
            at=self._clock(),
            message_id=result.message_id,
            error=f"{result.error.code}: {result.error.message}" if result.error is not None else "",
        )
