"""The costs that docs/deploy.md tells are those of the formula, and the formula's numbers are the fleet's."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bench import costs
from spillway.stack.template import REPOSITORY, load_fleet
from tests.template.combinations import COMBINATIONS, environments, root, stacks
from workers.governor import telemetry as governor
from workers.housekeeping import telemetry as housekeeping

DEPLOY = (REPOSITORY / "docs/deploy.md").read_text()
BENCHMARKS = (REPOSITORY / "docs/benchmarks.md").read_text()


@pytest.fixture(scope="module")
def made() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """By environment, every resource with the stack that it is in."""
    document = root()
    return {
        name: [(stack, one) for stack, decided in stacks(document, given) for one in decided["Resources"].values()]
        for name, given in environments().items()
    }


def resources(made: list[tuple[str, dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [resource["Properties"] for _, resource in made if resource["Type"] == kind]


@pytest.mark.parametrize("table", [costs.by_rate, costs.by_environment])
def test_the_document_has_the_tables(table: Any) -> None:
    assert costs.markdown(table()) in DEPLOY, "run `.venv/bin/python -m bench.costs` and copy its tables"
    assert costs.PRICES_OF in DEPLOY


def test_alarms_and_endpoints_are_counted(made: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
    looked_at = 0
    for alarm in resources(made["prod"], "AWS::CloudWatch::Alarm"):
        looked_at += sum("MetricStat" in metric for metric in alarm["Metrics"]) if "Metrics" in alarm else 1
        # High-resolution alarms, below a minute, cost three times as much.
        assert int(alarm.get("Period", 60)) >= 60
    # An alarm more is ten cents: the table is not made anew for that.
    assert looked_at == pytest.approx(costs.ALARM_METRICS, rel=0.1)
    endpoints = [
        one for one in resources(made["prod"], "AWS::EC2::VPCEndpoint") if one["VpcEndpointType"] == "Interface"
    ]
    assert len(endpoints) == costs.INTERFACE_ENDPOINTS


@pytest.mark.parametrize("name", costs.ENVIRONMENTS)
def test_environments_are_those_of_samconfig(name: str, made: dict[str, list[tuple[str, dict[str, Any]]]]) -> None:
    fleet, given = costs.ENVIRONMENTS[name], COMBINATIONS[name]
    values = load_fleet(given).parameters
    assert fleet.instance == values["DatabaseInstanceClass"]
    assert fleet.storage_gb == int(values["DatabaseStorage"])
    assert fleet.multi_az == (values["MultiAz"] == "true")
    assert fleet.zones == int(values["AvailabilityZones"])
    assert fleet.architecture == values["Architecture"]
    assert fleet.alarms == bool(resources(made[name], "AWS::CloudWatch::Alarm"))
    assert fleet.proxy == bool(resources(made[name], "AWS::RDS::DBProxy"))
    assert fleet.governor == (values["Governor"] != "off")
    # The master's secret, which RDS makes by itself, and the application's.
    assert fleet.secrets == 1 + len(resources(made[name], "AWS::SecretsManager::Secret"))


def test_the_fleet_is_the_templates() -> None:
    fleet = load_fleet({})
    assert len(fleet.mappings) == costs.QUEUES
    (orders,) = [source for source in fleet.mappings if "Orders" in source.logical_id]
    assert (orders.batch_size, orders.window_s) == (costs.BATCH_SIZE, costs.WINDOW_S)
    assert fleet.functions[orders.function].memory_mb == costs.MEMORY_GB * 1024
    assert int(fleet.parameters["ClaimRetentionDays"]) == costs.CLAIM_RETENTION_DAYS


def test_published_metrics_are_counted() -> None:
    names = ("CONCURRENCY", "ACTING", "CHANGES", "HANDS_OFF", "ERRORS")
    assert all(getattr(governor, name) for name in names)
    assert len(names) - 1 + costs.QUEUES == costs.GOVERNOR_METRICS
    published = re.findall(
        r'^[A-Z_]+ = "[A-Z][A-Za-z]+"$', (REPOSITORY / "workers/housekeeping/telemetry.py").read_text(), re.M
    )
    assert len(published) == costs.HOUSEKEEPING_METRICS, housekeeping


def test_measured_times_are_the_benchmarks() -> None:
    measured = {
        int(batch.replace(",", "")): int(batch.replace(",", "")) * float(microseconds) / 1000
        for batch, microseconds in re.findall(r"^\| ([\d,]+) \|.*\| ([\d.]+) \|$", BENCHMARKS, re.MULTILINE)
        if int(batch.replace(",", "")) in costs.BATCH_MS
    }
    assert measured == pytest.approx(costs.BATCH_MS, rel=0.01)


@pytest.mark.parametrize("rates", [(0, 1), (1, 100), (100, 1_000), (1_000, 10_000)])
def test_more_messages_cost_more_and_each_of_them_less(rates: tuple[int, int]) -> None:
    fewer, more = (costs.month(costs.Fleet(), rate) for rate in rates)
    assert sum(more.values()) > sum(fewer.values())
    if rates[0]:
        assert sum(more.values()) / rates[1] < sum(fewer.values()) / rates[0]


def test_by_hand() -> None:
    # 1,000/s: 2.628 thousand million messages, 3 requests for ten; 5 batches of 200 a second, each
    # 8 ms + (3.05 + 100 / 900 x 19.15 = 5.18 ms) / 0.2894 = 25.9 ms of 0.5 GB.
    month = costs.month(costs.Fleet(governor=False), 1_000)
    assert month["SQS: 3 requests for ten messages, idle polling"] == pytest.approx(315.36 + 0.79, abs=0.01)
    assert costs.batches(1_000) == (5, 200)
    assert costs.duration_ms(200) == pytest.approx(25.9, abs=0.05)
    assert month["Lambda"] == pytest.approx(13.14e6 * (0.0259 * 0.5 * 0.0000133334 + 0.0000002), rel=0.01)
    assert month["RDS Proxy"] == pytest.approx(21.9)
    assert costs.month(costs.Fleet(acus=1))["RDS Proxy"] == pytest.approx(87.6)
    assert costs.batches(10_000) == (10, 1_000)
    assert costs.batches(0) == (0, 0)
    assert costs.batches(2) == (2, 1)


def test_the_concurrency_that_a_new_account_lacks_is_told() -> None:
    values = load_fleet({}).parameters
    reserved = sum(int(value) for name, value in values.items() if name.endswith("MaximumConcurrency"))
    # Lambda keeps 100 executions unreserved (Developer Guide, "Configuring reserved concurrency").
    assert f"*Fewer than {reserved + 100} concurrent executions*" in DEPLOY
    assert f"the consumers reserve {reserved}." in " ".join(DEPLOY.split())


def test_every_parameter_that_the_document_gives_a_value_takes_it() -> None:
    parameters = root()["Parameters"]
    assigned = re.findall(r"\b([A-Z][a-z][A-Za-z]+)=([A-Za-z0-9._]+\b)", DEPLOY)
    assert len(assigned) >= 8
    for name, value in assigned:
        assert name in parameters, name
        assert value in map(str, parameters[name].get("AllowedValues", [value])), f"{name}={value}"
