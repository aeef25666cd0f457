"""Alarms and dashboard: real metrics, right units, one heading in docs/operations.md each.

The tables below are AWS's documentation as far as the templates use it: RDS User Guide, "Monitoring RDS Proxy metrics
with Amazon CloudWatch" and "Amazon CloudWatch metrics for Amazon RDS"; Aurora User Guide, "Amazon CloudWatch metrics
for Amazon Aurora"; SQS Developer Guide, "Available CloudWatch metrics for Amazon SQS"; Lambda Developer Guide, "Types
of metrics for Lambda functions".
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore import xform_name
from samcli.yamlhelper import yaml_parse

from spillway.rdsproxy.metrics import CLOUDWATCH
from spillway.stack.intrinsics import Resolver
from spillway.stack.template import REPOSITORY
from workers.governor import telemetry as governor
from workers.housekeeping import telemetry as housekeeping
from workers.runtime import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INFRA = REPOSITORY / "infra"
OPERATIONS = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
FLEET, TOPIC = "my-fleet", "arn:aws:sns:eu-west-1:123456789012:alarms"
URL = "https://wiki.example/operations"
OWN = f"Spillway/{FLEET}"

# What is measured


@dataclass(frozen=True)
class Metric:
    """stats: those that mean something. gauge: published by each of several nodes: right is the Sum over one minute."""

    dimensions: tuple[frozenset[str], ...]
    stats: frozenset[str]
    gauge: bool = False


def dimensions(*names: str) -> frozenset[str]:
    return frozenset(names)


PROXY = dimensions("ProxyName")
WRITER = dimensions("ProxyName", "TargetGroup", "TargetRole")
INSTANCE = dimensions("DBInstanceIdentifier")
CLUSTER = dimensions("DBClusterIdentifier")
CLUSTER_ROLE = dimensions("DBClusterIdentifier", "Role")
SUM, AVERAGE, MAXIMUM, MINIMUM = (frozenset({name}) for name in ("Sum", "Average", "Maximum", "Minimum"))

AWS: dict[tuple[str, str], Metric] = {
    ("AWS/RDS", "ClientConnections"): Metric((PROXY,), SUM, gauge=True),
    ("AWS/RDS", "ClientConnectionsSetupFailedAuth"): Metric((PROXY,), SUM),
    ("AWS/RDS", "DatabaseConnectionsCurrentlyBorrowed"): Metric((PROXY, WRITER), SUM, gauge=True),
    ("AWS/RDS", "DatabaseConnectionsCurrentlySessionPinned"): Metric((PROXY, WRITER), SUM, gauge=True),
    ("AWS/RDS", "DatabaseConnectionsBorrowLatency"): Metric((PROXY,), AVERAGE | MAXIMUM),
    ("AWS/RDS", "DatabaseConnectionsSetupFailed"): Metric((PROXY, WRITER), SUM),
    ("AWS/RDS", "MaxDatabaseConnectionsAllowed"): Metric((PROXY, WRITER), SUM, gauge=True),
    ("AWS/RDS", "QueryRequests"): Metric((PROXY,), SUM),
    ("AWS/RDS", "AvailabilityPercentage"): Metric((WRITER,), AVERAGE),
    ("AWS/RDS", "CPUUtilization"): Metric((INSTANCE, CLUSTER_ROLE), AVERAGE),
    ("AWS/RDS", "FreeStorageSpace"): Metric((INSTANCE,), MINIMUM),
    ("AWS/RDS", "AuroraReplicaLagMaximum"): Metric((CLUSTER,), MAXIMUM),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): Metric((dimensions("QueueName"),), MAXIMUM),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): Metric((dimensions("QueueName"),), MAXIMUM),
    ("AWS/Lambda", "Errors"): Metric((dimensions("FunctionName"),), SUM),
    ("AWS/Lambda", "Throttles"): Metric((dimensions("FunctionName"),), SUM),
    ("AWS/Lambda", "ConcurrentExecutions"): Metric((dimensions("FunctionName"),), MAXIMUM),
}
#: One name, two metrics: the proxy's nodes each publish theirs, an instance publishes one number.
PROXY_CONNECTIONS = Metric((PROXY, WRITER), SUM, gauge=True)
DATABASE_CONNECTIONS = Metric((INSTANCE, CLUSTER_ROLE), MAXIMUM)

#: The fleet's own: counts, but for what a run leaves as a state.
STATES = {
    housekeeping.UNFINISHED,
    governor.ACTING,
    governor.CONCURRENCY,
    governor.ERRORS,
    governor.HANDS_OFF,
}  # fmt: skip
COUNTS = {
    *telemetry.OUTCOME_METRICS.values(),
    telemetry.BATCH_SIZE,
    telemetry.BREAKER_OPEN,
    telemetry.DELAY_REFUSED,
}  # fmt: skip

#: Values of dimensions that are not a name of ours.
VALUES = {"TargetGroup": {"default"}, "TargetRole": {"READ_WRITE", "READ_ONLY"}, "Role": {"WRITER", "READER"}}


@dataclass(frozen=True)
class Use:
    """A metric as an alarm or a graph asks for it."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]
    stat: str
    period: int


