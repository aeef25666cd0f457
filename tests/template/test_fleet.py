"""The house rules of template.yaml, stated on what SAM makes of it."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spillway.stack.errors import StackError
from spillway.stack.intrinsics import Resolver
from spillway.stack.mapping import MappingConfig
from spillway.stack.queues import CreatedQueue
from spillway.stack.template import (
    ACCOUNT,
    REGION,
    REPOSITORY,
    TEMPLATE,
    Fleet,
    Function,
    load_fleet,
    resolve,
    translate,
)
from workers.governor.settings import GovernorSettings
from workers.housekeeping.settings import HousekeepingSettings
from workers.migrate.settings import MigrateSettings
from workers.runtime.dead_letters import SEND_BUDGET_S
from workers.runtime.settings import MARGIN_S, START_S, Settings
from workers.runtime.visibility import VISIBILITY_BUDGET_S

# AWS's advice: Lambda Developer Guide, "Creating and configuring an Amazon SQS event source mapping".
VISIBILITY_FACTOR = 6
# What Mappings give a function beyond the sum of its chain, for a cold start on a busy day.
SPARE_S = 3
# A proxy that is brought along: what nested stacks would make is not there to be looked at.
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


def connecting(fleet: Fleet) -> dict[str, Function]:
    """The functions that write to the database; migrations have their own way, and the governor none."""
    return {name: one for name, one in fleet.functions.items() if name != "GovernorFunction"}


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


def test_the_chain_of_times_holds_for_every_timeout_that_may_be_chosen(fleet: Fleet) -> None:
    parameters, tables = fleet.template["Parameters"], fleet.template["Mappings"]
    borrow, statement = (
        [str(value) for value in parameters[name]["AllowedValues"]]
        for name in ("DatabaseBorrowTimeout", "DatabaseStatementTimeout")
    )
    for table in tables.values():
        assert list(table) == borrow
        assert all(list(row) == statement for row in table.values())
    for key, column in itertools.product(borrow, statement):
        chosen = {"DatabaseBorrowTimeout": key, "DatabaseStatementTimeout": column}
        one = resolve(fleet.template, REQUIRED | chosen)
        needed = START_S + 5 + int(key) + int(column) + MARGIN_S + SEND_BUDGET_S + VISIBILITY_BUDGET_S
        for source in one.mappings:
            settings = Settings.from_env(environment(one, source.function))
            function, queue = one.functions[source.function], one.queues[source.queue]
            assert settings.function_timeout == function.timeout_s == needed + SPARE_S
            assert settings.queue_visibility_timeout == int(queue.attributes["VisibilityTimeout"])
            assert settings.queue_visibility_timeout == VISIBILITY_FACTOR * function.timeout_s + 1
            assert source.window_s <= 1
        HousekeepingSettings.from_env(environment(one, "HousekeepingFunction"))


def test_the_chain_of_times_breaks_loudly(fleet: Fleet) -> None:
    short = environment(fleet, "OrdersConsumer") | {"DATABASE_BORROW_TIMEOUT": "120"}
    with pytest.raises(Exception, match="FUNCTION_TIMEOUT: expected at least 142 s"):
        Settings.from_env(short)


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


# Actions that AWS gives no resource to: the Service Authorization Reference lists none for them.
WITHOUT_A_RESOURCE = {"cloudwatch:GetMetricData"}
# Of a proxy that is brought along only the name is known, not its target group's id; it is for reading its health.
ANY_TARGET_GROUP = "arn:${AWS::Partition}:rds:${AWS::Region}:${AWS::AccountId}:target-group:*"


def statements(resources: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Every statement that a role or managed policy of the template has itself, under its resource's name."""
    documents = [
        (name, policy["PolicyDocument"]) for name, policy in of_type(resources, "AWS::IAM::ManagedPolicy").items()
    ]
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        documents += [(name, policy["PolicyDocument"]) for policy in role.get("Policies", [])]
    return [
        (name, statement.get("Fn::If", [None, statement])[1])
        for name, document in documents
        for statement in document["Statement"]
    ]


