"""`sam build && sam deploy`, messages in, rows and dead letters out, updates, and what a delete leaves.

The tests are one story and run in this order; each leaves the stack in working order for the next.
"""

from __future__ import annotations

import json
import time
import tomllib
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from botocore.exceptions import ClientError

from spillway.dead_letters import reasons_of
from spillway.stack.template import REPOSITORY
from tests.deploy.fleet import INVENTORY, inventory
from tests.deploy.sam import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.deploy.fleet import Deployment

#: By worker: its queue's name after the stack's, and the table of the events that took effect.
WORKERS = {
    "orders": ("orders", "order_events"),
    "inventory": ("inventory", "inventory_events"),
    "payments": ("payments.fifo", "payment_events"),
    "audit": ("audit", "audit_events"),
}
DEADLINE_S = 60.0
#: An update that each test can see: DatabaseBorrowTimeout 20 becomes 5, by the template's mapping.
BORROW_TIMEOUT, FUNCTION_TIMEOUT, VISIBILITY_TIMEOUT = 5, 30, 181


def until(condition: Callable[[], Any], what: str, deployment: Deployment) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what}:\n{deployment.account.log_tail()}"
        time.sleep(0.1)
    return answer


def sample(name: str) -> list[dict[str, Any]]:
    """The records of a sample event."""
    records: list[dict[str, Any]] = json.loads((REPOSITORY / "events/samples" / name).read_text())["Records"]
    return records


def send(deployment: Deployment, queue: str, records: list[dict[str, Any]]) -> None:
    """Send the bodies of `records`; to a FIFO queue in their groups."""
    sqs = deployment.account.client("sqs")
    url = sqs.get_queue_url(QueueName=f"{deployment.stack}-{queue}")["QueueUrl"]
    entries = [{"Id": str(number), "MessageBody": record["body"]} for number, record in enumerate(records)]
    if queue.endswith(".fifo"):
        for entry, record in zip(entries, records, strict=True):
            entry["MessageGroupId"] = record["attributes"]["MessageGroupId"]
            entry["MessageDeduplicationId"] = str(uuid.uuid4())
    assert not sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")


def dead_letters(deployment: Deployment, queue: str) -> list[dict[str, str]]:
    """What is written on each dead letter; they are gone from the queue afterwards."""
    sqs = deployment.account.client("sqs")
    name = f"{queue.removesuffix('.fifo')}-dlq{'.fifo' if queue.endswith('.fifo') else ''}"
    url = sqs.get_queue_url(QueueName=f"{deployment.stack}-{name}")["QueueUrl"]
    received = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], MaxNumberOfMessages=10).get(
        "Messages", []
    )
    for message in received:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return [reasons_of(message) for message in received]


