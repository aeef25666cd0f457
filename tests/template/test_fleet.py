"""The house rules of template.yaml, stated on what SAM makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spillway.stack.errors import StackError
from spillway.stack.intrinsics import Resolver
from spillway.stack.mapping import MappingConfig
from spillway.stack.queues import CreatedQueue
from spillway.stack.template import REPOSITORY, TEMPLATE, Fleet, load_fleet, translate
from workers.runtime.settings import Settings

# AWS's advice: Lambda Developer Guide, "Creating and configuring an Amazon SQS event source mapping".
VISIBILITY_FACTOR = 6
REQUIRED = {"DatabaseHost": "proxy.example"}


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return load_fleet(REQUIRED)


@pytest.fixture(scope="module")
def resources(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return fleet.template["Resources"]


def of_type(resources: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}


def environment(fleet: Fleet, function: str) -> dict[str, str]:
    queues = {queue: CreatedQueue(f"https://sqs.example/{queue}", f"arn:{queue}") for queue in fleet.queues}
    return fleet.environment(fleet.functions[function], queues) | {"AWS_REGION": "eu-west-1"}


def test_there_is_a_fleet(fleet: Fleet) -> None:
    assert fleet.mappings, "every test below loops over these"
    assert fleet.schedules
    assert {source.function for source in [*fleet.mappings, *fleet.schedules]} == set(fleet.functions)


def test_the_chain_of_times_holds(fleet: Fleet) -> None:
    for source in fleet.mappings:
        function, queue = fleet.functions[source.function], fleet.queues[source.queue]
        # The worker checks connect + borrow + statement + margin <= FUNCTION_TIMEOUT itself.
        settings = Settings.from_env(environment(fleet, source.function))
        assert settings.function_timeout == function.timeout_s
        visibility = int(queue.attributes["VisibilityTimeout"])
        assert visibility >= VISIBILITY_FACTOR * function.timeout_s + source.window_s, queue.name


def test_the_chain_of_times_breaks_loudly() -> None:
    slow = load_fleet(REQUIRED | {"DatabaseBorrowTimeout": 120})
    with pytest.raises(Exception, match="FUNCTION_TIMEOUT: expected at least 142 s"):
        Settings.from_env(environment(slow, "OrdersConsumer"))


def test_every_queue_has_a_dead_letter_queue_that_keeps_longer(fleet: Fleet) -> None:
    targets = {queue.dead_letter_queue for queue in fleet.queues.values()} - {None}
    for queue in fleet.queues.values():
        if queue.logical_id in targets:
            continue
        assert queue.dead_letter_queue is not None, queue.name
        dead = fleet.queues[queue.dead_letter_queue]
        assert int(dead.attributes["MessageRetentionPeriod"]) > int(queue.attributes["MessageRetentionPeriod"])
        assert queue.fifo == dead.fifo
        # 1 would send every hiccup to the dead-letter queue; poison leaves at the first receive anyway.
        assert queue.max_receive_count is not None
        assert queue.max_receive_count >= 5


def test_every_mapping_reports_partial_failures_within_lambdas_limits(fleet: Fleet) -> None:
    for source in fleet.mappings:
        assert source.report_batch_item_failures
        assert source.maximum_concurrency is not None
        MappingConfig(
            queue_url="https://sqs.example/queue",
            queue_arn=f"arn:aws:sqs:eu-west-1:123456789012:{fleet.queues[source.queue].name}",
            region="eu-west-1",
            fifo=fleet.queues[source.queue].fifo,
            batch_size=source.batch_size,
            window_s=source.window_s,
            maximum_concurrency=source.maximum_concurrency,
            report_batch_item_failures=True,
            function_timeout_s=fleet.functions[source.function].timeout_s,
        )


def test_queues_are_encrypted(resources: dict[str, dict[str, Any]]) -> None:
    for name, queue in of_type(resources, "AWS::SQS::Queue").items():
        assert queue.get("SqsManagedSseEnabled") is True, name


def test_consumers_have_a_log_group_with_retention_and_no_dead_letter_config(
    resources: dict[str, dict[str, Any]],
) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        group = function["LoggingConfig"]["LogGroup"]["Ref"]
        assert "RetentionInDays" in groups[group], name
        # A function-level dead-letter queue is for asynchronous invocations; on an SQS consumer it does nothing.
        assert "DeadLetterConfig" not in function, name


def test_policies_name_their_resources(resources: dict[str, dict[str, Any]]) -> None:
    seen = 0
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        for policy in role.get("Policies", []):
            policy = policy.get("Fn::If", [None, policy])[1]  # noqa: PLW2901
            for statement in policy["PolicyDocument"]["Statement"]:
                statement = statement.get("Fn::If", [None, statement])[1]  # noqa: PLW2901
                seen += 1
                assert statement["Effect"] == "Allow"
                assert statement["Resource"] != "*", name
                assert "*" not in str(statement["Action"]), name
    assert seen >= 2 * len(of_type(resources, "AWS::Lambda::Function"))


def test_a_worker_may_connect_as_one_user_of_one_proxy(resources: dict[str, dict[str, Any]]) -> None:
    for role in of_type(resources, "AWS::IAM::Role").values():
        text = str(role)
        assert "dbuser:${DatabaseResourceId}/${DatabaseUser}" in text
        assert text.count("rds-db:connect") == 1


def test_parameters_are_described_and_bounded(fleet: Fleet) -> None:
    for name, parameter in fleet.template["Parameters"].items():
        assert parameter.get("Description", "").endswith("."), name
        if parameter["Type"] == "Number":
            assert "AllowedValues" in parameter or {"MinValue", "MaxValue"} <= set(parameter), name


def test_no_password_reaches_the_log_of_a_deployment(fleet: Fleet) -> None:
    assert fleet.template["Parameters"]["DatabasePassword"]["NoEcho"] is True


def test_every_variable_a_worker_reads_is_in_the_template(fleet: Fleet) -> None:
    source = (REPOSITORY / "workers/runtime/settings.py").read_text()
    read = set(re.findall(r'"((?:DATABASE|FUNCTION|DEAD_LETTER)_[A-Z_]+)"', source))
    assert len(read) > 10
    consumers = {source.function for source in fleet.mappings}
    for function in fleet.functions.values():
        needed = read if function.logical_id in consumers else {name for name in read if "QUEUE" not in name}
        assert needed <= set(function.environment), function.logical_id


def test_the_makefile_builds_for_what_the_template_deploys(resources: dict[str, dict[str, Any]]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    platforms = {"arm64": "aarch64-manylinux_2_28", "x86_64": "x86_64-manylinux_2_28"}
    for function in of_type(resources, "AWS::Lambda::Function").values():
        assert f"LAMBDA_PYTHON := {function['Runtime'].removeprefix('python')}\n" in makefile
        assert f"LAMBDA_PLATFORM := {platforms[function['Architectures'][0]]}\n" in makefile


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"no parameter DatabaseHots\. It has .*DatabaseHost"):
        load_fleet({"DatabaseHots": "x"})
    with pytest.raises(StackError, match="parameter DatabaseHost has no value"):
        load_fleet({})


def test_an_invalid_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot be read"):
        translate(tmp_path / "none.yaml")
    broken = tmp_path / "template.yaml"
    broken.write_text(TEMPLATE.read_text().replace("Handler: workers.orders.handler.handler", "Handlr: x"))
    with pytest.raises(StackError, match="is not valid"):
        translate(broken)


def test_intrinsics() -> None:
    template = {"Conditions": {"Yes": {"Fn::Equals": ["a", {"Ref": "A"}]}}, "Mappings": {"M": {"k": {"f": 7}}}}
    attributes = {("Q", None): "url", ("Q", "Arn"): "arn"}
    resolve = Resolver(template, {"A": "a", "L": ["x", "y"]}, lambda *name: attributes.get(name)).resolve
    for value, expected in [
        ({"Ref": "A"}, "a"),
        ({"Ref": "Q"}, "url"),
        ({"Fn::GetAtt": ["Q", "Arn"]}, "arn"),
        ({"Fn::GetAtt": "Q.Arn"}, "arn"),
        ({"Fn::Sub": "${A}-${Q.Arn}-${!literal}"}, "a-arn-${literal}"),
        ({"Fn::Sub": ["${A}${B}", {"B": {"Ref": "Q"}}]}, "aurl"),
        ({"Fn::Join": ["", {"Ref": "L"}]}, "xy"),
        ({"Fn::Select": ["1", {"Fn::Split": [",", "p,q"]}]}, "q"),
        ({"Fn::FindInMap": ["M", "k", "f"]}, 7),
        ({"Fn::If": ["Yes", 1, 2]}, 1),
        ({"x": {"Fn::If": ["Yes", {"Ref": "AWS::NoValue"}, 2]}}, {}),
        ({"a": {"Ref": "AWS::NoValue"}, "b": [{"Ref": "AWS::NoValue"}, 1]}, {"b": [1]}),
        ({"Fn::And": [{"Condition": "Yes"}, {"Fn::Not": [{"Condition": "Yes"}]}]}, False),
        ({"Fn::Or": [{"Condition": "Yes"}, {"Fn::Not": [{"Condition": "Yes"}]}]}, True),
    ]:
        assert resolve(value) == expected, value
    with pytest.raises(StackError, match=r"refers to Nobody\.Arn"):
        resolve({"Fn::GetAtt": ["Nobody", "Arn"]})
    with pytest.raises(StackError, match="Fn::Cidr"):
        resolve({"Fn::Cidr": ["10.0.0.0/16", 1, 8]})
