"""Misconfigured fleets: each fault is seeded into a good one, is found by the check it is for, and by no other."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from spillway.doctor.checks_functions import secrets_in
from spillway.doctor.facts import Facts
from spillway.doctor.finding import Finding, Level
from spillway.doctor.registry import run, select
from tests.unit.doctor_fleet import NAME, REGION, MotoFleet, good_fleet
from workers.governor.record import NOTE_TAG, RECORD_TAG, Record, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AREAS = ("stack", "queues", "functions", "mappings", "times")
MEMBERS = ("stack", "queues", "functions", "mappings", "account")
FAIL, WARN, SKIP = Level.FAIL, Level.WARN, Level.SKIP
NOW = datetime(2026, 11, 22, tzinfo=UTC)
ORDERS, DLQ = f"{NAME}-orders", f"{NAME}-orders-dlq"
ACCOUNT_URL = f"https://sqs.{REGION}.amazonaws.com/123456789012"
FUNCTIONS_ARN = f"arn:aws:lambda:{REGION}:123456789012:function"


@pytest.fixture(scope="module")
def fleet() -> Iterator[MotoFleet]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        yield good_fleet()


@pytest.fixture(scope="module")
def known(fleet: MotoFleet) -> dict[str, Any]:
    """What the doctor knows of the good fleet; a test fetches again what it has changed."""
    facts = Facts(fleet)
    return {name: getattr(facts, name) for name in MEMBERS}


@pytest.fixture(scope="module")
def well(fleet: MotoFleet, known: dict[str, Any]) -> list[Finding]:
    return run(Facts(fleet, known=known, now=NOW), select(areas=AREAS))


def test_nothing_is_wrong_with_a_good_fleet(well: list[Finding]) -> None:
    assert [one for one in well if one.level is not Level.PASS] == []
    assert {one.check for one in well} == {one.name for one in select(areas=AREAS)}


@dataclass(frozen=True)
class Fault:
    """A misconfiguration: how to seed it, which facts to fetch again, and what is found, by check."""

    name: str
    seed: Callable[[MotoFleet], Any]
    fetch: str
    found: dict[str, Level]
    says: str
    now: datetime = NOW


def queue(name: str, **attributes: str | None) -> Callable[[MotoFleet], Any]:
    """The queue's attributes; None: it has none of the name."""

    def change(answer: dict[str, Any]) -> None:
        for key, value in attributes.items():
            if value is None:
                answer["Attributes"].pop(key, None)
            else:
                answer["Attributes"][key] = value

    return lambda fleet: fleet.altering("sqs", "GetQueueAttributes", change, QueueUrl=f"{ACCOUNT_URL}/{name}")


def redrive(to: str, count: int) -> str:
    return json.dumps({"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:123456789012:{to}", "maxReceiveCount": count})


def allowed(permission: str, *sources: str) -> str:
    arns = [f"arn:aws:sqs:{REGION}:123456789012:{name}" for name in sources]
    return json.dumps({"redrivePermission": permission} | ({"sourceQueueArns": arns} if arns else {}))


def gone(name: str) -> Callable[[MotoFleet], Any]:
    def change(_: dict[str, Any]) -> None:
        raise _error("AWS.SimpleQueueService.NonExistentQueue", "GetQueueAttributes")

    return lambda fleet: fleet.altering("sqs", "GetQueueAttributes", change, QueueUrl=f"{ACCOUNT_URL}/{name}")


def function(**values: Any) -> Callable[[MotoFleet], Any]:
    """Changes the orders function's configuration, of the version that its alias leads to."""
    return lambda fleet: fleet.altering(
        "lambda",
        "GetFunctionConfiguration",
        lambda answer: answer.update(values),
        FunctionName=ORDERS,
        Qualifier="live",
    )


def variables(**values: str) -> Callable[[MotoFleet], Any]:
    def change(answer: dict[str, Any]) -> None:
        answer["Environment"]["Variables"].update(values)

    return lambda fleet: fleet.altering("lambda", "GetFunctionConfiguration", change, FunctionName=ORDERS)