def rows(deployment: Deployment, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(deployment.database.dsn("spillway"), autocommit=True) as owner:
        return owner.execute(query).fetchall()


def invoke(deployment: Deployment, worker: str) -> Any:
    answer = deployment.account.client("lambda").invoke(FunctionName=f"{deployment.stack}-{worker}", Payload=b"{}")
    body = json.load(answer["Payload"])
    assert "FunctionError" not in answer, body
    return body


def test_the_migrations_ran_and_told_cloudformation_so(deployment: Deployment) -> None:
    versions = {int(path.name[:4]) for path in (REPOSITORY / "workers/migrate/versions").glob("*.sql")}
    assert versions <= {row[0] for row in rows(deployment, "SELECT version FROM spillway.migrations")}
    # Migrations.Version, which the functions wait for.
    function = deployment.account.client("lambda").get_function(FunctionName=f"{deployment.stack}-orders")
    assert function["Tags"]["Schema"] == f"{max(versions):04d}"


def events(deployment: Deployment) -> list[dict[str, Any]]:
    described = deployment.account.client("cloudformation").describe_stack_events(StackName=deployment.stack)
    found: list[dict[str, Any]] = described["StackEvents"]
    return found


@pytest.mark.parametrize("worker", WORKERS)
def test_messages_become_rows_and_poison_dead_letters(deployment: Deployment, worker: str) -> None:
    queue, table = WORKERS[worker]
    records = sample(f"{worker}.batch_with_poison.json")
    send(deployment, queue, records)
    found: list[dict[str, str]] = []
    until(lambda: found.extend(dead_letters(deployment, queue)) or len(found) == 2, "dead letters", deployment)
    assert sorted(each["reason"] for each in found) == ["contract", "undecodable"]
    assert {each["worker"] for each in found} == {worker}
    # By the alias, so by a published version: what a rollout moves.
    assert {each["worker-version"].partition("+")[2] for each in found} == {"1"}
    count = f"SELECT count(*) FROM spillway.{table}"  # noqa: S608
    until(lambda: rows(deployment, count)[0][0] == len(records) - 2, "rows", deployment)


def test_functions_on_a_schedule_do_what_their_roles_allow(deployment: Deployment) -> None:
    assert invoke(deployment, "housekeeping")["unfinished"] == {}
    # It finds its mappings and the metrics; the proxy that it would ask about is not there.
    seen = invoke(deployment, "governor")
    assert set(seen["errors"]) <= {"target health"}, deployment.account.log_tail()
    assert set(seen["decisions"]) == set(WORKERS)


def test_a_wrong_combination_is_refused_with_a_sentence(deployment: Deployment) -> None:
    cloudformation = deployment.account.client("cloudformation")
    [described] = cloudformation.describe_stacks(StackName=deployment.stack)["Stacks"]
    parameters = [
        {"ParameterKey": each["ParameterKey"], "UsePreviousValue": True}
        for each in described["Parameters"]
        if each["ParameterKey"] != "DatabaseHost"
    ]
    with pytest.raises(ClientError, match="DatabaseHost is yours: give DatabaseSecurityGroupId"):
        cloudformation.create_change_set(
            StackName=deployment.stack,
            ChangeSetName="refused",
            UsePreviousTemplate=True,
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            Parameters=[*parameters, {"ParameterKey": "DatabaseHost", "ParameterValue": "db.example"}],
        )


def status(deployment: Deployment) -> str:
    described = deployment.account.client("cloudformation").describe_stacks(StackName=deployment.stack)
    return str(described["Stacks"][0]["StackStatus"])


def test_a_parameter_and_code_are_updated(deployment: Deployment) -> None:
    handler = deployment.sam.directory / "workers/orders/handler.py"
    handler.write_text(handler.read_text() + "\n# another version\n")
    deployment.sam.build()
    printed = deployment.deploy(DatabaseBorrowTimeout=str(BORROW_TIMEOUT))
    assert status(deployment) == "UPDATE_COMPLETE", printed
    functions, sqs = deployment.account.client("lambda"), deployment.account.client("sqs")
    for worker, (queue, _) in WORKERS.items():
        name = f"{deployment.stack}-{worker}"
        url = sqs.get_queue_url(QueueName=f"{deployment.stack}-{queue}")["QueueUrl"]
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"]
        assert int(attributes["VisibilityTimeout"]) == VISIBILITY_TIMEOUT
        assert functions.get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "2"
        deployed = functions.get_function_configuration(FunctionName=name, Qualifier="live")
        assert deployed["Timeout"] == FUNCTION_TIMEOUT
        assert deployed["Environment"]["Variables"]["DATABASE_BORROW_TIMEOUT"] == str(BORROW_TIMEOUT)
        # What is written now is written by the new version.
        send(deployment, queue, sample(f"{worker}.batch_with_poison.json")[1:2])
        [found] = until(lambda queue=queue: dead_letters(deployment, queue), "dead letter", deployment)
        assert found["worker-version"].endswith("+2"), worker


def test_a_failed_migration_fails_the_deployment_with_its_sql_error(deployment: Deployment) -> None:
    broken = deployment.sam.directory / "workers/migrate/versions/9999_broken.sql"
    broken.write_text("ALTER TABLE spillway.no_such_table ADD COLUMN x int;\n")
    deployment.sam.build()
    with pytest.raises(Refused):
        deployment.deploy()
    reasons = [
        event.get("ResourceStatusReason", "")
        for event in events(deployment)
        if event["LogicalResourceId"] == "Migrations"
    ]
    assert any("9999_broken.sql" in reason and "42P01" in reason for reason in reasons), reasons
    assert status(deployment) == "UPDATE_ROLLBACK_COMPLETE"


def test_what_the_list_of_changes_names_is_still_refused(deployment: Deployment) -> None: ...


def test_a_delete_leaves_rows_and_nothing_else(deployment: Deployment) -> None:
    held = leftovers(deployment)
    assert {name.split()[0] for name in held} == {service for service, *_ in INVENTORY}, "what is looked for is there"
    deployment.delete()
    assert leftovers(deployment) == set()
    assert rows(deployment, "SELECT count(*) FROM spillway.orders")[0][0] > 0


def leftovers(deployment: Deployment) -> set[str]:
    """What the account holds more than before; SAM's own bucket is the operator's, for all stacks."""
    return (
        inventory(deployment.account)
        - deployment.before
        - {"cloudformation StackSummaries aws-sam-cli-managed-default"}
    )


def environment(name: str) -> dict[str, str]:
    """The parameters of an environment in samconfig.toml."""
    settings = tomllib.loads((REPOSITORY / "samconfig.toml").read_text())
    return dict(pair.split("=", 1) for pair in settings[name]["deploy"]["parameters"]["parameter_overrides"])


#: Other ways to deploy, with a variable of the orders worker that shows each.
WAYS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "dev": (environment("dev"), {"DATABASE_USER": "spillway_app_direct", "DATABASE_BORROW_TIMEOUT": "0"}),
    "staging": (environment("staging"), {"DATABASE_USER": "spillway_app"}),
    "prod": (environment("prod"), {"DATABASE_USER": "spillway_app"}),
    "Aurora": ({"DatabaseEngine": "aurora-postgresql"}, {"DATABASE_USER": "spillway_app"}),
    "Aurora Serverless, no secret": (
        {"DatabaseEngine": "aurora-serverless-v2", "ProxyAuthentication": "iam", "MultiAz": "false"},
        {"DATABASE_USER": "spillway_app"},
    ),
    "a proxy of your own": (
        {
            "VpcId": "vpc-0123456789abcdef0",
            "SubnetIds": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
            "DatabaseHost": "proxy.example",
            "DatabaseResourceId": "prx-0123456789abcdef0",
            "DatabaseSecurityGroupId": "sg-0123456789abcdef0",
            "ProxyName": "theirs",
        },
        {"DATABASE_HOST": "proxy.example"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_deploy(deployment: Deployment, way: str) -> None:
    """Made, migrated and deleted with nothing left, from the same template."""
    parameters, shown = WAYS[way]
    other = replace(deployment, stack=f"way-{list(WAYS).index(way)}", before=inventory(deployment.account))
    always = {"Architecture": "x86_64", "DeletionProtection": "off"}
    deployment.account.client("cloudformation").create_stack(
        StackName=other.stack,
        TemplateURL=deployment.template_url,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in (parameters | always).items()],
    )
    try:
        until(lambda: not status(other).endswith("IN_PROGRESS"), "end of the deployment", other)
        reasons = [event.get("ResourceStatusReason") for event in events(other)]
        assert status(other) == "CREATE_COMPLETE", [reason for reason in reasons if reason]
        function = other.account.client("lambda").get_function_configuration(FunctionName=f"{other.stack}-orders")
        assert shown.items() <= function["Environment"]["Variables"].items()
        if "DatabaseHost" not in parameters:
            # A role that takes tokens takes no password any more, so the proxy's secret decides.
            [(takes_tokens,)] = rows(other, "SELECT pg_has_role('spillway_app', 'rds_iam', 'MEMBER')")
            assert takes_tokens == (
                parameters.get("CreateProxy") == "false" or parameters.get("ProxyAuthentication") == "iam"
            )
    finally:
        other.delete()
    assert leftovers(other) == set()