def mistakes(use: Use) -> list[str]:
    """What is wrong with it; nothing if CloudWatch has such a metric and the statistic means something."""
    names = frozenset(name for name, _ in use.dimensions)
    if use.namespace == OWN:
        known = {name: Metric((dimensions("service"),), SUM) for name in COUNTS}
        known |= {name: Metric((dimensions("service"),), MINIMUM | MAXIMUM) for name in STATES}
        metric = known.get(use.name)
    elif (use.namespace, use.name) == ("AWS/RDS", "DatabaseConnections"):
        metric = PROXY_CONNECTIONS if "ProxyName" in names else DATABASE_CONNECTIONS
    else:
        metric = AWS.get((use.namespace, use.name))
    if metric is None:
        return [f"there is no {use.namespace} {use.name}"]
    wrong = []
    if names not in metric.dimensions:
        wrong.append(f"{use.name} has no dimensions {sorted(names)}")
    wrong += [f"{n}={v}" for n, v in use.dimensions if v not in VALUES.get(n, {v}) or not v]
    if use.stat not in metric.stats:
        wrong.append(f"{use.stat} of {use.name} means nothing")
    if metric.gauge and use.period != 60:
        wrong.append(f"{use.name} summed up over {use.period} s counts each minute again")
    if use.period % 60 or use.period <= 0:
        wrong.append(f"a period of {use.period} s")
    return wrong


def test_the_tables_know_the_proxys_metrics_by_their_names() -> None:
    names = {metric.name: metric.kind for metric in CLOUDWATCH}
    of_proxy = {name: metric for (_, name), metric in AWS.items() if metric.dimensions[0] in (PROXY, WRITER)}
    assert set(of_proxy) <= set(names)
    for name, metric in of_proxy.items():
        # A share is a gauge of which the sum over nodes means nothing.
        assert metric.gauge == (names[name] == "gauge" and metric.stats == SUM), name
        assert (metric.stats == AVERAGE | MAXIMUM) == (names[name] == "summary"), name


# The templates, with their conditions decided and everything resolved


