"""How one event source mapping is configured, within the limits that AWS documents."""

from __future__ import annotations

from dataclasses import dataclass

# Lambda API Reference, CreateEventSourceMapping, and Developer Guide, "Using Lambda with Amazon SQS".
MAX_BATCH_SIZE = 10_000
MAX_BATCH_SIZE_WITHOUT_WINDOW = 10  # also the limit for FIFO queues, which have no window
MAX_WINDOW_S = 300
MIN_MAXIMUM_CONCURRENCY, MAX_MAXIMUM_CONCURRENCY = 2, 1_000
MAX_FUNCTION_TIMEOUT_S = 900
UNLIMITED_CONCURRENCY = 1_250
"""What a mapping without MaximumConcurrency can reach (same guide, "Configuring scaling behavior")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingConfig:
    """One queue feeding one function; the values CreateEventSourceMapping takes, checked as it checks them.

    `window_s` and `function_timeout_s` are seconds. `maximum_concurrency` counts invocations at once. The visibility
    timeout is not here: it is the queue's. `ramp` = False starts at full concurrency, which Lambda never does.
    Raises ValueError ("expected ..., got ...").
    """

    queue_url: str
    queue_arn: str
    region: str
    fifo: bool = False
    batch_size: int = 10
    window_s: int = 0
    maximum_concurrency: int | None = None
    report_batch_item_failures: bool = False
    function_timeout_s: float = 3.0
    ramp: bool = True

    def __post_init__(self) -> None:
        if not self.queue_url or not self.queue_arn or not self.region:
            raise ValueError(
                "expected a queue URL, a queue ARN and a region, "
                f"got {self.queue_url!r}, {self.queue_arn!r}, {self.region!r}"
            )
        if self.fifo != self.queue_arn.endswith(".fifo"):
            raise ValueError(f"expected fifo to agree with the queue's name, got {self.fifo} for {self.queue_arn}")
        _expect_within("BatchSize", self.batch_size, 1, MAX_BATCH_SIZE)
        _expect_within("MaximumBatchingWindowInSeconds", self.window_s, 0, MAX_WINDOW_S)
        if self.fifo and self.batch_size > MAX_BATCH_SIZE_WITHOUT_WINDOW:
            raise ValueError(
                f"expected BatchSize of at most {MAX_BATCH_SIZE_WITHOUT_WINDOW} on a FIFO queue, got {self.batch_size}"
            )
        if self.fifo and self.window_s:
            raise ValueError(f"expected no MaximumBatchingWindowInSeconds on a FIFO queue, got {self.window_s}")
        if self.batch_size > MAX_BATCH_SIZE_WITHOUT_WINDOW and self.window_s < 1:
            raise ValueError(
                "expected MaximumBatchingWindowInSeconds of at least 1 with a BatchSize above "
                f"{MAX_BATCH_SIZE_WITHOUT_WINDOW}, got {self.window_s} with BatchSize {self.batch_size}"
            )
        if self.maximum_concurrency is not None:
            _expect_within(
                "MaximumConcurrency", self.maximum_concurrency, MIN_MAXIMUM_CONCURRENCY, MAX_MAXIMUM_CONCURRENCY
            )
        if not 0 < self.function_timeout_s <= MAX_FUNCTION_TIMEOUT_S:
            raise ValueError(
                f"expected a function timeout above 0 and of at most {MAX_FUNCTION_TIMEOUT_S} s, "
                f"got {self.function_timeout_s}"
            )

    @property
    def concurrency(self) -> int:
        """How many batches may be invoked at once when fully scaled."""
        return self.maximum_concurrency or UNLIMITED_CONCURRENCY

    @property
    def queue_name(self) -> str:
        return self.queue_arn.rpartition(":")[2]


def _expect_within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"expected {name} between {low} and {high}, got {value}")
