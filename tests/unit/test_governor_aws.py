"""A governor's runs against moto's Lambda and CloudWatch; RDS, whose moto proxies are always healthy, is stubbed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.stub import Stubber
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT

from spillway.stack.template import REPOSITORY
from workers.governor import handler, telemetry
from workers.governor.aws import BORROW_LATENCY, SATURATED, Aws, MetricsError, clients
from workers.governor.governor import Governor, Report
from workers.governor.load import Health, Values
from workers.governor.record import NOTE_TAG, RECORD_TAG
from workers.governor.settings import Governed, GovernorSettings
from workers.governor.telemetry import Telemetry
from workers.runtime.telemetry import BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REGION = "eu-west-1"
NAMESPACE = "Spillway/spillway"
PROXY = "spillway"
NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
AVAILABLE = [{"Role": "READ_WRITE", "Type": "RDS_INSTANCE", "TargetHealth": {"State": "AVAILABLE"}}]
UNREACHABLE = [
    {
        "Role": "READ_WRITE",
        "Type": "RDS_INSTANCE",
        "TargetHealth": {"State": "UNAVAILABLE", "Reason": "UNREACHABLE"},
    }
]


class Cloud:
    """An account with the mappings of two workers, and what was called in it, in order."""

    def __init__(self) -> None:
        self.lambda_ = boto3.client("lambda")
        self.cloudwatch = boto3.client("cloudwatch")
        self.rds = boto3.client("rds")
        self.targets: list[dict[str, Any]] | Exception = AVAILABLE
        self.calls: list[str] = []
        self.fails: dict[str, Callable[[], Exception]] = {}
        for client in (self.lambda_, self.cloudwatch, self.rds):
            client.meta.events.register("before-call", self._called)
        role = boto3.client("iam").create_role(RoleName="worker", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        sqs = boto3.client("sqs")
        self.mappings = tuple(
            self._mapping(sqs, role, worker, maximum) for worker, maximum in (("orders", 10), ("audit", 4))
        )

    def _mapping(self, sqs: Any, role: str, worker: str, maximum: int) -> Governed:
        queue = sqs.create_queue(QueueName=worker)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        function = self.lambda_.create_function(
            FunctionName=worker, Runtime="python3.13", Role=role, Handler="h.h", Code={"ZipFile": b"x"}, Publish=True
        )
        self.lambda_.create_alias(FunctionName=worker, Name="live", FunctionVersion=function["Version"])
        uuid = self.lambda_.create_event_source_mapping(
            FunctionName=f"{worker}:live",
            EventSourceArn=arn["Attributes"]["QueueArn"],
            BatchSize=1000,
            MaximumBatchingWindowInSeconds=1,
            FunctionResponseTypes=["ReportBatchItemFailures"],
            ScalingConfig={"MaximumConcurrency": maximum},
        )["UUID"]
        return Governed(worker, uuid, maximum)

    def as_deployed(self) -> None:
        """Everything as it was made: making it anew takes half a second a test."""
        self.targets, self.fails = AVAILABLE, {}
        cloudwatch_backends[ACCOUNT][REGION].reset()
        for governed in self.mappings:
            self.set(governed.worker, Enabled=True, ScalingConfig={"MaximumConcurrency": governed.maximum})
            if tags := self.tags(governed.worker):
                self.lambda_.untag_resource(Resource=self.arn(governed.worker), TagKeys=list(tags))
        self.calls.clear()

    def _called(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)
        if model.name in self.fails:
            raise self.fails[model.name]()

    def publish(self, worker: str, minutes_ago: int, **values: float) -> None:
        self.cloudwatch.put_metric_data(
            Namespace=NAMESPACE,
            MetricData=[
                {
                    "MetricName": name,
                    "Dimensions": [{"Name": "service", "Value": worker}],
                    "Timestamp": NOW - minutes_ago * MINUTE,
                    "Value": value,
                }
                for name, value in values.items()
            ],
        )

    def waited(self, minutes_ago: int, *microseconds: float) -> None:
        for value in microseconds:  # one of each of the proxy's nodes
            self.cloudwatch.put_metric_data(
                Namespace="AWS/RDS",
                MetricData=[
                    {
                        "MetricName": BORROW_LATENCY,
                        "Dimensions": [{"Name": "ProxyName", "Value": PROXY}],
                        "Timestamp": NOW - minutes_ago * MINUTE,
                        "Value": value,
                    }
                ],
            )

    def settings(self, mode: str = "on", proxy_name: str = PROXY) -> GovernorSettings:
        return GovernorSettings(
            mode=mode,  # type: ignore[arg-type]
            fleet="spillway",
            namespace=NAMESPACE,
            proxy_name=proxy_name,
            borrow_timeout=20,
            mappings=self.mappings,
        )

    def governor(self, mode: str = "on", proxy_name: str = PROXY) -> Governor:
        settings = self.settings(mode, proxy_name)
        return Governor(Aws(self.lambda_, self.rds, self.cloudwatch), settings, Telemetry(settings))

    def run(self, now: datetime = NOW, mode: str = "on", governor: Governor | None = None) -> Report:
        self.calls.clear()
        with Stubber(self.rds) as stub:
            if isinstance(self.targets, list):
                stub.add_response("describe_db_proxy_targets", {"Targets": self.targets}, {"DBProxyName": PROXY})
            else:
                stub.add_client_error("describe_db_proxy_targets", "ThrottlingException")
            return (governor or self.governor(mode)).run(now)

    def there(self, worker: str = "orders") -> tuple[str, int]:
        mapping = self.lambda_.get_event_source_mapping(UUID=self.uuid(worker))
        return mapping["State"], mapping["ScalingConfig"]["MaximumConcurrency"]

    def uuid(self, worker: str = "orders") -> str:
        return next(mapping.uuid for mapping in self.mappings if mapping.worker == worker)

    def arn(self, worker: str = "orders") -> str:
        return str(self.lambda_.get_event_source_mapping(UUID=self.uuid(worker))["EventSourceMappingArn"])

    def tags(self, worker: str = "orders") -> dict[str, str]:
        tags: dict[str, str] = self.lambda_.list_tags(Resource=self.arn(worker))["Tags"]
        return tags

    def set(self, worker: str = "orders", **changes: Any) -> None:
        self.lambda_.update_event_source_mapping(UUID=self.uuid(worker), **changes)


@pytest.fixture(scope="module")
def account() -> Iterator[Cloud]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }.items():
            environment.setenv(name, value)
        with mock_aws(config={"iam": {"load_aws_managed_policies": False}, "lambda": {"use_docker": False}}):
            yield Cloud()


@pytest.fixture
def cloud(account: Cloud) -> Cloud:
    account.as_deployed()
    return account


def client_error(code: str) -> Callable[[], Exception]:
    return lambda: ClientError({"Error": {"Code": code, "Message": "no"}}, "Any")


def changes(cloud: Cloud) -> list[str]:
    return [call for call in cloud.calls if call.startswith(("Update", "Tag", "Untag"))]


# What it does


def test_it_lowers_every_mapping_and_says_so_first(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.publish("audit", 1, **{BATCH_SIZE: 500.0})
    before = cloud.lambda_.get_event_source_mapping(UUID=cloud.uuid())

    report = cloud.run()

    assert (cloud.there(), cloud.there("audit")) == (("Enabled", 5), ("Enabled", 2))
    assert cloud.tags() == {RECORD_TAG: "was=on:10 to=on:5 goal=5 at=2026-11-21T12:00:30Z"}
    assert report.changes == {"orders": "on:10 to on:5", "audit": "on:4 to on:2"}
    assert report.acting == ["orders", "audit"]
    assert report.concurrency == {"orders": 5, "audit": 2}
    assert (report.target, report.errors, report.hands_off) == ("AVAILABLE", {}, [])
    after = cloud.lambda_.get_event_source_mapping(UUID=cloud.uuid())
    moved = {key for key in before if before[key] != after[key]} - {"LastModified", "Tags", "ResponseMetadata"}
    assert moved == {"ScalingConfig"}, "the alias, the batch size and the rest stay"


def test_the_intention_is_written_before_the_change(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.run()
    assert changes(cloud) == ["TagResource", "UpdateEventSourceMapping"] * 2
    cloud.run(NOW + timedelta(seconds=10))
    assert changes(cloud) == ["TagResource"] * 2, "it was made"
    cloud.run(NOW + timedelta(seconds=20))
    assert changes(cloud) == []


def test_a_calm_fleet_is_only_looked_at(cloud: Cloud) -> None:
    report = cloud.run()
    assert cloud.calls == ["GetMetricData", *["GetEventSourceMapping", "ListTags"] * 2]  # and what is stubbed
    assert report.acting == []


def test_it_raises_step_by_step_and_forgets(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.run()
    seen = []
    for minute in range(1, 90, 2):  # nothing is published: the fleet is idle
        cloud.run(NOW + minute * MINUTE)
        if not seen or seen[-1] != cloud.there()[1]:
            seen.append(cloud.there()[1])
    assert seen == [5, 6, 7, 8, 9, 10]
    assert cloud.there("audit") == ("Enabled", 4)
    assert (cloud.tags(), cloud.tags("audit")) == ({}, {})


def test_waiting_for_connections_counts_as_the_nodes_average(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0})
    cloud.waited(1, 1_500_000, 1_500_000)  # 3 s as a sum, and nothing to lower for
    cloud.run()
    assert cloud.there() == ("Enabled", 10)
    cloud.waited(1, 6_000_000, 6_000_000)
    cloud.run()
    assert cloud.there() == ("Enabled", 7)


def test_an_outage_and_the_way_back(cloud: Cloud) -> None:
    cloud.targets = UNREACHABLE
    report = cloud.run(NOW)
    assert (cloud.there(), report.changes) == (("Enabled", 10), {})
    assert cloud.tags() == {RECORD_TAG: "was=on:10 to=on:10 goal=10 down=2026-11-21T12:00:30Z"}
    report = cloud.run(NOW + MINUTE)
    assert (cloud.there(), cloud.there("audit")) == (("Disabled", 2), ("Disabled", 2))
    assert (report.concurrency, report.acting) == ({"orders": 0, "audit": 0}, ["orders", "audit"])
    assert report.target == "UNAVAILABLE:UNREACHABLE"
    cloud.run(NOW + 2 * MINUTE)
    assert cloud.there() == ("Disabled", 2)
    cloud.targets = AVAILABLE
    report = cloud.run(NOW + 3 * MINUTE)
    assert cloud.there() == ("Enabled", 2)
    assert report.changes["orders"] == "off:2 to on:2"
    for minute in range(4, 60, 2):
        cloud.run(NOW + minute * MINUTE)
    assert (cloud.there(), cloud.there("audit")) == (("Enabled", 10), ("Enabled", 4))
    assert cloud.tags() == {}


def test_an_outage_that_is_over_at_the_second_look_was_none(cloud: Cloud) -> None:
    for minute, targets in enumerate([UNREACHABLE, AVAILABLE, UNREACHABLE, AVAILABLE]):
        cloud.targets = targets
        cloud.run(NOW + minute * MINUTE)
        assert cloud.there() == ("Enabled", 10)
    assert cloud.tags() == {}


# What it leaves alone


def test_what_somebody_set_by_hand_is_left_alone_until_handed_back(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.set(ScalingConfig={"MaximumConcurrency": 8})
    report = cloud.run()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert (cloud.there(), report.hands_off) == (("Enabled", 8), ["orders"])
    assert cloud.tags()[NOTE_TAG] == "manual: on:8 is not on:10"
    assert cloud.there("audit") == ("Enabled", 2), "the other mapping is governed all the same"
    assert report.acting == ["audit"]
    assert cloud.run(NOW + MINUTE).hands_off == ["orders"]
    assert "UpdateEventSourceMapping" not in cloud.calls
    cloud.lambda_.untag_resource(Resource=cloud.arn(), TagKeys=[NOTE_TAG])
    for minute in range(2, 40):
        cloud.run(NOW + minute * MINUTE)
    assert (cloud.there(), cloud.tags()) == (("Enabled", 10), {})


def test_a_mapping_that_somebody_disabled_stays_so(cloud: Cloud) -> None:
    cloud.set(Enabled=False)
    for minute in range(30):
        cloud.run(NOW + minute * MINUTE)
        if minute == 10:
            cloud.lambda_.untag_resource(Resource=cloud.arn(), TagKeys=[NOTE_TAG])
    assert cloud.there() == ("Disabled", 10)
    cloud.set(Enabled=True)
    cloud.run(NOW + 31 * MINUTE)
    assert cloud.run(NOW + 32 * MINUTE).hands_off == []
    assert cloud.tags() == {}


@pytest.mark.parametrize("word", ["off", "OFF", " Off ", "no"])
def test_a_tag_keeps_it_away(cloud: Cloud, word: str) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.lambda_.tag_resource(Resource=cloud.arn(), Tags={NOTE_TAG: word, "team": "orders"})
    report = cloud.run()
    assert (cloud.there(), report.hands_off) == (("Enabled", 10), ["orders"])
    assert cloud.tags() == {NOTE_TAG: word, "team": "orders"}


def test_a_tag_that_says_on_is_as_good_as_none_and_stays(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.lambda_.tag_resource(Resource=cloud.arn(), Tags={NOTE_TAG: " On"})
    cloud.run()
    assert cloud.there() == ("Enabled", 5)
    for minute in range(1, 4):
        cloud.run(NOW + minute * MINUTE, "off")
    assert (cloud.there(), cloud.tags()) == (("Enabled", 10), {NOTE_TAG: " On"})


def test_other_tags_stay(cloud: Cloud) -> None:
    cloud.lambda_.tag_resource(Resource=cloud.arn(), Tags={"team": "orders"})
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.run()
    assert cloud.tags().keys() == {"team", RECORD_TAG}
    for minute in range(1, 4):
        cloud.run(NOW + minute * MINUTE, "off")
    assert (cloud.there(), cloud.tags()) == (("Enabled", 10), {"team": "orders"})


# What it cannot see, or not do


def test_blind_it_does_nothing(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.targets = ClientError({}, "")
    governor = cloud.governor()
    report = cloud.run(governor=governor)
    assert report.errors == {"target health": "ClientError"}
    assert changes(cloud) == []
    [said] = [vars(record) for record in caplog.records]
    assert (said["message"], said["what"], said["error"]) == ("governor_failed", "target health", "ClientError")

    cloud.targets = AVAILABLE
    for error, kind in (
        (client_error("Throttling"), "ClientError"),
        (lambda: ReadTimeoutError(endpoint_url="x"), "ReadTimeoutError"),
    ):
        cloud.fails = {"GetMetricData": error}
        assert cloud.run().errors == {"metrics": kind}
        assert changes(cloud) == []


def test_an_outage_can_be_told_without_metrics(cloud: Cloud) -> None:
    cloud.fails = {"GetMetricData": client_error("Throttling")}
    cloud.targets = UNREACHABLE
    cloud.run()
    cloud.run(NOW + MINUTE)
    assert cloud.there() == ("Disabled", 2)


def test_blind_for_long_it_does_not_keep_the_fleet_standing(cloud: Cloud) -> None:
    cloud.targets = UNREACHABLE
    cloud.run()
    cloud.run(NOW + MINUTE)
    cloud.targets = ClientError({}, "")
    cloud.run(NOW + 10 * MINUTE)
    assert cloud.there() == ("Disabled", 2)
    cloud.run(NOW + 17 * MINUTE)
    assert cloud.there() == ("Enabled", 2)


@pytest.mark.parametrize("code", ["ResourceInUseException", "ResourceConflictException", "TooManyRequestsException"])
def test_a_refused_change_is_tried_again(cloud: Cloud, code: str) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.fails = {"UpdateEventSourceMapping": client_error(code)}
    report = cloud.run()
    assert report.errors == {"orders": "ClientError", "audit": "ClientError"}
    assert cloud.there() == ("Enabled", 10)
    cloud.fails = {}
    cloud.run(NOW + timedelta(seconds=20))
    assert (cloud.there(), cloud.there("audit")) == (("Enabled", 5), ("Enabled", 2))
    assert NOTE_TAG not in cloud.tags()


def test_no_change_without_its_intention(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.fails = {"TagResource": client_error("TooManyRequestsException")}
    cloud.run()
    assert "UpdateEventSourceMapping" not in cloud.calls
    assert cloud.there() == ("Enabled", 10)


def test_a_mapping_that_is_gone_does_not_stop_the_others(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    settings = cloud.settings()
    gone = Governed("orders", "00000000-0000-0000-0000-000000000000", 10)
    settings = replace(settings, mappings=(gone, *settings.mappings[1:]))
    aws = Aws(cloud.lambda_, cloud.rds, cloud.cloudwatch)
    report = cloud.run(governor=Governor(aws, settings, Telemetry(settings)))
    assert report.errors == {"orders": "ResourceNotFoundException"}
    assert cloud.there("audit") == ("Enabled", 2)


# Modes


def test_turned_off_it_looks_at_nothing_and_gives_back_what_it_held(cloud: Cloud) -> None:
    cloud.targets = UNREACHABLE
    cloud.run()
    cloud.run(NOW + MINUTE)
    cloud.set("audit", Enabled=True)  # by hand
    cloud.run(NOW + 2 * MINUTE, "off")
    assert cloud.there() == ("Enabled", 10)
    assert cloud.there("audit") == ("Enabled", 2)
    cloud.run(NOW + 3 * MINUTE, "off")
    assert cloud.tags() == {}
    cloud.run(NOW + 4 * MINUTE, "off")
    assert changes(cloud) == []
    assert not {"GetMetricData", "DescribeDBProxyTargets"} & set(cloud.calls)


def test_observing_it_says_what_it_would_do(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    governor = cloud.governor("observe")
    report = cloud.run(governor=governor)
    assert changes(cloud) == []
    assert report.changes == {"orders": "on:10 to on:5", "audit": "on:4 to on:2"}
    assert (report.acting, report.concurrency) == ([], {"orders": 10, "audit": 4})
    said = vars(caplog.records[0])
    wanted = {
        "message": "governor_decision",
        "levelname": "INFO",
        "fleet": "spillway",
        "mode": "observe",
        "worker": "orders",
        "mapping": cloud.uuid(),
        "action": "lower",
        "reason": "messages are turned away",
        "found": "on:10",
        "to": "on:5",
        "maximum": 10,
        "target": "AVAILABLE",
    }
    assert {key: said[key] for key in wanted} == wanted
    assert cloud.run(NOW + timedelta(seconds=20), governor=governor).changes == {}, "once, and not every minute"

    cloud.set(ScalingConfig={"MaximumConcurrency": 8})
    for _ in range(2):
        assert cloud.run(NOW + MINUTE, governor=governor).hands_off == ["orders"]
    assert (cloud.there(), cloud.tags()) == (("Enabled", 8), {})


def test_observing_it_remembers_an_outage(cloud: Cloud) -> None:
    governor = cloud.governor("observe")
    cloud.targets = UNREACHABLE
    assert cloud.run(governor=governor).changes == {}
    assert cloud.run(NOW + MINUTE, governor=governor).changes == {"orders": "on:10 to off:2", "audit": "on:4 to off:2"}
    assert cloud.there() == ("Enabled", 10)


def test_from_on_to_observe_it_gives_back(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.run()
    governor = cloud.governor("observe")
    for minute in range(1, 4):
        cloud.run(NOW + minute * MINUTE, governor=governor)
    assert (cloud.there(), cloud.tags()) == (("Enabled", 10), {})


# Reading


def test_what_is_read_of_metrics(cloud: Cloud) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 3.0})
    cloud.publish("orders", 1, **{BATCH_SIZE: 100.0})
    cloud.publish("audit", 1, **{BATCH_SIZE: 40.0, SATURATED: 2.0})
    cloud.publish("audit", 10, **{BATCH_SIZE: 7.0})
    cloud.publish("audit", 11, **{BATCH_SIZE: 9.0})
    cloud.publish("audit", 0, **{BATCH_SIZE: 9.0})
    cloud.publish("payments", 2, **{BATCH_SIZE: 9.0})
    cloud.waited(2, 100, 300)
    aws = Aws(cloud.lambda_, cloud.rds, cloud.cloudwatch)
    newest = int(NOW.timestamp()) // 60 * 60 - 60
    workers = ["orders", "audit"]
    read = aws.values(NOW, NAMESPACE, workers, PROXY)
    assert read == {
        newest: Values(None, 640, 5),
        newest - 60: Values(200, None, None),
        newest - 540: Values(None, 7, None),
    }
    assert aws.values(NOW, NAMESPACE, workers, "") == {at: v for at, v in read.items() if v.messages is not None}


def result(name: str, status: str, *values: tuple[datetime, float]) -> dict[str, Any]:
    return {
        "Id": name,
        "StatusCode": status,
        "Timestamps": [at for at, _ in values],
        "Values": [value for _, value in values],
    }


def asking(name: str, stat: str, namespace: str, metric: str, **dimensions: str) -> dict[str, Any]:
    named = [{"Name": name, "Value": value} for name, value in dimensions.items()]
    asked = {"Namespace": namespace, "MetricName": metric, "Dimensions": named}
    return {"Id": name, "MetricStat": {"Metric": asked, "Period": 60, "Stat": stat}}


def test_metrics_come_in_pages_and_must_be_complete(cloud: Cloud) -> None:
    at = NOW - NOW.timestamp() % 60 * timedelta(seconds=1) - MINUTE
    aws = Aws(cloud.lambda_, cloud.rds, cloud.cloudwatch)
    first = [result("messages0", "PartialData", (at, 5)), result("saturated0", "Complete", (at, 1))]
    queries = [asking("messages0", "Sum", NAMESPACE, BATCH_SIZE, service="orders")]
    queries += [asking("saturated0", "Sum", NAMESPACE, SATURATED, service="orders")]
    queries += [asking("wait", "Average", "AWS/RDS", BORROW_LATENCY, ProxyName=PROXY)]
    asked = {"MetricDataQueries": queries, "StartTime": at - 9 * MINUTE, "EndTime": at + MINUTE}
    wait = result("wait", "Complete", (at, 7))
    with Stubber(cloud.cloudwatch) as stub:
        stub.add_response("get_metric_data", {"MetricDataResults": first, "NextToken": "x"}, asked)
        last = [result("messages0", "Complete", (at - MINUTE, 6)), wait]
        stub.add_response("get_metric_data", {"MetricDataResults": last}, asked | {"NextToken": "x"})
        read = aws.values(NOW, NAMESPACE, ["orders"], PROXY)
    assert read == {int(at.timestamp()): Values(7, 5, 1), int(at.timestamp()) - 60: Values(None, 6, None)}
    for results in (
        [result("messages0", "PartialData"), result("saturated0", "Complete"), wait],
        [result("messages0", "Complete"), result("saturated0", "InternalError"), wait],
        [result("messages0", "Complete"), result("saturated0", "Forbidden"), wait],
        [result("messages0", "Complete"), wait],
    ):
        with Stubber(cloud.cloudwatch) as stub:
            stub.add_response("get_metric_data", {"MetricDataResults": results}, asked)
            with pytest.raises(MetricsError, match="expected Complete, got"):
                aws.values(NOW, NAMESPACE, ["orders"], PROXY)


def test_targets_come_in_pages(cloud: Cloud) -> None:
    aws = Aws(cloud.lambda_, cloud.rds, cloud.cloudwatch)
    readers = [target | {"Role": "READ_ONLY"} for target in AVAILABLE]
    with Stubber(cloud.rds) as stub:
        stub.add_response("describe_db_proxy_targets", {"Targets": readers, "Marker": "x"}, {"DBProxyName": PROXY})
        asked = {"DBProxyName": PROXY, "Marker": "x"}
        stub.add_response("describe_db_proxy_targets", {"Targets": UNREACHABLE}, asked)
        assert aws.health(PROXY) == (Health.DOWN, "UNAVAILABLE:UNREACHABLE")


@pytest.mark.parametrize("state", ["Creating", "Enabling", "Disabling", "Updating", "Deleting"])
def test_a_mapping_in_transition_is_waited_for(cloud: Cloud, state: str) -> None:
    cloud.publish("orders", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})

    def transition(parsed: dict[str, Any], **_: Any) -> None:
        parsed["State"] = state

    cloud.lambda_.meta.events.register("after-call.lambda.GetEventSourceMapping", transition)
    report = cloud.run()
    observed = cloud.run(mode="observe")
    cloud.lambda_.meta.events.unregister("after-call.lambda.GetEventSourceMapping", transition)
    assert changes(cloud) == []
    assert report.decisions == dict.fromkeys(("orders", "audit"), f"wait: in transition: {state}")
    assert report.concurrency == ({"orders": 0, "audit": 0} if state == "Disabling" else {"orders": 10, "audit": 4})
    assert (report.hands_off, observed.acting) == ([], [])


# What it says


def test_metrics_of_a_run(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.publish("audit", 1, **{BATCH_SIZE: 500.0, SATURATED: 100.0})
    cloud.set(Enabled=False)
    cloud.run()
    published = {}
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
            assert (directive["Namespace"], directive["Dimensions"]) == (NAMESPACE, [["service"]])
            for metric in directive["Metrics"]:
                assert metric["Unit"] == "Count"
                published[line["service"], metric["Name"]] = line[metric["Name"]]
            if line["service"] == "governor":
                assert line["decisions"]["audit"] == "lower: messages are turned away"
                assert line["decisions"]["orders"] == "hands-off: changed by hand: off:10"
    assert published == {
        ("governor", telemetry.ACTING): [1.0],
        ("governor", telemetry.CHANGES): [1.0],
        ("governor", telemetry.HANDS_OFF): [1.0],
        ("governor", telemetry.ERRORS): [0.0],
        ("orders", telemetry.CONCURRENCY): [0.0],
        ("audit", telemetry.CONCURRENCY): [2.0],
    }


def test_its_readme_explains_every_metric_and_tag() -> None:
    readme = (REPOSITORY / "workers/governor/README.md").read_text()
    names = {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    for metric in names - {telemetry.SERVICE}:
        assert f"| `{metric}` |" in readme, metric
    for tag in (NOTE_TAG, RECORD_TAG):
        assert f"`{tag}`" in readme


def test_the_handler(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GOVERNOR_MODE": "on",
        "FLEET_NAME": "spillway",
        "POWERTOOLS_METRICS_NAMESPACE": NAMESPACE,
        "PROXY_NAME": "",
        "MAPPINGS": " ".join(f"{m.worker}={m.uuid}:{m.maximum}" for m in cloud.mappings),
    }.items():
        monkeypatch.setenv(name, value)
    handler.warm_governor.cache_clear()
    answer = handler.handler({}, None)  # type: ignore[arg-type]
    handler.warm_governor.cache_clear()
    assert answer["concurrency"] == {"orders": 10, "audit": 4}
    assert answer["errors"] == {}
    json.dumps(answer)


def test_its_clients_give_up_in_time(cloud: Cloud) -> None:
    for client in vars(clients()).values():
        config = client.meta.config
        assert (config.connect_timeout, config.read_timeout) == (2, 5)
        assert config.retries["total_max_attempts"] == 3