def test_policies_name_their_resources(resources: dict[str, dict[str, Any]]) -> None:
    found = statements(resources)
    assert {name for name, _ in found} >= {f"{source}Role" for source in ("OrdersConsumer", "AuditConsumer")}
    for name, statement in found:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions), name
        if statement["Resource"] == "*":
            assert set(actions) <= WITHOUT_A_RESOURCE, name
        else:
            assert "*" not in str(statement["Resource"]).replace(ANY_TARGET_GROUP, ""), name


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"DatabaseHost": "mine", "DatabaseResourceId": "prx-1"}, ["prx-1/app"]),
        ({}, ["<Outputs.ProxyResourceId>/app"]),
        ({"ProxyAuthentication": "iam"}, ["<Outputs.ProxyResourceId>/app"]),
        ({"DirectAccess": "open"}, ["<Outputs.ProxyResourceId>/app", "<Outputs.DatabaseResourceId>/app_direct"]),
        (
            {"DirectAccess": "open", "DatabaseRoute": "direct"},
            ["<Outputs.ProxyResourceId>/app", "<Outputs.DatabaseResourceId>/app_direct"],
        ),
        (
            {"DirectAccess": "open", "DatabaseRoute": "direct", "CreateProxy": "false"},
            ["<Outputs.DatabaseResourceId>/app_direct"],
        ),
    ],
    ids=["yours", "ours", "ours without a secret", "both routes", "both, now direct", "direct alone"],
)
def test_a_worker_may_connect_as_one_user_and_nobody_else(
    fleet: Fleet, parameters: dict[str, str], expected: list[str]
) -> None:
    values = resolve(fleet.template, {"DatabaseUser": "app"} | parameters).parameters
    resolver = Resolver(fleet.template, values, lambda _, name: f"<{name}>")
    resources = fleet.template["Resources"]
    (statement,) = resolver.resolve(resources["ConnectToTheDatabase"]["Properties"]["PolicyDocument"])["Statement"]
    assert statement["Action"] == "rds-db:connect"
    prefix = f"arn:aws:rds-db:{REGION}:{ACCOUNT}:dbuser:"
    assert statement["Resource"] == [prefix + user for user in expected]
    # It is the only way there, and everyone who connects has it.
    assert [name for name, one in statements(resources) if "rds-db" in str(one)] == ["ConnectToTheDatabase"]
    holders = {
        name
        for name, role in of_type(resources, "AWS::IAM::Role").items()
        if {"Ref": "ConnectToTheDatabase"}
        in [arn.get("Fn::If", [None, None])[1] for arn in role.get("ManagedPolicyArns", []) if isinstance(arn, dict)]
    }
    assert holders == {f"{function}Role" for function in connecting(fleet)}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"DatabaseHost": "mine"}, ("mine", "app", "/etc/pki/tls/certs/ca-bundle.crt", "20")),
        ({}, ("<Outputs.ProxyEndpoint>", "app", "/etc/pki/tls/certs/ca-bundle.crt", "20")),
        (
            {"DatabaseRoute": "direct"},
            ("<Outputs.DatabaseEndpoint>", "app_direct", "/var/task/workers/runtime/rds-ca.pem", "0"),
        ),
        (
            {"DatabaseHost": "mine", "DatabaseRoute": "direct", "DatabaseSslRootCert": "/opt/my.pem"},
            ("mine", "app", "/opt/my.pem", "0"),
        ),
    ],
    ids=["yours", "ours", "ours, directly", "yours, directly"],
)
def test_each_route_has_its_host_user_authorities_and_borrow_timeout(
    fleet: Fleet, parameters: dict[str, str], expected: tuple[str, ...]
) -> None:
    values = resolve(fleet.template, {"DatabaseUser": "app"} | parameters).parameters
    resolver = Resolver(fleet.template, values, lambda _, name: f"<{name}>")
    for function in connecting(fleet).values():
        found = resolver.resolve(function.environment)
        names = ("DATABASE_HOST", "DATABASE_USER", "DATABASE_SSLROOTCERT", "DATABASE_BORROW_TIMEOUT")
        assert tuple(str(found[name]) for name in names) == expected


def test_queues_take_tls_only(resources: dict[str, dict[str, Any]]) -> None:
    covered = []
    for name, policy in of_type(resources, "AWS::SQS::QueuePolicy").items():
        (queue,) = policy["Queues"]
        (statement,) = policy["PolicyDocument"]["Statement"]
        # SQS takes one resource a statement, and only the queue's own.
        assert statement["Resource"] == {"Fn::GetAtt": [queue["Ref"], "Arn"]}, name
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "sqs:*")
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        covered.append(queue["Ref"])
    assert sorted(covered) == sorted(of_type(resources, "AWS::SQS::Queue"))


def test_a_dead_letter_queue_takes_from_its_own_queue_only(fleet: Fleet, resources: dict[str, dict[str, Any]]) -> None:
    resolver = Resolver(fleet.template, fleet.parameters, lambda *_: None)
    sources = {queue.dead_letter_queue: queue for queue in fleet.queues.values() if queue.dead_letter_queue}
    assert len(sources) == len(fleet.mappings)
    for dead, queue in sources.items():
        allow = resolver.resolve(of_type(resources, "AWS::SQS::Queue")[str(dead)]["RedriveAllowPolicy"])
        assert allow == {
            "redrivePermission": "byQueue",
            "sourceQueueArns": [f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.name}"],
        }