def alias(**values: Any) -> Callable[[MotoFleet], Any]:
    return lambda fleet: fleet.altering("lambda", "GetAlias", lambda answer: answer.update(values), FunctionName=ORDERS)


def no_alias(fleet: MotoFleet) -> Any:
    def change(_: dict[str, Any]) -> None:
        raise _error("ResourceNotFoundException", "GetAlias")

    return fleet.altering("lambda", "GetAlias", change, FunctionName=ORDERS)


def mapping(**values: Any) -> Callable[[MotoFleet], Any]:
    """Changes the orders queue's."""

    def change(answer: dict[str, Any]) -> None:
        answer["EventSourceMappings"][0].update(values)

    return lambda fleet: _orders_mappings(fleet, change)


def no_mapping(fleet: MotoFleet) -> Any:
    return _orders_mappings(fleet, lambda answer: answer["EventSourceMappings"].clear())


def second_mapping(fleet: MotoFleet) -> Any:
    def change(answer: dict[str, Any]) -> None:
        (ours,) = answer["EventSourceMappings"]
        answer["EventSourceMappings"].append(ours | {"UUID": "other", "FunctionArn": f"{FUNCTIONS_ARN}:forgotten"})

    return _orders_mappings(fleet, change)


def tags(values: dict[str, str], **mapping_values: Any) -> Callable[[MotoFleet], Any]:
    """The orders mapping's tags, and fields of it."""

    @contextmanager
    def seeded(fleet: MotoFleet) -> Iterator[None]:
        uuid = next(one.physical_id for one in fleet.resources if one.logical_id == "OrdersConsumerOrders")
        arn = f"arn:aws:lambda:{REGION}:123456789012:event-source-mapping:{uuid}"
        with ExitStack() as stack:
            stack.enter_context(fleet.altering("lambda", "ListTags", lambda answer: {"Tags": values}, Resource=arn))
            stack.enter_context(mapping(**mapping_values)(fleet))
            yield

    return seeded


def stack(status: str) -> Callable[[MotoFleet], Any]:
    def change(answer: dict[str, Any]) -> None:
        answer["Stacks"][0]["StackStatus"] = status

    return lambda fleet: fleet.altering("cloudformation", "DescribeStacks", change, StackName=NAME)


def reserved(count: int) -> Callable[[MotoFleet], Any]:
    return lambda fleet: fleet.altering(
        "lambda",
        "GetFunctionConcurrency",
        lambda answer: answer.update(ReservedConcurrentExecutions=count),
        FunctionName=ORDERS,
    )