def stack(file: str, **given: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Properties of the resources that exist, by logical id, and the outputs."""
    document = source(file)
    values = {name: str(given.get(name, spec.get("Default", ""))) for name, spec in document["Parameters"].items()}
    assert set(given) <= set(values)

    def attribute(logical_id: str, _: str | None) -> str | None:
        properties = document["Resources"].get(logical_id, {}).get("Properties", {})
        name = properties.get("AlarmName", properties.get("DashboardName"))
        return name and resolver.resolve(name)

    resolver = Resolver(document, {"AWS::Region": "eu-west-1", **values}, attribute)
    resources = {
        logical_id: resolver.resolve(resource["Properties"])
        for logical_id, resource in document["Resources"].items()
        if "Condition" not in resource or resolver.condition(resource["Condition"])
    }
    return resources, {name: resolver.resolve(output["Value"]) for name, output in document["Outputs"].items()}


@cache
def source(file: str) -> Any:
    return yaml_parse((INFRA / file).read_text(encoding="utf-8"))


QUEUE = {
    "FleetName": FLEET,
    "Worker": "payments",
    "QueueName": f"{FLEET}-payments.fifo",
    "DeadLetterQueueName": f"{FLEET}-payments-dlq.fifo",
    "FunctionName": f"{FLEET}-payments",
    "OperationsUrl": URL,
}
NO_PROXY = {"FleetName": FLEET, "OperationsUrl": URL}
WITH_PROXY = NO_PROXY | {"ProxyName": FLEET}
INSTANCE_OF_OURS = {"DatabaseIdentifier": FLEET, "Engine": "postgres"}
AURORA = {"DatabaseIdentifier": FLEET, "Engine": "aurora-postgresql"}
FLEETS: dict[str, dict[str, str]] = {
    "everything, RDS": WITH_PROXY | {"OwnsProxy": "true"} | INSTANCE_OF_OURS,
    "everything, Aurora": WITH_PROXY | {"OwnsProxy": "true"} | AURORA,
    "everything, Serverless v2": WITH_PROXY
    | {"OwnsProxy": "true", "DatabaseIdentifier": FLEET, "Engine": "aurora-serverless-v2"},
    "your proxy": WITH_PROXY | {"OwnsProxy": "false"},
    "your proxy that does not wait": WITH_PROXY | {"BorrowTimeout": "0"},
    "no proxy, RDS": NO_PROXY | INSTANCE_OF_OURS,
    "no proxy, your database": NO_PROXY,
    "a proxy that is not there is not owned": NO_PROXY | {"OwnsProxy": "true"},
}


@dataclass(frozen=True)
class Alarm:
    what: str
    properties: dict[str, Any] = field(repr=False)

    @property
    def uses(self) -> list[Use]:
        properties = self.properties
        if "Metrics" not in properties:
            return [_use(properties, properties["Statistic"], properties["Period"])]
        stats = [entry["MetricStat"] for entry in properties["Metrics"] if "MetricStat" in entry]
        return [_use(stat["Metric"], stat["Stat"], stat["Period"]) for stat in stats]

    def breaches(self, **values: float) -> bool:
        """Whether a datapoint made of these values breaches the threshold."""
        [value] = values.values() if "Metrics" not in self.properties else [self.expression(**values)]
        over = {"GreaterThanThreshold": value > self.threshold, "LessThanThreshold": value < self.threshold}
        return over[self.properties["ComparisonOperator"]]

    @property
    def threshold(self) -> float:
        return float(self.properties["Threshold"])

    def expression(self, **values: float) -> float:
        [expression] = [entry["Expression"] for entry in self.properties["Metrics"] if "Expression" in entry]
        return compute(expression, values)


def _use(metric: Mapping[str, Any], stat: str, period: Any) -> Use:
    pairs = tuple((pair["Name"], pair["Value"]) for pair in metric["Dimensions"])
    return Use(metric["Namespace"], metric["MetricName"], pairs, stat, int(period))


class Point(float):
    """A datapoint of metric math: divided by zero it is missing, which is nan here."""

    def __truediv__(self, other: float) -> float:
        return float(self) / float(other) if other else math.nan

    def __rtruediv__(self, other: float) -> float:
        return float(other) / float(self) if self else math.nan


def compute(expression: str, values: Mapping[str, float]) -> float:
    """Metric math, as far as alarms here use it: arithmetic, comparisons and IF are written as in Python."""
    assert re.fullmatch(r"[A-Za-z0-9_ ().,*/>=]+", expression), expression
    names = {name: Point(value) for name, value in values.items()}
    return float(eval(expression, {"__builtins__": {}, "IF": lambda when, a, b: a if when else b}, names))  # noqa: S307


def alarms(resources: Mapping[str, dict[str, Any]], prefix: str) -> dict[str, Alarm]:
    found = {}
    for properties in resources.values():
        if "AlarmName" in properties:
            assert properties["AlarmName"].startswith(prefix)
            what = properties["AlarmName"].removeprefix(prefix)
            found[what] = Alarm(what, properties)
    return found


def queue_alarms(**given: str) -> dict[str, Alarm]:
    return alarms(stack("queue-alarms.yaml", **QUEUE | given)[0], f"{FLEET}-payments-")


def fleet_alarms(**given: str) -> dict[str, Alarm]:
    return alarms(stack("observability.yaml", **given)[0], f"{FLEET}-")


def every_alarm(**more: str) -> dict[str, Alarm]:
    found = queue_alarms(**more)
    for given in FLEETS.values():
        found |= fleet_alarms(**given | more)
    return found


ALARMS = every_alarm(AlarmTopicArn=TOPIC)
EACH = pytest.mark.parametrize("what", sorted(ALARMS))
ROLLBACK = sorted(what for what in ALARMS if what.startswith("rollback-"))


# Alarms

#: Alarm -> (metrics, TreatMissingData). The whole table, so that nothing changes by accident.
WATCHED: dict[str, tuple[set[str], str]] = {
    "queue-age": ({"ApproximateAgeOfOldestMessage"}, "notBreaching"),
    "dead-letters": ({"ApproximateNumberOfMessagesVisible"}, "notBreaching"),
    "saturated": ({telemetry.OUTCOME_METRICS["saturated"]}, "notBreaching"),
    "breaker-open": ({telemetry.BREAKER_OPEN}, "notBreaching"),
    "misconfigured": ({telemetry.OUTCOME_METRICS["misconfigured"]}, "notBreaching"),
    "unknown": ({telemetry.OUTCOME_METRICS["unknown"]}, "notBreaching"),
    "dead-letters-refused": ({telemetry.OUTCOME_METRICS["poison"]}, "notBreaching"),
    "throttles": ({"Throttles"}, "notBreaching"),
    "function-errors": ({"Errors"}, "notBreaching"),
    "rollback-misconfigured": ({telemetry.OUTCOME_METRICS["misconfigured"]}, "notBreaching"),
    "rollback-unknown": ({telemetry.OUTCOME_METRICS["unknown"]}, "notBreaching"),
    "rollback-dead-letters": ({telemetry.OUTCOME_METRICS["dead-lettered"], telemetry.BATCH_SIZE}, "notBreaching"),
    "rollback-errors": ({"Errors"}, "notBreaching"),
    "rollback-queue-age": ({"ApproximateAgeOfOldestMessage"}, "notBreaching"),
    "pinned-share": ({"DatabaseConnectionsCurrentlySessionPinned", "DatabaseConnections"}, "notBreaching"),
    "pinned": ({"DatabaseConnectionsCurrentlySessionPinned"}, "notBreaching"),
    "borrow-latency": ({"DatabaseConnectionsBorrowLatency"}, "notBreaching"),
    "pool-use": ({"DatabaseConnections", "MaxDatabaseConnectionsAllowed"}, "notBreaching"),
    "proxy-availability": ({"AvailabilityPercentage"}, "ignore"),
    "proxy-login-failures": ({"ClientConnectionsSetupFailedAuth"}, "notBreaching"),
    "database-setup-failures": ({"DatabaseConnectionsSetupFailed"}, "notBreaching"),
    "database-cpu": ({"CPUUtilization"}, "ignore"),
    "database-storage": ({"FreeStorageSpace"}, "ignore"),
    "replica-lag": ({"AuroraReplicaLagMaximum"}, "notBreaching"),
    "housekeeping": ({housekeeping.UNFINISHED}, "missing"),
    "governor": ({governor.ACTING}, "missing"),
    "governor-errors": ({governor.ERRORS}, "notBreaching"),
    "governor-hands-off": ({governor.HANDS_OFF}, "notBreaching"),
}


def test_every_alarm_is_in_the_table() -> None:
    assert set(WATCHED) == set(ALARMS)


@EACH
def test_an_alarm_watches_what_it_says(what: str) -> None:
    alarm = ALARMS[what]
    assert ({use.name for use in alarm.uses}, alarm.properties["TreatMissingData"]) == WATCHED[what]
    assert [mistake for use in alarm.uses for mistake in mistakes(use)] == []


@EACH
def test_an_alarm_counts_its_periods_within_cloudwatchs_limits(what: str) -> None:
    alarm = ALARMS[what]
    periods, breaching = alarm.properties["EvaluationPeriods"], alarm.properties["DatapointsToAlarm"]
    assert 1 <= breaching <= periods
    [period] = {use.period for use in alarm.uses}  # of an expression, all the same
    # CloudWatch API reference, PutMetricAlarm, Period.
    assert period * periods <= (86_400 if period < 3_600 else 604_800)
    # For an hour at most nobody is told, but for what takes a day to be sure of.
    assert period * breaching <= 3_600 or what in ("housekeeping", "governor-hands-off")


@EACH
def test_an_alarms_expression_uses_what_is_there_and_gives_one_series(what: str) -> None:
    metrics = ALARMS[what].properties.get("Metrics", [])
    if not metrics:
        return
    ids = [entry["Id"] for entry in metrics]
    assert len(ids) == len(set(ids)) <= 10  # CloudWatch User Guide, "Alarm data queries"
    assert all(re.fullmatch(r"[a-z][a-zA-Z0-9_]*", name) for name in ids)
    [returned] = [entry for entry in metrics if entry["ReturnData"]]
    used = set(re.findall(r"\b[a-z]\w*", returned["Expression"]))
    assert used == set(ids) - {returned["Id"]}


@pytest.mark.parametrize(
    ("what", "values", "breaches"),
    [
        ("pinned-share", {"pinned": 6, "connections": 20}, False),
        ("pinned-share", {"pinned": 7, "connections": 20}, True),
        ("pinned-share", {"pinned": 0, "connections": 0}, False),
        ("pinned", {"pinned": 1}, True),
        # 10 % of 20 s, in microseconds.
        ("borrow-latency", {"latency": 1_900_000}, False),
        ("borrow-latency", {"latency": 2_100_000}, True),
        ("pool-use", {"connections": 18, "allowed": 20}, False),
        ("pool-use", {"connections": 19, "allowed": 20}, True),
        ("pool-use", {"connections": 0, "allowed": 0}, False),
        ("proxy-availability", {"percent": 100}, False),
        ("proxy-availability", {"percent": 50}, True),
        ("database-cpu", {"percent": 81}, True),
        ("database-storage", {"free": 11 * 2**30}, False),
        ("database-storage", {"free": 9 * 2**30}, True),
        ("replica-lag", {"milliseconds": 20}, False),
        ("replica-lag", {"milliseconds": 2_000}, True),
        # A message that was given back with the longest delay is no backlog.
        ("queue-age", {"seconds": 960}, False),
        ("queue-age", {"seconds": 1_300}, True),
        ("dead-letters", {"messages": 0}, False),
        ("dead-letters", {"messages": 1}, True),
        ("housekeeping", {"fewest": 0}, False),
        ("housekeeping", {"fewest": 1}, True),
        # A canary of 10 % that dead-letters everything; half of it; one bad message on a quiet queue.
        ("rollback-dead-letters", {"lettered": 100, "handled": 1_000}, True),
        ("rollback-dead-letters", {"lettered": 50, "handled": 1_000}, True),
        ("rollback-dead-letters", {"lettered": 1, "handled": 2}, False),
        ("rollback-dead-letters", {"lettered": 5, "handled": 5_000}, False),
        ("rollback-queue-age", {"seconds": 301}, True),
    ],
)
def test_an_alarm_begins_where_it_should(what: str, values: dict[str, float], breaches: bool) -> None:
    assert ALARMS[what].breaches(**values) is breaches


@pytest.mark.parametrize(
    ("what", "whole", "part"), [("pinned-share", "connections", "pinned"), ("pool-use", "allowed", "connections")]
)
def test_a_share_of_nothing_is_nothing_and_no_gap(what: str, whole: str, part: str) -> None:
    assert ALARMS[what].expression(**{whole: 0, part: 0}) == 0


@pytest.mark.parametrize("what", sorted(set(ALARMS) - {"pinned-share", "borrow-latency", "pool-use"} - set(ROLLBACK)))
def test_nothing_is_quiet(what: str) -> None:
    alarm = ALARMS[what]
    if alarm.properties["ComparisonOperator"] == "GreaterThanThreshold" and "Metrics" not in alarm.properties:
        assert not alarm.breaches(value=0)


def test_a_rollback_alarm_answers_within_minutes_and_forgets_as_fast() -> None:
    assert ROLLBACK, "the loop below has something to look at"
    for what in [*ROLLBACK, "pinned-share"]:
        alarm = ALARMS[what]
        assert {use.period for use in alarm.uses} == {60}, what
        assert alarm.properties["EvaluationPeriods"] <= 3, what


def test_codedeploy_watches_all_rollback_alarms_and_no_more_than_it_can() -> None:
    of_queue = stack("queue-alarms.yaml", **QUEUE)[1]["RollbackAlarms"].split(",")
    of_fleet = stack("observability.yaml", **FLEETS["everything, RDS"])[1]["RollbackAlarms"].split(",")
    assert sorted(of_queue) == [f"{FLEET}-payments-{what}" for what in ROLLBACK]
    assert of_fleet == [f"{FLEET}-pinned-share"]
    # AWS::CodeDeploy::DeploymentGroup AlarmConfiguration.
    assert len(of_queue + of_fleet) <= 10
    assert stack("observability.yaml", **FLEETS["no proxy, RDS"])[1]["RollbackAlarms"] == ""


def test_what_has_no_code_outcome_rolls_back_too() -> None:
    """A version that does not start reports no outcome, and partial batch responses are no errors: both are watched."""
    watched = {name for what in ROLLBACK for name in WATCHED[what][0]}
    assert {"Errors", "MisconfiguredGivenBack", "UnknownGivenBack", "DeadLettered"} <= watched


def test_people_are_told_of_everything_but_what_codedeploy_watches() -> None:
    for what, alarm in ALARMS.items():
        told = {name: actions for name, actions in alarm.properties.items() if name.endswith("Actions")}
        if what in ROLLBACK:
            assert told == {}, what
            continue
        assert told.pop("AlarmActions") == told.pop("OKActions") == [TOPIC], what
        assert told == ({"InsufficientDataActions": [TOPIC]} if what in ("housekeeping", "governor") else {})
        assert alarm.properties.get("ActionsEnabled", True) is True
    for what, alarm in every_alarm().items():
        assert not [name for name in alarm.properties if name.endswith("Actions")], what


def test_a_missing_value_that_is_the_news_is_told() -> None:
    for what, alarm in ALARMS.items():
        missing = alarm.properties["TreatMissingData"] == "missing"
        assert missing == ("InsufficientDataActions" in alarm.properties), what


WITHOUT_PROXY_OR_DATABASE = {"housekeeping", "governor", "governor-errors", "governor-hands-off"}
OF_ANY_PROXY = {
    "pinned-share", "borrow-latency", "pool-use", "proxy-availability", "proxy-login-failures",
    "database-setup-failures",
}  # fmt: skip
OF_INSTANCE, OF_AURORA = {"database-cpu", "database-storage"}, {"database-cpu", "replica-lag"}


@pytest.mark.parametrize(
    ("combination", "expected"),
    [
        ("everything, RDS", OF_ANY_PROXY | {"pinned"} | OF_INSTANCE),
        ("everything, Aurora", OF_ANY_PROXY | {"pinned"} | OF_AURORA),
        ("everything, Serverless v2", OF_ANY_PROXY | {"pinned"} | OF_AURORA),
        ("your proxy", OF_ANY_PROXY),
        ("your proxy that does not wait", OF_ANY_PROXY - {"borrow-latency"}),
        ("no proxy, RDS", OF_INSTANCE),
        ("no proxy, your database", set()),
        ("a proxy that is not there is not owned", set()),
    ],
)
def test_there_are_alarms_for_what_there_is(combination: str, expected: set[str]) -> None:
    found = fleet_alarms(**FLEETS[combination])
    assert set(found) == expected | WITHOUT_PROXY_OR_DATABASE
    for alarm in found.values():
        assert [mistake for use in alarm.uses for mistake in mistakes(use)] == [], alarm.what


def test_the_writer_is_watched_whatever_it_is_called() -> None:
    [instance] = fleet_alarms(**FLEETS["no proxy, RDS"])["database-cpu"].uses
    [cluster] = fleet_alarms(**FLEETS["everything, Aurora"])["database-cpu"].uses
    assert instance.dimensions == (("DBInstanceIdentifier", FLEET),)
    assert cluster.dimensions == (("DBClusterIdentifier", FLEET), ("Role", "WRITER"))


def test_an_alarm_is_about_the_queue_that_it_is_given() -> None:
    expected = {
        "QueueName": {QUEUE["QueueName"]},
        "service": {"payments"},
        "FunctionName": {QUEUE["FunctionName"]},
    }
    for what, alarm in queue_alarms().items():
        wanted = {**expected, "QueueName": {QUEUE["DeadLetterQueueName"]}} if what == "dead-letters" else expected
        for use in alarm.uses:
            assert all(value in wanted[name] for name, value in use.dimensions), what


# Headings

#: GitHub's way from a heading to its fragment: lower case, punctuation gone, spaces to hyphens.
HEADINGS = re.findall(r"^(#{2,3}) (.+)$", re.sub(r"```.*?```", "", OPERATIONS, flags=re.DOTALL), re.MULTILINE)


def fragment(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections() -> dict[str, str]:
    """The text below each heading of the third level, by fragment."""
    parts = re.split(r"^#{2,3} (.+)$", OPERATIONS, flags=re.MULTILINE)
    third = {fragment(heading) for level, heading in HEADINGS if level == "###"}
    found = {fragment(heading): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {name: text for name, text in found.items() if name in third}


@EACH
def test_an_alarms_description_is_a_sentence_and_leads_to_its_heading(what: str) -> None:
    sentence, _, link = ALARMS[what].properties["AlarmDescription"].rpartition(" ")
    assert link == f"{URL}#{what}"
    assert re.fullmatch(r"[A-Z$a-z][^\n]*\.", sentence)
    assert ". " not in sentence
    assert len(sentence) + len(link) < 1024


def test_every_alarm_has_a_heading_and_every_heading_an_alarm() -> None:
    fragments = [fragment(heading) for _, heading in HEADINGS]
    assert len(set(fragments)) == len(fragments), "GitHub would number them"
    assert {fragment(heading) for level, heading in HEADINGS if level == "###"} == set(ALARMS)


@EACH
def test_the_heading_says_why_and_what_to_do(what: str) -> None:
    text = sections()[what]
    assert re.search(r"^\*\*Why\?\*\* [A-Z]", text.strip(), re.MULTILINE)
    assert re.search(r"^\*\*What to do\.\*\*", text, re.MULTILINE)


def test_links_within_the_document_lead_to_headings() -> None:
    known = {fragment(heading) for _, heading in HEADINGS}
    links = set(re.findall(r"\]\(#([a-z-]+)\)", OPERATIONS))
    assert len(links) > 10
    assert links <= known


def test_named_parameters_exist() -> None:
    # Single words in CamelCase between backticks, and NAME=value in the runbooks.
    templates = [REPOSITORY / "template.yaml", *INFRA.glob("*.yaml")]
    known = {name for path in templates for name in yaml_parse(path.read_text(encoding="utf-8"))["Parameters"]}
    known |= COUNTS | STATES | {governor.CHANGES} | {name for _, name in AWS}
    known |= {"MaximumConcurrency", "ResultMismatch", "SettingsError", "RoutingConfig", "State", "Reason"}
    known |= {"Disabled", "Enabled"}
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)`", OPERATIONS))
    named |= set(re.findall(r"[` ]([A-Z][A-Za-z]+)=", OPERATIONS))
    assert len(named) > 20
    assert named <= known


def aws_commands() -> Iterator[tuple[str, str, list[str]]]:
    """The calls of the AWS CLI in the document: service, operation, options."""
    text, inner = OPERATIONS.replace("\\\n", " "), re.compile(r"\$\(([^()]*)\)")
    # From the inside out, so that a command that is another's argument does not hide the options after it.
    while nested := inner.findall(text):
        text = inner.sub("-", text) + "\n" + "\n".join(nested)
    for service, operation, rest in re.findall(r"\baws ([a-z0-9]+) ([a-z-]+)([^`\n]*)", text.replace(" && ", "\n")):
        yield service, operation, re.findall(r" --([a-z-]+)", rest)


def test_the_documents_aws_commands_exist() -> None:
    # Of the CLI and not of an API; pagination and formatting are the CLI's, too.
    own = {
        ("logs", "tail"): {"since", "format", "filter-pattern", "follow"},
        ("cloudformation", "deploy"): {"stack-name", "template-file", "parameter-overrides", "capabilities"},
    }
    everywhere = {"query", "output", "max-items"}
    session = botocore.session.Session()
    checked = set()
    for service, operation, options in aws_commands():
        if (service, operation) in own:
            assert set(options) <= own[service, operation]
            continue
        model = session.get_service_model({"deploy": "codedeploy"}.get(service, service))
        operations = {xform_name(name, "-"): name for name in model.operation_names}
        assert operation in operations, f"aws {service} {operation}"
        shape = model.operation_model(operations[operation]).input_shape
        members = {xform_name(name, "-") for name in shape.members} if shape else set()
        for option in set(options) - everywhere:
            assert option.removeprefix("no-") in members, f"aws {service} {operation} --{option}"
        checked.add((service, operation))
    assert len(checked) > 20


# The dashboard

SEARCH = re.compile(r"SEARCH\('\{(?P<schema>[^}]+)\} (?P<terms>[^']+)', '(?P<stat>\w+)', (?P<period>\d+)\)")
EACH_FLEET = pytest.mark.parametrize("combination", FLEETS)


def widgets(combination: str) -> list[dict[str, Any]]:
    body = json.loads(stack("observability.yaml", **FLEETS[combination])[0]["Dashboard"]["DashboardBody"])
    # Without it CloudWatch chooses the period by the width of the graph, and adds gauges up over it.
    assert body["periodOverride"] == "inherit"
    found: list[dict[str, Any]] = body["widgets"]
    return found


def graphs(combination: str) -> list[dict[str, Any]]:
    return [widget["properties"] for widget in widgets(combination) if widget["type"] == "metric"]


def uses_of(graph: dict[str, Any]) -> Iterator[Use]:
    """Every metric of a graph; of a SEARCH, a metric with the dimensions that it looks for."""
    for row in graph["metrics"]:
        *names, last = row if isinstance(row[-1], dict) else [*row, {}]
        if "expression" not in last:
            namespace, metric, *rest = names
            pairs = tuple(zip(rest[::2], rest[1::2], strict=True))
            yield Use(namespace, metric, pairs, last.get("stat", graph.get("stat", "Average")), graph["period"])
        elif "SEARCH" in last["expression"]:
            search = SEARCH.search(last["expression"])
            assert search, last["expression"]
            namespace, *schema = search["schema"].replace('"', "").split(",")
            [metric] = re.findall(r'MetricName="(\w+)"', search["terms"])
            assert int(search["period"]) == graph["period"]
            yield Use(namespace, metric, tuple((name, "any") for name in schema), search["stat"], graph["period"])


@EACH_FLEET
def test_every_metric_of_the_dashboard_is_known(combination: str) -> None:
    for graph in graphs(combination):
        found = list(uses_of(graph))
        assert found, graph["title"]
        assert [mistake for use in found for mistake in mistakes(use)] == [], graph["title"]


@EACH_FLEET
def test_widgets_fill_the_grid_and_do_not_overlap(combination: str) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for widget in widgets(combination):
        assert widget["x"] + widget["width"] <= 24
        taken.update(
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        )
    assert set(taken.values()) == {1}
    assert len(taken) == 24 * (max(y for _, y in taken) + 1), "there is a gap"


@EACH_FLEET
def test_expressions_of_graphs_use_what_is_there(combination: str) -> None:
    for graph in graphs(combination):
        assert graph["region"] == "eu-west-1"
        options = [row[-1] for row in graph["metrics"] if isinstance(row[-1], dict)]
        ids = [option["id"] for option in options if "id" in option]
        assert len(ids) == len(set(ids))
        assert all(re.fullmatch(r"[a-z][a-zA-Z0-9_]*", name) for name in ids), "CloudWatch takes no other ids"
        for option in options:
            if "expression" in option and "SEARCH" not in option["expression"]:
                assert set(re.findall(r"\b[a-z]\w*", option["expression"])) <= set(ids)


@EACH_FLEET
def test_the_dashboard_shows_what_there_is(combination: str) -> None:
    given = FLEETS[combination]
    shown = {use.name for graph in graphs(combination) for use in uses_of(graph)}
    assert ("DatabaseConnectionsCurrentlySessionPinned" in shown) == ("ProxyName" in given)
    assert ("ClientConnections" in shown) == ("ProxyName" in given)
    assert ("CPUUtilization" in shown) == ("DatabaseIdentifier" in given)
    assert ("AuroraReplicaLagMaximum" in shown) == ("aurora" in given.get("Engine", ""))
    assert ("FreeStorageSpace" in shown) == (given.get("Engine") == "postgres")
    # What became of messages, whatever it was.
    assert set(telemetry.OUTCOME_METRICS.values()) <= shown
    assert {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage", "Throttles"} <= shown


def test_units_of_graphs() -> None:
    titles = {graph["title"]: graph for graph in graphs("everything, RDS")}
    wait = titles["Proxy: wait for a connection"]
    [average, _] = [row[0]["expression"] for row in wait["metrics"] if isinstance(row[0], dict)]
    assert compute(average, {"average": 20_000_000}) == 20  # microseconds to the axis's seconds
    assert wait["yAxis"]["left"]["label"] == "seconds"
    assert wait["annotations"]["horizontal"] == [{"label": "borrow timeout", "value": 20}]
    [free] = [row[0] for row in titles["Database: free storage"]["metrics"] if isinstance(row[0], dict)]
    assert compute(free["expression"], {"free": 7 * 2**30}) == 7


def test_searches_find_this_fleets_and_tell_queues_from_dead_letter_queues() -> None:
    for graph in graphs("everything, RDS"):
        for row in graph["metrics"]:
            for terms in SEARCH.findall(str(row[-1].get("expression", ""))):
                schema, words = terms[0], terms[1]
                # Unquoted, a term is looked for in names; quoted it is a whole one.
                assert f'"{OWN}"' in schema or re.search(rf"(Queue|Function)Name={FLEET}( |$)", words), words
                if "QueueName" in schema:
                    assert ("NOT dlq" in words) == (graph["title"] != "Dead letters waiting")


def test_dead_letters_by_reason_reads_the_line_that_workers_write(capsys: pytest.CaptureFixture[str]) -> None:
    [widget] = [widget for widget in widgets("everything, RDS") if widget["type"] == "log"]
    query = widget["properties"]["query"]
    assert "\n" not in query
    telemetry.Telemetry("orders").dead_letter("contract", "data.amount: expected a number", ["m-1", "m-2"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert f"filter message = '{line['message']}'" in query
    [(summed, groups)] = re.findall(r"stats sum\((\w+)\) as \w+ by ([\w, ]+?) \|", query)
    assert line[summed] == 2
    assert [line[name] for name in groups.split(", ")] == ["orders", "contract"]
    assert f"namePrefix: ['/aws/lambda/{FLEET}-']" in query
