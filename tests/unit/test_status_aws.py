"""`spillway status` of a fleet on AWS: moto's SQS, Lambda, CloudWatch; RDS, whose moto proxies are well, is stubbed."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import msgspec
import pytest
import typer
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from typer.testing import CliRunner

import spillway.commands.status as command
from spillway.aws_errors import explained
from spillway.fleet.fleet import Fleet, Resource, Worker
from spillway.stack.snapshot import QueueDepth
from spillway.status import metrics
from spillway.status.aws import AwsReader
from spillway.status.reading import Alarm, GovernorReading, MappingReading, Reading
from workers.governor.record import NOTE_TAG, RECORD_TAG, Record, Setting
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REGION = "eu-west-1"
NAMESPACE = "Spillway/prod"
MINUTE = timedelta(minutes=1)
AVAILABLE = [{"Role": "READ_WRITE", "Type": "RDS_INSTANCE", "TargetHealth": {"State": "AVAILABLE"}}]
DOWN = [
    {
        "Role": "READ_WRITE",
        "Type": "RDS_INSTANCE",
        "TargetHealth": {"State": "UNAVAILABLE", "Reason": "UNREACHABLE"},
    }
]


def no_percentiles(params: dict[str, Any], **_: Any) -> dict[str, Any]:
    """moto knows none: the largest value stands for them."""
    queries = copy.deepcopy(params["MetricDataQueries"])
    for query in queries:
        if query["MetricStat"]["Stat"] == "p99":
            query["MetricStat"]["Stat"] = "Maximum"
    return params | {"MetricDataQueries": queries}


class Cloud:
    """An account with a fleet of two workers, its governor and alarms; what is in `fails` AWS refuses."""

    def __init__(self) -> None:
        self.sqs, self.lambda_, self.cloudwatch, self.rds = (
            boto3.client(name) for name in ("sqs", "lambda", "cloudwatch", "rds")
        )
        self.clients = {"sqs": self.sqs, "lambda": self.lambda_, "cloudwatch": self.cloudwatch, "rds": self.rds}
        self.fails: dict[str, tuple[str, str]] = {}
        self.calls: list[str] = []
        for client in self.clients.values():
            client.meta.events.register("before-call", self._called)
        self.cloudwatch.meta.events.register("provide-client-params.cloudwatch.GetMetricData", no_percentiles)
        self.role = boto3.client("iam").create_role(RoleName="worker", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        self.uuids = {worker: self._worker(worker, maximum) for worker, maximum in (("orders", 10), ("audit", 4))}
        self._function("governor")
        self.resources = [
            Resource("GovernorFunction", "AWS::Lambda::Function", "prod-governor"),
            Resource("Proxy", "AWS::RDS::DBProxy", "prod", "Proxy"),
            *(Resource(name, "AWS::Lambda::EventSourceMapping", uuid) for name, uuid in self.uuids.items()),
            *(Resource(name, "AWS::CloudWatch::Alarm", f"prod-{name}", "Alarms") for name in ("hot", "calm")),
        ]
        for name in ("prod-hot", "prod-calm", "prod-2-hot"):
            self.cloudwatch.put_metric_alarm(
                AlarmName=name, EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", MetricName="m",
                Namespace="n", Period=60, Statistic="Sum", Threshold=1,
            )  # fmt: skip
            self.cloudwatch.set_alarm_state(
                AlarmName=name, StateValue="OK" if "calm" in name else "ALARM", StateReason="r"
            )
        self.govern("on")

    def _function(self, name: str) -> None:
        self.lambda_.create_function(
            FunctionName=f"prod-{name}", Runtime="python3.13", Role=self.role, Handler="h.h", Code={"ZipFile": b"x"}
        )

    def _worker(self, worker: str, maximum: int) -> str:
        for name in (worker, f"{worker}-dlq"):
            self.sqs.create_queue(QueueName=f"prod-{name}")
        self._function(worker)
        uuid: str = self.lambda_.create_event_source_mapping(
            FunctionName=f"prod-{worker}",
            EventSourceArn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:prod-{worker}",
            ScalingConfig={"MaximumConcurrency": maximum},
        )["UUID"]
        return uuid

    def url(self, queue: str) -> str:
        return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/prod-{queue}"

    def govern(self, mode: str, proxy: str = "prod") -> None:
        variables = {
            "GOVERNOR_MODE": mode,
            "FLEET_NAME": "prod",
            "POWERTOOLS_METRICS_NAMESPACE": NAMESPACE,
            "PROXY_NAME": proxy,
            "BORROW_TIMEOUT": "20",
            "MAPPINGS": f"orders={self.uuids['orders']}:10 audit={self.uuids['audit']}:4",
        }
        self.lambda_.update_function_configuration(FunctionName="prod-governor", Environment={"Variables": variables})

    def tag(self, worker: str, **tags: str) -> None:
        mapping = self.lambda_.get_event_source_mapping(UUID=self.uuids[worker])
        self.lambda_.tag_resource(Resource=mapping["EventSourceMappingArn"], Tags=tags)

    def publish(self, namespace: str, minutes_ago: int, dimensions: dict[str, str], **values: float) -> None:
        named = [{"Name": name, "Value": value} for name, value in dimensions.items()]
        at = datetime.now(UTC) - minutes_ago * MINUTE
        self.cloudwatch.put_metric_data(
            Namespace=namespace,
            MetricData=[
                {"MetricName": name, "Dimensions": named, "Timestamp": at, "Value": value}
                for name, value in values.items()
            ],
        )

    def fleet(self, without: str = "") -> Fleet:
        cloud = self

        class Stubbed(Fleet):
            def client(self, service: str, *, connections: int = 10) -> Any:
                assert connections > 1, "it is used by several threads"
                return cloud.clients[service]

        workers = {
            name: Worker(
                name=name,
                queue_url=self.url(name),
                dead_letter_url=self.url(f"{name}-dlq"),
                function=f"prod-{name}",
                logs="",
            )
            for name in self.uuids
        }
        resources = [one for one in self.resources if one.type != without]
        return Stubbed(name="prod", workers=workers, region=REGION, resources=resources)

    def read(self, targets: list[dict[str, Any]] | None = None, *, without: str = "") -> Reading:
        self.calls.clear()
        with Stubber(self.rds) as stub:
            answer = {"Targets": targets or AVAILABLE}
            if (refusal := self.fails.get("DescribeDBProxyTargets")) is not None:
                stub.add_client_error("describe_db_proxy_targets", *refusal)
            else:
                stub.add_response("describe_db_proxy_targets", answer, {"DBProxyName": "prod"})
            return AwsReader(self.fleet(without)).read()

    def _called(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)
        if model.name in self.fails:
            code, message = self.fails[model.name]
            raise ClientError({"Error": {"Code": code, "Message": message}}, model.name)  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def made() -> Iterator[Cloud]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.delenv("AWS_PROFILE", raising=False)
        with mock_aws(config={"lambda": {"use_docker": False}}):
            yield Cloud()


@pytest.fixture
def cloud(made: Cloud) -> Iterator[Cloud]:
    yield made
    made.fails.clear()
    cloudwatch_backends[ACCOUNT][REGION].metric_data.clear()


def denied(action: str) -> tuple[str, str]:
    return "AccessDenied", f"User: arn:aws:iam::1:user/x is not authorized to perform: {action} on resource: y"


def test_everything_of_a_fleet(cloud: Cloud) -> None:
    # moto's mappings take messages at once; these came while theirs was disabled.
    cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["orders"], Enabled=False)
    for body in ("a", "b"):
        cloud.sqs.send_message(QueueUrl=cloud.url("orders"), MessageBody=body)
    cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["orders"], Enabled=True)
    cloud.sqs.send_message(QueueUrl=cloud.url("audit-dlq"), MessageBody="c")
    cloud.lambda_.put_function_concurrency(FunctionName="prod-orders", ReservedConcurrentExecutions=12)
    cloud.publish(NAMESPACE, 2, {"service": "orders"}, Applied=120, SaturatedGivenBack=30, BreakerOpen=2)
    cloud.publish(NAMESPACE, 3, {"service": "orders"}, Applied=600, DeadLettered=60, BreakerOpen=5)
    cloud.publish("AWS/SQS", 2, {"QueueName": "prod-orders"}, ApproximateAgeOfOldestMessage=70)
    cloud.publish("AWS/SQS", 3, {"QueueName": "prod-orders"}, ApproximateAgeOfOldestMessage=10)
    cloud.publish("AWS/Lambda", 2, {"FunctionName": "prod-orders"}, ConcurrentExecutions=7)
    for node in range(2):  # the proxy has two nodes
        cloud.publish(
            "AWS/RDS", 2, {"ProxyName": "prod"},
            ClientConnections=50, DatabaseConnectionsCurrentlyBorrowed=4, DatabaseConnectionsCurrentlySessionPinned=1,
            DatabaseConnectionsBorrowLatency=(100_000, 400_000)[node],
        )  # fmt: skip
        writer = {"ProxyName": "prod", "TargetGroup": "default", "TargetRole": "READ_WRITE"}
        cloud.publish("AWS/RDS", 2, writer, DatabaseConnections=20, MaxDatabaseConnectionsAllowed=50)
    seen = cloud.read()
    assert (seen.fleet, seen.local, seen.region, seen.problems) == ("prod", False, REGION, {})
    assert seen.queues == {"orders": QueueDepth(2, 0, 0), "audit": QueueDepth(0, 0, 1)}
    orders, audit = seen.workers["orders"], seen.workers["audit"]
    assert orders.per_s == {"applied": 2.0, "saturated": 0.5}, "the newest minute's, not one of each"
    assert (orders.oldest_s, orders.turned_away) == (70.0, 7)
    assert orders.mapping == MappingReading(state="Enabled", invoking=7, maximum=10, reserved=12)
    assert (audit.per_s, audit.oldest_s, audit.turned_away) == ({}, None, 0)
    assert audit.mapping == MappingReading(state="Enabled", invoking=0, maximum=4)
    proxy = seen.proxy
    assert proxy is not None
    assert (proxy.client_connections, proxy.database_connections, proxy.max_database_connections) == (100, 40, 100)
    assert (proxy.borrowed, proxy.pinned, proxy.borrow_average_s, proxy.use) == (8, 2, 0.25, 0.4)
    assert proxy.borrow_p99_s == pytest.approx(0.4)
    assert (proxy.target, proxy.available) == ("AVAILABLE", True)
    assert [alarm.name for alarm in seen.alarms] == ["prod-hot"], "neither what is calm, nor another fleet's"
    assert isinstance(seen.alarms[0], Alarm)
    assert datetime.fromisoformat(seen.alarms[0].since).tzinfo is not None
    assert seen.governor == GovernorReading(mode="on")
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Reading) == seen
    # One call for all metrics, and nothing that receives.
    assert cloud.calls.count("GetMetricData") == 1
    assert "ReceiveMessage" not in cloud.calls
    assert cloud.sqs.receive_message(QueueUrl=cloud.url("audit-dlq"))["Messages"][0]["MessageId"]


def test_a_metric_is_asked_for_as_the_fleet_publishes_it(cloud: Cloud) -> None:
    asked = list(metrics.queries(cloud.fleet(), "prod"))
    assert len(asked) == 2 * (len(OUTCOME_METRICS) + 3) + 7
    assert len({(one.about, one.name) for one in asked}) == len(asked)
    # More than one call takes are asked for in several, and all answered.
    cloud.publish(NAMESPACE, 2, {"service": "audit"}, Applied=60)
    cloud.calls.clear()
    found = metrics.read(cloud.cloudwatch, asked * 14, datetime.now(UTC))
    assert len(asked) * 14 > metrics.MAX_QUERIES
    assert cloud.calls.count("GetMetricData") == 2
    assert found.per_s("audit") == {"applied": 1.0}


def test_a_target_that_is_down_and_a_mapping_that_is_stopped(cloud: Cloud) -> None:
    cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["audit"], Enabled=False)
    try:
        seen = cloud.read(DOWN)
    finally:
        cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["audit"], Enabled=True)
    assert seen.proxy is not None
    assert (seen.proxy.target, seen.proxy.available) == ("UNAVAILABLE:UNREACHABLE", False)
    assert seen.workers["audit"].mapping is not None
    assert seen.workers["audit"].mapping.state == "Disabled"


def test_what_the_governor_holds_and_keeps_off(cloud: Cloud) -> None:
    lowered, deployed = Setting(enabled=True, concurrency=5), Setting(enabled=True, concurrency=10)
    cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["orders"], ScalingConfig={"MaximumConcurrency": 5})
    cloud.tag("orders", **{RECORD_TAG: Record(was=lowered, to=lowered, goal=5).encode()})
    cloud.tag("audit", **{NOTE_TAG: "off"})
    cloud.govern("observe")
    governor = cloud.read().governor
    assert governor == GovernorReading(mode="observe", holds={"orders": "5 of 10"}, hands_off={"audit": "off"})
    # Back at what was deployed it holds nothing, even if its memory is still there.
    cloud.lambda_.update_event_source_mapping(UUID=cloud.uuids["orders"], ScalingConfig={"MaximumConcurrency": 10})
    cloud.tag("orders", **{RECORD_TAG: Record(was=deployed, to=deployed, goal=10).encode()})
    cloud.tag("audit", **{NOTE_TAG: "on"})
    cloud.govern("on")
    assert cloud.read().governor == GovernorReading(mode="on")


def test_a_proxy_of_ones_own_is_known_by_the_governor(cloud: Cloud) -> None:
    seen = cloud.read(without="AWS::RDS::DBProxy")
    assert seen.proxy is not None
    assert seen.proxy.name == "prod"
    cloud.govern("on", proxy="")
    try:
        assert AwsReader(cloud.fleet("AWS::RDS::DBProxy")).read().proxy is None
    finally:
        cloud.govern("on")


def _no_queues(seen: Reading) -> bool:
    return seen.queues == {}


def _no_metrics(seen: Reading) -> bool:
    mapping = seen.workers["orders"].mapping
    return seen.workers["orders"].per_s is None and mapping is not None and mapping.invoking is None


def _no_mappings(seen: Reading) -> bool:
    return seen.workers["orders"].mapping is None


@pytest.mark.parametrize(
    ("operation", "action", "part", "missing"),
    [
        ("GetQueueAttributes", "sqs:GetQueueAttributes", "queues", _no_queues),
        ("GetMetricData", "cloudwatch:GetMetricData", "metrics", _no_metrics),
        ("DescribeAlarms", "cloudwatch:DescribeAlarms", "alarms", lambda seen: seen.alarms == []),
        ("GetEventSourceMapping", "lambda:GetEventSourceMapping", "mappings", _no_mappings),
        ("ListTags", "lambda:ListTags", "governor", lambda seen: seen.governor.holds == {}),
        ("GetFunctionConcurrency", "lambda:GetFunctionConcurrency", "reserved concurrency", lambda _: True),
        ("GetFunctionConfiguration", "lambda:GetFunctionConfiguration", "governor", lambda seen: not seen.governor),
        ("DescribeDBProxyTargets", "rds:DescribeDBProxyTargets", "proxy", lambda seen: seen.proxy.available is None),
    ],
)
def test_what_one_may_not_read_says_so_and_the_rest_is_there(
    cloud: Cloud, operation: str, action: str, part: str, missing: Callable[[Reading], bool]
) -> None:
    cloud.fails[operation] = denied(action)
    seen = cloud.read()
    assert seen.problems == {part: f"no permission: {action}"}
    assert missing(seen)
    there = [
        seen.queues,
        seen.workers["orders"].per_s is not None,
        seen.alarms,
        seen.workers["orders"].mapping,
        seen.governor,
        seen.proxy and seen.proxy.available,
    ]
    assert sum(not one for one in there) <= 1


def test_what_aws_refuses_otherwise(cloud: Cloud) -> None:
    cloud.fails["GetMetricData"] = ("Throttling", "Rate exceeded")
    problem = cloud.read().problems["metrics"]
    assert problem == explained(ClientError({"Error": {"Code": "Throttling"}}, "GetMetricData")).message
    # Every call would say the same.
    cloud.fails = {"DescribeAlarms": ("ExpiredToken", "The security token is expired")}
    with pytest.raises(ClientError, match="ExpiredToken"):
        cloud.read()


def test_the_command_on_aws(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, ...]] = []

    def find(*named: str | None) -> Fleet:
        asked.append(named)
        return cloud.fleet()

    monkeypatch.setattr(command, "find_fleet", find)
    app = typer.Typer()
    app.command()(command.status)
    options = ["--stack", "prod", "--region", REGION, "--profile", "night shift"]
    cloud.fails["DescribeDBProxyTargets"] = denied("rds:DescribeDBProxyTargets")
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert asked == [("prod", REGION, "night shift")]
    assert "? proxy       no permission: rds:DescribeDBProxyTargets" in result.stdout
    assert f"spillway doctor --stack prod --region {REGION} --profile 'night shift'" in result.stdout
    assert "target -" in result.stdout
    assert "not run here" not in result.stdout
    document = CliRunner().invoke(app, ["--json", *options])
    assert msgspec.json.decode(document.stdout.encode(), type=Reading).region == REGION
    # Each look costs.
    often = CliRunner().invoke(app, ["--watch", "--every", "5", *options])
    assert often.exit_code == 2
    assert "at least 10 on AWS" in often.output