def account(unreserved: int) -> Callable[[MotoFleet], Any]:
    limits = {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": unreserved}
    return lambda fleet: fleet.altering("lambda", "GetAccountSettings", lambda answer: {"AccountLimit": limits})


def _orders_mappings(fleet: MotoFleet, change: Callable[[dict[str, Any]], Any]) -> Any:
    return fleet.altering(
        "lambda",
        "ListEventSourceMappings",
        change,
        EventSourceArn=f"arn:aws:sqs:{REGION}:123456789012:{ORDERS}",
    )


def _error(code: str, operation: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


def record(to: str) -> dict[str, str]:
    setting = Setting.parse(to)
    return {RECORD_TAG: Record(was=setting, to=setting, goal=10).encode()}


DRIFT = {"queue-drift": WARN}
CHANGED = {"environment-drift": WARN}
FAULTS = [
    Fault("rolled back", stack("UPDATE_ROLLBACK_COMPLETE"), "stack", {"stack-settled": WARN}, "was rolled back"),
    Fault("being deployed", stack("UPDATE_IN_PROGRESS"), "stack", {"stack-settled": WARN}, "side by side"),
    Fault(
        "rollback failed", stack("UPDATE_ROLLBACK_FAILED"), "stack", {"stack-settled": FAIL}, "no longer be deployed"
    ),
    Fault("queue gone", gone(ORDERS), "queues", {"queues-exist": FAIL}, "does not exist"),
    Fault(
        "no redrive policy",
        queue(ORDERS, RedrivePolicy=None),
        "queues",
        {"redrive-policy": FAIL, "max-receive-count": SKIP},
        "has no redrive policy",
    ),
    Fault(
        "redrive policy leads elsewhere",
        queue(ORDERS, RedrivePolicy=redrive("elsewhere", 1000)),
        "queues",
        {"redrive-policy": FAIL},
        "to elsewhere, and not to",
    ),
    Fault(
        "dead-lettered after 4 receives",
        queue(ORDERS, RedrivePolicy=redrive(DLQ, 4)),
        "queues",
        {"max-receive-count": FAIL, **DRIFT},
        "after 4 receives",
    ),
    Fault(
        "dead-lettered after 99 receives",
        queue(ORDERS, RedrivePolicy=redrive(DLQ, 99)),
        "queues",
        {"max-receive-count": WARN, **DRIFT},
        "after 99 receives",
    ),
    Fault(
        "dead letters kept no longer than the queue's",
        queue(DLQ, MessageRetentionPeriod="345600"),
        "queues",
        {"dlq-retention": FAIL, **DRIFT},
        "4 days",
    ),
    Fault(
        "dead letters kept for 10 days",
        queue(DLQ, MessageRetentionPeriod="864000"),
        "queues",
        {"dlq-retention": WARN, **DRIFT},
        "10 days",
    ),
    Fault(
        "FIFO dead letters kept no longer than the queue's",
        queue(f"{NAME}-payments-dlq.fifo", MessageRetentionPeriod="345600"),
        "queues",
        {"dlq-retention": WARN, **DRIFT},
        "4 days",
    ),
    Fault(
        "dead-letter queue denies every source",
        queue(DLQ, RedriveAllowPolicy=allowed("denyAll")),
        "queues",
        {"dlq-allows-source": FAIL},
        "does not let",
    ),
    Fault(
        "dead-letter queue is for another source",
        queue(DLQ, RedriveAllowPolicy=allowed("byQueue", "elsewhere")),
        "queues",
        {"dlq-allows-source": FAIL},
        "does not let",
    ),
    Fault(
        "dead-letter queue is for every source",
        queue(DLQ, RedriveAllowPolicy=None),
        "queues",
        {"dlq-allows-source": WARN},
        "every queue of the account",
    ),
    Fault(
        "dead-letter queue is for one source more",
        queue(DLQ, RedriveAllowPolicy=allowed("byQueue", ORDERS, "elsewhere")),
        "queues",
        {"dlq-allows-source": WARN},
        "lets elsewhere use it",
    ),
    Fault(
        "unencrypted queue",
        queue(ORDERS, SqsManagedSseEnabled="false"),
        "queues",
        {"queue-encryption": FAIL},
        "unencrypted",
    ),
    Fault("no queue policy", queue(ORDERS, Policy=None), "queues", {"queue-tls": WARN}, "without TLS"),
    Fault(
        "queue policy that denies something else",
        queue(ORDERS, Policy=json.dumps({"Statement": [{"Effect": "Deny", "Condition": {"Bool": {"x": "false"}}}]})),
        "queues",
        {"queue-tls": WARN},
        "without TLS",
    ),
    Fault(
        "FIFO queue with a standard dead-letter queue",
        queue(f"{NAME}-payments-dlq.fifo", FifoQueue=None),
        "queues",
        {"fifo-match": FAIL, **DRIFT},
        "is FIFO and",
    ),
    Fault(
        "short polling",
        queue(ORDERS, ReceiveMessageWaitTimeSeconds="0"),
        "queues",
        {**DRIFT},
        "ReceiveMessageWaitTimeSeconds is 0 and not 20",
    ),
    Fault(
        "dead letters wait",
        queue(DLQ, ApproximateNumberOfMessages="7", ApproximateNumberOfMessagesNotVisible="5"),
        "queues",
        {"dlq-empty": WARN},
        "about 12 dead letters",
    ),
    Fault(
        "visibility timeout shortened by hand",
        queue(ORDERS, VisibilityTimeout="270"),
        "queues",
        {"visibility-timeout": FAIL, "told-times": FAIL, **DRIFT},
        "6 x 45 s + window 1 s = 271 s",
    ),
    Fault(
        "function failed",
        function(State="Failed", StateReason="the subnet has no free address"),
        "functions",
        {"function-ready": FAIL},
        "the subnet has no free address",
    ),
    Fault(
        "function's update failed",
        function(LastUpdateStatus="Failed", LastUpdateStatusReason="the role is gone"),
        "functions",
        {"function-ready": FAIL},
        "the role is gone",
    ),
    Fault(
        "function being updated",
        function(LastUpdateStatus="InProgress"),
        "functions",
        {"function-ready": WARN},
        "created or updated",
    ),
    Fault(
        "deprecated runtime",
        function(Runtime="python3.10"),
        "functions",
        {"runtime-supported": FAIL},
        "no security patches any more since 2026-06-30",
    ),
    Fault(
        "runtime too old to be listed",
        function(Runtime="python3.8"),
        "functions",
        {"runtime-supported": FAIL},
        "python3.8, which gets no security patches",
    ),
    Fault(
        "runtime that will be deprecated soon",
        function(Runtime="python3.12"),
        "functions",
        {"runtime-supported": WARN},
        "deprecated from 2028-10-31 on",
        now=datetime(2028, 6, 1, tzinfo=UTC),
    ),
    Fault("no alias", no_alias, "functions", {"function-alias": FAIL}, "has no alias live"),
    Fault(
        "alias on $LATEST",
        alias(FunctionVersion="$LATEST"),
        "functions",
        {"function-alias": FAIL},
        "leads to $LATEST",
    ),
    Fault(
        "rollout under way",
        alias(RoutingConfig={"AdditionalVersionWeights": {"2": 0.1}}),
        "functions",
        {"function-alias": WARN},
        "10% to version 2, the rest to version 1",
    ),
    Fault(
        "password in the environment",
        variables(DATABASE_PASSWORD="hunter2-hunter2"),  # whether it was deployed, CloudFormation does not tell
        "functions",
        {"environment-secrets": FAIL},
        "a secret in DATABASE_PASSWORD;",
    ),
    Fault(
        "URL with a password in the environment",
        variables(REPORTS="postgresql://reports:hunter2-hunter2@host/db"),
        "functions",
        {"environment-secrets": FAIL, **CHANGED},
        "a secret in REPORTS;",
    ),
    Fault(
        "certificates not verified",
        variables(DATABASE_SSLMODE="require"),
        "functions",
        {"database-tls": FAIL, **CHANGED},
        "sslmode=require",
    ),
    Fault(
        "one function past the proxy",
        variables(DATABASE_ROUTE="direct", DATABASE_HOST="database.example"),
        "functions",
        {"one-route": FAIL, **CHANGED},
        f"{ORDERS}: direct, database.example",
    ),
    Fault(
        "poison sent elsewhere",
        variables(DEAD_LETTER_QUEUE_URL=f"{ACCOUNT_URL}/elsewhere"),
        "functions",
        {"queue-urls": FAIL, **CHANGED},
        "DEAD_LETTER_QUEUE_URL to 123456789012/elsewhere",
    ),
    Fault(
        "variable changed by hand",
        variables(RETRY_MAX_DELAY="60"),
        "functions",
        {**CHANGED},
        "RETRY_MAX_DELAY changed",
    ),
    Fault("variable added by hand", variables(EXTRA="1"), "functions", {**CHANGED}, "EXTRA added"),
    Fault(
        "function timeout shortened by hand",
        function(Timeout=40),
        "functions",
        {"chain-of-times": FAIL, "told-times": FAIL},
        "FUNCTION_TIMEOUT says 45, it is 40",
    ),
    Fault(
        "function timeout raised by hand",
        function(Timeout=60),
        "functions",
        {"visibility-timeout": FAIL, "told-times": FAIL},
        "6 x 60 s + window 1 s = 361 s",
    ),
    Fault(
        "borrow timeout raised by hand",
        variables(DATABASE_BORROW_TIMEOUT="60"),
        "functions",
        {"chain-of-times": FAIL, **CHANGED},
        "borrow 60",
    ),
    Fault("no mapping", no_mapping, "mappings", {"mapping-exists": FAIL}, "nobody reads it"),
    Fault("second mapping", second_mapping, "mappings", {"mapping-exists": FAIL}, "to forgotten"),
    Fault(
        "mapping disabled",
        mapping(State="Disabled", StateTransitionReason="User initiated"),
        "mappings",
        {"mapping-enabled": FAIL},
        "User initiated",
    ),
    Fault(
        "mapping disabled by the governor",
        tags(record("off:10"), State="Disabled"),
        "mappings",
        {"mapping-enabled": FAIL},
        "disabled by the governor",
    ),
    Fault("mapping in transition", mapping(State="Updating"), "mappings", {"mapping-enabled": WARN}, "is updating"),
    Fault(
        "mapping to $LATEST",
        mapping(FunctionArn=f"{FUNCTIONS_ARN}:{ORDERS}"),
        "mappings",
        {"mapping-target": FAIL},
        "$LATEST and not live",
    ),
    Fault(
        "mapping to a version",
        mapping(FunctionArn=f"{FUNCTIONS_ARN}:{ORDERS}:7"),
        "mappings",
        {"mapping-target": FAIL},
        "invokes 7 and not live",
    ),
    Fault(
        "partial batch responses off",
        mapping(FunctionResponseTypes=[]),
        "mappings",
        {"partial-batch-responses": FAIL},
        "and lost",
    ),
    Fault(
        "batch size changed by hand",
        mapping(BatchSize=10, MaximumBatchingWindowInSeconds=0),
        "mappings",
        {"mapping-drift": WARN},
        "BatchSize is 10 and not 1000; the window is 0 and not 1",
    ),
    Fault(
        "concurrency changed by hand",
        mapping(ScalingConfig={"MaximumConcurrency": 50}),
        "mappings",
        {"mapping-drift": WARN},
        "MaximumConcurrency is 50 and not 10",
    ),
    Fault(
        "concurrency lowered by the governor",
        tags(record("on:5"), ScalingConfig={"MaximumConcurrency": 5}),
        "mappings",
        {"mapping-drift": WARN},
        "which the governor did",
    ),
    Fault(
        "mapping made by hand",
        mapping(UUID="made-by-hand"),
        "mappings",
        {"mapping-drift": WARN},
        "not the stack's own",
    ),
    Fault(
        "no maximum concurrency",
        mapping(ScalingConfig={}),
        "mappings",
        {"mapping-drift": WARN, "account-concurrency": FAIL},
        "has no MaximumConcurrency",
    ),
    Fault(
        "too little reserved",
        reserved(9),
        "functions",
        {"reserved-concurrency": FAIL},
        "10 batches at once",
    ),
    Fault(
        "too little in the account",
        account(34),
        "account",
        {"account-concurrency": FAIL},
        "35 batches at once, the account has 34 left",
    ),
    Fault(
        "governor kept off and forgotten",
        tags({NOTE_TAG: "off"}, LastModified=NOW - timedelta(days=2)),
        "mappings",
        {"governor-tags": WARN},
        "2 days",
    ),
    Fault(
        "mapping changed beside the governor",
        tags({NOTE_TAG: "manual 2026-11-21"}, LastModified=NOW),
        "mappings",
        {"governor-tags": WARN},
        "somebody else changed",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_nothing_else(
    fault: Fault, fleet: MotoFleet, known: dict[str, Any], well: list[Finding]
) -> None:
    with fault.seed(fleet):
        given_facts = {name: value for name, value in known.items() if name != fault.fetch}
        found = run(Facts(fleet, known=given_facts, now=fault.now), select(areas=AREAS))
    new = [one for one in found if one not in well and one.level is not Level.PASS]
    assert {one.check: one.level for one in new} == fault.found
    assert len(new) == len(fault.found)
    assert fault.says in " ".join(one.said for one in new)
    for one in new:
        assert one.fix or one.level is SKIP
        assert "hunter2" not in str(one)


@pytest.mark.parametrize(
    ("seed", "fetch", "healthy"),
    [
        (tags({NOTE_TAG: "off"}, LastModified=NOW - timedelta(hours=23)), "mappings", "for less than a day"),
        (reserved(10), "functions", "10 are reserved"),
        (account(35), "account", "35 left for them"),
        (function(Runtime="python3.15"), "functions", "runs on python3.15"),
        (queue(ORDERS, SqsManagedSseEnabled="false", KmsMasterKeyId="alias/ours"), "queues", "encrypts messages"),
    ],
)
def test_what_only_looks_like_a_fault_passes(
    seed: Callable[[MotoFleet], Any], fetch: str, healthy: str, fleet: MotoFleet, known: dict[str, Any]
) -> None:
    with seed(fleet):
        given_facts = {name: value for name, value in known.items() if name != fetch}
        found = run(Facts(fleet, known=given_facts, now=NOW), select(areas=AREAS))
    assert {one.level for one in found} == {Level.PASS}
    assert healthy in " ".join(one.said for one in found)


def test_a_denied_call_skips_what_needs_it_and_names_the_permission(fleet: MotoFleet) -> None:
    said = "User: arn:aws:iam::1:user/op is not authorized to perform: lambda:ListEventSourceMappings on resource: *"

    def denied(_: dict[str, Any]) -> None:
        raise _error("AccessDeniedException", "ListEventSourceMappings", said)

    with fleet.answering("lambda", "ListEventSourceMappings", denied):
        found = run(Facts(fleet, now=NOW), select(areas=AREAS))
    skipped = [one for one in found if one.level is not Level.PASS]
    assert {one.level for one in skipped} == {SKIP}
    assert {one.check for one in skipped} == {
        *(one.name for one in select(areas=["mappings"])),
        "visibility-timeout",
    }
    assert all("lack lambda:ListEventSourceMappings" in one.said for one in skipped)


def test_each_fact_is_fetched_once_and_only_if_asked_for(fleet: MotoFleet) -> None:
    calls: list[str] = []
    fleet.client("sqs").meta.events.register("before-parameter-build", lambda model, **_: calls.append(model.name))
    facts = Facts(fleet)
    run(facts, select(only=["runtime-supported"]))
    assert calls == []
    run(facts, select(areas=["queues", "times"]))
    assert calls == ["GetQueueAttributes"] * 8


@pytest.mark.parametrize(
    "value",
    [
        "postgres://u:p@host/db",
        "postgresql://user:s3cr%40t@host:5432/db?sslmode=require",
        "amqps://guest:guest@broker",
        "host=h password=x",
        "-----BEGIN RSA PRIVATE KEY-----\nMII",
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ],
)
def test_secrets_are_known_by_their_looks(value: str) -> None:
    assert list(secrets_in({"HARMLESS": value})) == ["HARMLESS"]


@pytest.mark.parametrize("name", ["DATABASE_PASSWORD", "CLIENT_SECRET", "stripe_api_key", "GITHUB_TOKEN", "DB_PWD"])
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert list(secrets_in({name: "x"})) == [name]
    assert list(secrets_in({name: ""})) == []


@pytest.mark.parametrize(
    "value",
    [
        "https://sqs.eu-west-1.amazonaws.com/123456789012/queue",
        "postgresql://host/db",
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:spillway/app",
        "356a192b7913b04c54574d18c28d46e6395428ab",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "-----BEGIN CERTIFICATE-----",
        "orders=1e06e386-6aec-48bb-aaaf-65df78d61987:10",
    ],
)
def test_what_is_no_secret_is_taken_for_none(value: str) -> None:
    assert list(secrets_in({"HARMLESS": value})) == []


@given(st.text("abcXYZ019-_.~%", min_size=1), st.text("abcXYZ019-_.~%", min_size=1))
def test_every_url_with_a_password_is_one(user: str, password: str) -> None:
    assert list(secrets_in({"URL": f"postgresql://{user}:{password}@host:5432/db"})) == ["URL"]


def test_where_a_function_is_in_the_network(fleet: MotoFleet) -> None:
    network = {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"], "VpcId": "vpc-1"}
    with function(VpcConfig=network)(fleet):
        functions = Facts(fleet).functions
    assert (functions[ORDERS].subnets, functions[ORDERS].groups) == (("subnet-1", "subnet-2"), ("sg-1",))
    others = [one for name, one in functions.items() if name != ORDERS]
    assert others
    assert {(one.subnets, one.groups) for one in others} == {((), ())}
