"""Where metrics go."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from workers.housekeeping.housekeeper import Report
from workers.housekeeping.telemetry import Telemetry as HousekeepingTelemetry
from workers.runtime.invocation import Invocation
from workers.runtime.telemetry import NAMESPACE, Telemetry, metrics


def filed(line: str) -> tuple[str, list[list[str]], str]:
    """Namespace, sets of dimensions, and the service of a line in Embedded Metric Format."""
    document = json.loads(line)
    [directive] = document["_aws"]["CloudWatchMetrics"]
    return directive["Namespace"], directive["Dimensions"], document["service"]


@pytest.mark.parametrize(
    ("variable", "namespace"),
    [("Spillway/spillway-prod", "Spillway/spillway-prod"), ("", NAMESPACE), (None, NAMESPACE)],
)
def test_a_fleets_metrics_are_its_own(
    variable: str | None, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if variable is None:
        monkeypatch.delenv("POWERTOOLS_METRICS_NAMESPACE", raising=False)
    else:
        monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", variable)
    # A service's name must not come from the environment: it is a dimension that alarms are on.
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "somebody")
    worker, housekeeping = Telemetry("orders"), HousekeepingTelemetry()
    worker.batch(Counter(applied=1), Invocation(lambda: 1.0), size=1, redelivered=0, request_id="r")
    housekeeping.report(Report())
    lines = [line for line in capsys.readouterr().out.splitlines() if "CloudWatchMetrics" in line]
    assert [filed(line) for line in lines] == [
        (namespace, [["service"]], "orders"),
        (namespace, [["service"]], "housekeeping"),
    ]
    assert metrics("audit").namespace == namespace
