"""A tiny CloudWatch: sums up the metrics that functions print in Embedded Metric Format (EMF).

The format: docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import json
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_VALUES = 10_000
"""How many of its latest values a series keeps for percentiles; sum, count and extremes cover all."""


class SeriesKey(NamedTuple):
    """What tells series apart; `dimensions` are (name, value) pairs in order of name.

    A line may file one value under several sets of dimensions, each a series to CloudWatch. Here it is filed once,
    under all dimensions of all sets, so that a sum over series never counts a value twice.
    """

    namespace: str
    metric: str
    dimensions: tuple[tuple[str, str], ...]


@dataclass
class Series:
    """The values of one metric for one set of dimensions, in the unit they were printed in."""

    sum: float = 0.0
    count: int = 0
    min: float = math.inf
    max: float = -math.inf
    values: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_VALUES))

    def add(self, values: Iterable[float]) -> None:
        """Take in more values."""
        for value in values:
            self.sum += value
            self.count += 1
            self.min = min(self.min, value)
            self.max = max(self.max, value)
            self.values.append(value)


class MetricStore:
    """Collects series from output lines. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[SeriesKey, Series] = {}

    def feed(self, line: str) -> bool:
        """Take in one output line; False if it carries no metrics. Malformed metrics are left out, as AWS does."""
        if '"CloudWatchMetrics"' not in line:
            return False
        try:
            document = json.loads(line)
            directives = document["_aws"]["CloudWatchMetrics"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return False
        if not isinstance(directives, list):
            return False
        found = list(_read(document, directives))
        with self._lock:
            for key, values in found:
                self._series.setdefault(key, Series()).add(values)
        return True

    def sum(self, name: str, **dimensions: str) -> float:
        """The sum of a metric over all series that have these dimensions (and maybe more); 0 if there is none."""
        with self._lock:
            return math.fsum(series.sum for _, series in self._matching(name, dimensions))

    def count(self, name: str, **dimensions: str) -> int:
        """How many values the metric was given, over the same series as `sum`."""
        with self._lock:
            return sum(series.count for _, series in self._matching(name, dimensions))

    def by_dimension(self, name: str, dimension: str) -> dict[str, float]:
        """The metric's sum for each value of one dimension; series without that dimension are left out."""
        sums: dict[str, float] = {}
        with self._lock:
            for key, series in self._matching(name, {}):
                value = dict(key.dimensions).get(dimension)
                if value is not None:
                    sums[value] = sums.get(value, 0.0) + series.sum
        return sums

    def values(self, name: str, **dimensions: str) -> list[float]:
        """The latest values (at most `MAX_VALUES` of each series), series by series."""
        with self._lock:
            return [value for _, series in self._matching(name, dimensions) for value in series.values]

    def extremes(self, name: str, **dimensions: str) -> tuple[float, float] | None:
        """Smallest and largest value ever given, or None if there is none."""
        with self._lock:
            found = [series for _, series in self._matching(name, dimensions) if series.count]
            return (min(s.min for s in found), max(s.max for s in found)) if found else None

    def _matching(self, name: str, dimensions: dict[str, str]) -> Iterator[tuple[SeriesKey, Series]]:
        wanted = dimensions.items()
        for key, series in self._series.items():
            if key.metric == name and wanted <= dict(key.dimensions).items():
                yield key, series


def _read(document: dict[str, Any], directives: list[Any]) -> Iterator[tuple[SeriesKey, list[float]]]:
    for directive in directives:
        if not isinstance(directive, dict):
            continue
        for metric in _list(directive.get("Metrics")):
            name = metric.get("Name") if isinstance(metric, dict) else None
            values = _numbers(document.get(name)) if isinstance(name, str) else []
            if not isinstance(name, str) or not values:
                continue
            sets = _list(directive.get("Dimensions"))
            names = {d for dimension_set in sets for d in _list(dimension_set) if isinstance(d, str) and d in document}
            dimensions = tuple((d, str(document[d])) for d in sorted(names))
            yield SeriesKey(str(directive.get("Namespace", "")), name, dimensions), values


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: object) -> list[float]:
    candidates = value if isinstance(value, list) else [value]
    return [float(v) for v in candidates if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