def test_what_a_mapping_may_use_is_reserved(fleet: Fleet, resources: dict[str, dict[str, Any]]) -> None:
    functions, mappings = (
        of_type(resources, "AWS::Lambda::Function"),
        of_type(resources, "AWS::Lambda::EventSourceMapping"),
    )
    for source in fleet.mappings:
        reserved = functions[source.function]["ReservedConcurrentExecutions"]
        maximum = mappings[source.logical_id]["ScalingConfig"]["MaximumConcurrency"]
        assert reserved == {"Fn::If": ["ReservesConcurrency", maximum, {"Ref": "AWS::NoValue"}]}


def output(known: dict[tuple[str, str], str], logical_id: str, name: str | None) -> str:
    """A nested stack's output as in `known`, or else its own name."""
    return known.get((logical_id, str(name)), f"{logical_id}.{name}")


def test_consumers_roll_out_behind_an_alias_that_their_own_alarms_watch(
    fleet: Fleet, resources: dict[str, dict[str, Any]]
) -> None:
    groups = of_type(resources, "AWS::CodeDeploy::DeploymentGroup")
    mappings, aliases = of_type(resources, "AWS::Lambda::EventSourceMapping"), of_type(resources, "AWS::Lambda::Alias")
    assert len(groups) == len(fleet.mappings)
    for source in fleet.mappings:
        alias = mappings[source.logical_id]["FunctionName"]["Ref"]
        assert aliases[alias]["FunctionName"] == {"Ref": source.function}
        group = resources[alias]["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]["DeploymentGroupName"]["Ref"]
        configuration = groups[group]["AlarmConfiguration"]
        worker = source.function.removesuffix("Consumer")
        outputs = {(f"{worker}Alarms", "Outputs.RollbackAlarms"): "1,2,3,4,5"}
        for proxy, last in (
            ("", f"{worker}Alarms.Outputs.SaturatedAlarm"),
            ("mine", "Observability.Outputs.RollbackAlarms"),
        ):
            values = fleet.parameters | {"ProxyName": proxy}
            resolver = Resolver(fleet.template, values, partial(output, outputs))
            watched = [alarm["Name"] for alarm in resolver.resolve(configuration)["Alarms"]]
            # CodeDeploy takes ten at most, and none twice.
            assert watched == [*"12345", last]
        off = Resolver(fleet.template, fleet.parameters | {"Alarms": "off"}, lambda *_: None)
        assert off.resolve(configuration) == {}


#: A secret, and a text too long for a description; both are for development (docs/deploy.md says so).
UNDESCRIBED = {"DatabasePassword", "DatabaseSslRootCert"}


def test_a_change_of_any_parameter_that_a_consumer_reads_is_a_new_version(
    fleet: Fleet, resources: dict[str, dict[str, Any]]
) -> None:
    parameters = fleet.template["Parameters"]
    versions = {one["FunctionName"]["Ref"]: one for one in of_type(resources, "AWS::Lambda::Version").values()}
    for source in fleet.mappings:
        text = " ".join(versions[source.function]["Description"]["Fn::Sub"].split())
        described = set(re.findall(r"\$\{(\w+)\}", text))
        environment = str(fleet.functions[source.function].environment)
        read = {name for name in parameters if re.search(rf"'{name}'|\${{{name}}}", environment)}
        assert len(read) > 10
        assert read - UNDESCRIBED == described - {"Architecture"}, source.function
        longest = len(re.sub(r"\$\{\w+\}", "", text)) + sum(map(longest_value, map(parameters.get, described)))
        assert longest <= 256, "Lambda takes no longer description"


def longest_value(parameter: dict[str, Any]) -> int:
    """How many characters a value of `parameter` can have."""
    bounds = parameter.get("AllowedValues") or [parameter.get("MaxValue", "")]
    return int(parameter.get("MaxLength") or max(len(str(value)) for value in bounds))


def test_no_consumer_is_changed_before_its_schema_is_there(fleet: Fleet, resources: dict[str, dict[str, Any]]) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    for name in connecting(fleet):
        tags = {tag["Key"]: tag["Value"] for tag in functions[name]["Tags"]}
        assert tags["Schema"]["Fn::If"][:2] == ["MakesDatabase", {"Fn::GetAtt": ["Migrations", "Version"]}], name
    # Which runs again with every new version of the code.
    version = resources["Migrations"]["Properties"]["CodeVersion"]["Ref"]
    assert of_type(resources, "AWS::Lambda::Version")[version]["FunctionName"] == {"Ref": "MigrateFunction"}
    assert resources["Migrations"]["Properties"]["ServiceTimeout"] > functions["MigrateFunction"]["Timeout"]


def test_functions_are_traced_and_inside_the_network(resources: dict[str, dict[str, Any]]) -> None:
    groups = {"MigrateFunction": "MigratorSecurityGroupId"}
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        assert function["TracingConfig"] == {"Mode": "Active"}
        if name == "GovernorFunction":
            # There is no way from an isolated subnet to the APIs it calls.
            assert "VpcConfig" not in function
            continue
        group = groups.get(name, "ConsumerSecurityGroupId")
        assert function["VpcConfig"]["SecurityGroupIds"] == [{"Fn::GetAtt": ["Network", f"Outputs.{group}"]}]


def test_parameters_are_described_and_bounded(fleet: Fleet) -> None:
    for name, parameter in fleet.template["Parameters"].items():
        assert parameter.get("Description", "").endswith("."), name
        if parameter["Type"] == "Number":
            assert "AllowedValues" in parameter or {"MinValue", "MaxValue"} <= set(parameter), name


def test_no_password_reaches_the_log_of_a_deployment(fleet: Fleet) -> None:
    assert fleet.template["Parameters"]["DatabasePassword"]["NoEcho"] is True


def test_every_variable_a_worker_reads_is_in_the_template(fleet: Fleet) -> None:
    source = (REPOSITORY / "workers/runtime/settings.py").read_text()
    read = set(re.findall(r'"((?:DATABASE|FUNCTION|DEAD_LETTER|QUEUE|RETRY)_[A-Z_]+)"', source))
    assert len(read) > 10
    consumers = {source.function for source in fleet.mappings}
    for function in connecting(fleet).values():
        needed = read if function.logical_id in consumers else {name for name in read if "QUEUE" not in name}
        assert needed <= set(function.environment), function.logical_id


def test_the_governor_knows_every_mapping_and_its_maximum(fleet: Fleet) -> None:
    ids = {source.logical_id: f"00000000-0000-0000-0000-{number:012}" for number, source in enumerate(fleet.mappings)}
    resolver = Resolver(fleet.template, fleet.parameters, lambda logical_id, _: ids.get(logical_id, "name"))
    settings = GovernorSettings.from_env(resolver.resolve(fleet.functions["GovernorFunction"].environment))
    assert {(one.uuid, one.maximum) for one in settings.mappings} == {
        (ids[source.logical_id], source.maximum_concurrency) for source in fleet.mappings
    }
    workers = {one.uuid: one.worker for one in settings.mappings}
    for source in fleet.mappings:
        handler = fleet.functions[source.function].handler
        assert handler == f"workers.{workers[ids[source.logical_id]]}.handler.handler"
    assert (settings.mode, settings.fleet, settings.namespace) == ("observe", "spillway", "Spillway/spillway")


def test_the_migrate_function_has_what_it_reads(fleet: Fleet) -> None:
    made = resolve(fleet.template, {})
    resolver = Resolver(fleet.template, made.parameters, lambda _, name: f"<{name}>")
    environment = resolver.resolve(made.functions["MigrateFunction"].environment)
    settings = MigrateSettings.from_env({name: str(value) for name, value in environment.items()})
    assert (settings.host, settings.user) == ("<Outputs.DatabaseEndpoint>", "spillway_app")
    assert settings.application_secret == "<Outputs.ApplicationSecretArn>"
    assert settings.sslmode == "verify-full"
    without = Resolver(fleet.template, made.parameters | {"ProxyAuthentication": "iam"}, lambda _, name: f"<{name}>")
    assert without.resolve(made.functions["MigrateFunction"].environment)["APPLICATION_SECRET_ARN"] == ""


def test_the_makefile_builds_for_what_the_template_deploys(resources: dict[str, dict[str, Any]], fleet: Fleet) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    platforms = {"arm64": "aarch64-manylinux_2_28", "x86_64": "x86_64-manylinux_2_28"}
    for architecture, platform in platforms.items():
        assert f"PLATFORM_{architecture} := {platform}\n" in makefile
    for function in of_type(resources, "AWS::Lambda::Function").values():
        assert f"LAMBDA_PYTHON := {function['Runtime'].removeprefix('python')}\n" in makefile
        assert function["Architectures"] == [{"Ref": "Architecture"}]
    assert f"ARCHITECTURE ?= {fleet.parameters['Architecture']}\n" in makefile


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"no parameter DatabaseHots\. It has .*DatabaseHost"):
        load_fleet({"DatabaseHots": "x"})
    with pytest.raises(StackError, match="DatabaseBorrowTimeout cannot be '3': expected one of 1, 2, 4"):
        load_fleet({"DatabaseBorrowTimeout": 3})
    with pytest.raises(StackError, match=r"template\.yaml's parameter Needed has no value\."):
        resolve({"Parameters": {"Needed": {"Type": "String"}}, "Resources": {}}, {})


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
