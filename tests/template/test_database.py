"""infra/database.yaml and proxy.yaml: encrypted, protected by parameter, and reached by TLS and tokens only."""

from __future__ import annotations

import itertools
import json
import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
from samcli.yamlhelper import yaml_parse

from spillway.stack.template import TEMPLATE
from tests.template.resolved import Stack, resolved, statements, template
from tests.template.rules import refusals

DOCUMENT, PROXY_DOCUMENT = template("database"), template("proxy")
NEEDED = {
    "FleetName": "spillway",
    "SubnetIds": "subnet-0a1b2c3d4e5f60718,subnet-0b1c2d3e4f5061728",
    "DatabaseSecurityGroupId": "sg-0a1b2c3d4e5f60718",
    "ProxySecurityGroupId": "sg-0b1c2d3e4f5061728",
    "RotatorSecurityGroupId": "sg-0c1d2e3f405162738",
}
#: As RDS would answer, for what is cut out of it.
ATTRIBUTES = {
    ("Proxy", "DBProxyArn"): "arn:aws:rds:us-east-1:000000000000:db-proxy:prx-0a1b2c3d4e5f60718",
    ("Instance", "DbiResourceId"): "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    ("Cluster", "DBClusterResourceId"): "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
}
ENGINES = ["postgres", "aurora-postgresql", "aurora-serverless-v2"]
KEY = "Key.Arn"

ALWAYS = {"Key", "KeyAlias", "SubnetGroup", "MonitoringRole"}
RDS = {"Instance", "InstanceParameters", "InstanceLogGroup", "InstanceUpgradeLogGroup"}
AURORA = {"Cluster", "Writer", "ClusterParameters", "ClusterLogGroup"}
PROXY = {"Proxy", "ProxyTargets", "ProxyRole", "ProxyLogGroup"}
SECRET = {"ApplicationSecret", "ApplicationSecretTarget", "Rotation"}
READER, READER_ENDPOINT = {"Reader"}, {"ProxyReaderEndpoint"}


def made(**given: str) -> Stack:
    """The database's stack and, where there is a proxy, the proxy's, which is given what template.yaml gives it."""
    given = NEEDED | given

    def of(document: dict[str, Any]) -> dict[str, str]:
        return {name: value for name, value in given.items() if name in document["Parameters"]}

    assert set(given) <= set(of(DOCUMENT)) | set(of(PROXY_DOCUMENT))
    database = resolved(DOCUMENT, of(DOCUMENT), ATTRIBUTES)
    if given.get("MakesProxy", "true") == "false":
        return database
    passed = {name: database.outputs[name] for name in ("DatabaseIdentifier", "DatabaseResourceId", "KeyArn")}
    passed["ApplicationSecretArn"] = database.outputs.get("ApplicationSecretArn", "")
    proxy = resolved(PROXY_DOCUMENT, of(PROXY_DOCUMENT) | passed, ATTRIBUTES)
    assert not set(database.resources) & set(proxy.resources)
    assert not set(database.outputs) & set(proxy.outputs)
    return Stack(database.resources | proxy.resources, database.outputs | proxy.outputs)


def store(stack: Stack) -> dict[str, Any]:
    """The properties of what holds the data: the instance of RDS, or Aurora's cluster."""
    (properties,) = [stack.properties(name) for name in ("Instance", "Cluster") if name in stack.resources]
    return properties


def of_type(stack: Stack, service: str) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in stack.resources.items() if each["Type"].startswith(f"AWS::{service}")}


EVERY = [
    {"Engine": engine, "MultiAz": multi_az, "MakesProxy": proxy, "ProxyAuthentication": authentication}
    for engine, multi_az, proxy, authentication in itertools.product(
        ENGINES, ("true", "false"), ("true", "false"), ("secret", "iam")
    )
]


@pytest.mark.parametrize("given", EVERY, ids=lambda given: " ".join(given.values()))
def test_what_exists(given: dict[str, str]) -> None:
    stack = made(**given)
    aurora, proxy = given["Engine"] != "postgres", given["MakesProxy"] == "true"
    reader = aurora and given["MultiAz"] == "true"
    secret = proxy and given["ProxyAuthentication"] == "secret"
    assert set(stack.resources) == (
        ALWAYS
        | (AURORA if aurora else RDS)
        | (PROXY if proxy else set())
        | (SECRET if secret else set())
        | (READER if reader else set())
        | (READER_ENDPOINT if reader and proxy else set())
    )
    outputs = {"DatabaseEndpoint", "DatabaseResourceId", "DatabaseIdentifier", "MasterSecretArn", "KeyArn"}
    outputs |= {"ProxyEndpoint", "ProxyResourceId", "ProxyName", "TargetGroupArn"} if proxy else set()
    outputs |= {"ApplicationSecretArn"} if secret else set()
    outputs |= {"ReaderEndpoint"} if reader and proxy else set()
    assert set(stack.outputs) == outputs


@pytest.mark.parametrize(
    ("engine", "outputs"),
    [
        (
            "postgres",
            {
                "DatabaseEndpoint": "Instance.Endpoint.Address",
                "DatabaseResourceId": "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                "DatabaseIdentifier": "Instance",
                "MasterSecretArn": "Instance.MasterUserSecret.SecretArn",
            },
        ),
        (
            "aurora-postgresql",
            {
                "DatabaseEndpoint": "Cluster.Endpoint.Address",
                "DatabaseResourceId": "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                "DatabaseIdentifier": "Cluster",
                "MasterSecretArn": "Cluster.MasterUserSecret.SecretArn",
                "ReaderEndpoint": "ProxyReaderEndpoint.Endpoint",
            },
        ),
    ],
)
def test_outputs(engine: str, outputs: dict[str, str]) -> None:
    proxy = {
        "ProxyEndpoint": "Proxy.Endpoint",
        "ProxyResourceId": "prx-0a1b2c3d4e5f60718",  # the last part of the ARN, which rds-db:connect takes
        "ProxyName": "Proxy",
        "TargetGroupArn": "ProxyTargets.TargetGroupArn",
        "ApplicationSecretArn": "ApplicationSecret",
        "KeyArn": KEY,
    }
    assert made(Engine=engine).outputs == outputs | proxy


# ── what holds the data ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
def test_the_database_is_private_encrypted_and_takes_tokens(engine: str) -> None:
    stack = made(Engine=engine)
    database = store(stack)
    assert database["StorageEncrypted"] is True
    assert database["KmsKeyId"] == KEY
    assert database["EnableIAMDatabaseAuthentication"] is True
    assert database["DBSubnetGroupName"] == "SubnetGroup"
    groups = database.get("VPCSecurityGroups") or database["VpcSecurityGroupIds"]
    assert groups == [NEEDED["DatabaseSecurityGroupId"]]
    assert int(database["Port"]) == 5432
    for instance in stack.of_type("AWS::RDS::DBInstance").values():
        assert instance["PubliclyAccessible"] is False
        assert instance["CACertificateIdentifier"] == "rds-ca-rsa2048-g1"
        assert instance["AutoMinorVersionUpgrade"] is True
        # Members of a cluster must agree with it, and with each other.
        assert instance["EnablePerformanceInsights"] is True
        assert instance["PerformanceInsightsKMSKeyId"] == KEY
        assert instance["PerformanceInsightsRetentionPeriod"] == database["PerformanceInsightsRetentionPeriod"] == 7
        assert (instance["MonitoringInterval"], instance["MonitoringRoleArn"]) == (60, "MonitoringRole.Arn")
    assert database["DatabaseInsightsMode"] == "standard"
    assert stack.properties("SubnetGroup")["SubnetIds"] == NEEDED["SubnetIds"].split(",")


@pytest.mark.parametrize("engine", ENGINES)
def test_rds_keeps_the_masters_password(engine: str) -> None:
    database = store(made(Engine=engine))
    assert database["ManageMasterUserPassword"] is True
    assert database["MasterUserSecret"] == {"KmsKeyId": KEY}
    assert "MasterUserPassword" not in str(DOCUMENT["Parameters"])
    assert "MasterUserPassword" not in database


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("protection", ["on", "off"])
def test_protection_follows_the_parameter(engine: str, protection: str) -> None:
    protected = protection == "on"
    stack = made(Engine=engine, DeletionProtection=protection, BackupRetentionDays="21")
    database = store(stack)
    (resource,) = [stack.resources[name] for name in ("Instance", "Cluster") if name in stack.resources]
    assert database["DeletionProtection"] is protected
    assert resource["DeletionPolicy"] == ("Snapshot" if protected else "Delete")
    assert database["DeleteAutomatedBackups"] is not protected
    # A replacement nobody meant never loses data, whatever the parameter.
    assert resource["UpdateReplacePolicy"] == "Snapshot"
    assert database["BackupRetentionPeriod"] == "21"
    assert database["CopyTagsToSnapshot"] is True
    # A snapshot can only be read with its key.
    key = stack.resources["Key"]
    assert key["DeletionPolicy"] == ("Retain" if protected else "Delete")
    assert key["UpdateReplacePolicy"] == "Retain"
    assert key["Properties"]["PendingWindowInDays"] == (30 if protected else 7)


def test_policies_that_follow_parameters_need_the_transform() -> None:
    uses = [name for name, each in DOCUMENT["Resources"].items() if isinstance(each.get("DeletionPolicy"), dict)]
    assert uses
    assert DOCUMENT["Transform"] == "AWS::LanguageExtensions"


@pytest.mark.parametrize(
    ("version", "engine", "family"),
    [
        ("17", "postgres", "postgres17"),
        ("16.9", "postgres", "postgres16"),
        ("17", "aurora-postgresql", "aurora-postgresql17"),
        ("16.8", "aurora-serverless-v2", "aurora-postgresql16"),
    ],
)
def test_parameters_are_of_the_engines_family(version: str, engine: str, family: str) -> None:
    stack = made(Engine=engine, EngineVersion=version)
    (name,) = {"InstanceParameters", "ClusterParameters"} & set(stack.resources)
    assert stack.properties(name)["Family"] == family
    database = store(stack)
    assert name in (database.get("DBParameterGroupName"), database.get("DBClusterParameterGroupName"))
    assert database["EngineVersion"] == version


def test_both_engines_force_tls_and_log_no_payload() -> None:
    groups = [DOCUMENT["Resources"][name]["Properties"] for name in ("InstanceParameters", "ClusterParameters")]
    assert groups[0]["Parameters"] == groups[1]["Parameters"]
    parameters = groups[0]["Parameters"]
    assert parameters["rds.force_ssl"] == "1"
    assert parameters["password_encryption"] == "scram-sha-256"
    assert parameters["log_parameter_max_length"] == parameters["log_parameter_max_length_on_error"] == "0"
    # It would log the statement that sets a password.
    assert parameters["log_statement"] == "none"
    assert int(parameters["log_min_duration_statement"]) >= 0
    assert all(isinstance(value, str) for value in parameters.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_every_log_has_a_group_with_retention_before_it_is_written(engine: str) -> None:
    stack = made(Engine=engine, LogRetentionDays="7")
    database = store(stack)
    identifier = database.get("DBInstanceIdentifier") or database["DBClusterIdentifier"]
    kind = "instance" if engine == "postgres" else "cluster"
    logs = {f"/aws/rds/{kind}/{identifier}/{log}" for log in database["EnableCloudwatchLogsExports"]}
    logs |= {f"/aws/rds/proxy/{stack.properties('Proxy')['DBProxyName']}"}
    groups = of_type(stack, "Logs::LogGroup")
    assert {group["Properties"]["LogGroupName"] for group in groups.values()} == logs
    assert {group["Properties"]["RetentionInDays"] for group in groups.values()} == {"7"}
    writers = [stack.resources[name] for name in ("Instance", "Cluster", "Proxy") if name in stack.resources]
    assert {group for writer in writers for group in writer["DependsOn"]} == set(groups)


@pytest.mark.parametrize("multi_az", ["true", "false"])
def test_multi_az(multi_az: str) -> None:
    assert store(made(MultiAz=multi_az))["MultiAZ"] is (multi_az == "true")
    members = made(Engine="aurora-postgresql", MultiAz=multi_az).of_type("AWS::RDS::DBInstance")
    assert set(members) == ({"Writer", "Reader"} if multi_az == "true" else {"Writer"})
    assert {member["DBClusterIdentifier"] for member in members.values()} == {"Cluster"}


def test_the_first_member_becomes_the_writer() -> None:
    stack = made(Engine="aurora-postgresql")
    assert stack.resources["Reader"]["DependsOn"] == ["Writer"]
    assert stack.properties("Reader") == stack.properties("Writer")


@pytest.mark.parametrize("engine", ENGINES)
def test_size_is_of_a_class_or_serverless(engine: str) -> None:
    stack = made(Engine=engine, InstanceClass="db.m7g.large", MinCapacity="0.5", MaxCapacity="8", AllocatedStorage="40")
    classes = {instance["DBInstanceClass"] for instance in stack.of_type("AWS::RDS::DBInstance").values()}
    database = store(stack)
    assert classes == ({"db.serverless"} if engine == "aurora-serverless-v2" else {"db.m7g.large"})
    scaling = {"MinCapacity": "0.5", "MaxCapacity": "8"} if engine == "aurora-serverless-v2" else None
    assert database.get("ServerlessV2ScalingConfiguration") == scaling
    if engine == "postgres":
        assert (database["StorageType"], database["AllocatedStorage"]) == ("gp3", "40")
        assert database["MaxAllocatedStorage"] == 65536


def test_storage_grows_by_itself() -> None:
    parameters = DOCUMENT["Parameters"]
    # RDS refuses a threshold that is less than 10 % above what is allocated.
    for size in ("Default", "MaxValue"):
        assert parameters["MaxAllocatedStorage"]["Default"] >= 1.1 * parameters["AllocatedStorage"][size]


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_used_through_rds_and_secrets_manager_only() -> None:
    key = made().properties("Key")
    assert key["EnableKeyRotation"] is True
    administer, use = statements(key["KeyPolicy"])
    for statement in (administer, use):
        assert statement["Principal"] == {"AWS": "arn:aws:iam::000000000000:root"}
    # Nothing that decrypts, or lets somebody decrypt. "kms:*" is caught by all of them.
    secrets = ["kms:Decrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:CreateGrant", "kms:Encrypt"]
    for action in secrets:
        assert not any(fnmatchcase(action, pattern) for pattern in administer["Action"]), action
    assert any(fnmatchcase("kms:PutKeyPolicy", pattern) for pattern in administer["Action"])  # nobody is locked out
    assert "Condition" not in administer
    assert use["Condition"] == {
        "StringEquals": {
            "kms:CallerAccount": "000000000000",
            "kms:ViaService": ["rds.us-east-1.amazonaws.com", "secretsmanager.us-east-1.amazonaws.com"],
        }
    }
    assert made().properties("KeyAlias") == {"AliasName": "alias/spillway-database", "TargetKeyId": "Key"}


# ── the application secret ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_secret_has_what_the_proxy_and_rotation_read() -> None:
    secret = made(DatabaseUser="orders_app").properties("ApplicationSecret")
    # The network's endpoint policy lets through what begins with the fleet's name.
    assert secret["Name"] == "spillway/database/orders_app"
    assert secret["KmsKeyId"] == KEY
    generated = secret["GenerateSecretString"]
    # engine, host, port and dbname come from the attachment.
    assert json.loads(generated["SecretStringTemplate"]) == {"username": "orders_app", "ssl": True}
    assert generated["GenerateStringKey"] == "password"
    assert generated["PasswordLength"] >= 32


@pytest.mark.parametrize(
    ("engine", "target"),
    [("postgres", ("AWS::RDS::DBInstance", "Instance")), ("aurora-postgresql", ("AWS::RDS::DBCluster", "Cluster"))],
)
def test_the_secret_rotates_every_30_days(engine: str, target: tuple[str, str]) -> None:
    stack = made(Engine=engine)
    attachment = stack.properties("ApplicationSecretTarget")
    assert (attachment["TargetType"], attachment["TargetId"]) == target
    rotation = stack.properties("Rotation")
    assert rotation["SecretId"] == attachment["SecretId"] == "ApplicationSecret"
    assert rotation["RotateImmediatelyOnUpdate"] is False
    assert rotation["RotationRules"] == {"AutomaticallyAfterDays": 30}
    assert rotation["HostedRotationLambda"] == {
        "RotationType": "PostgreSQLSingleUser",
        "RotationLambdaName": "spillway-rotate-secret",
        "KmsKeyArn": KEY,
        # Both as text: a list is refused.
        "VpcSubnetIds": NEEDED["SubnetIds"],
        "VpcSecurityGroupIds": NEEDED["RotatorSecurityGroupId"],
    }
    assert PROXY_DOCUMENT["Transform"] == "AWS::SecretsManager-2024-09-16"


# ── the proxy ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("authentication", ["secret", "iam"])
def test_the_proxy_takes_tls_and_tokens_only(authentication: str) -> None:
    proxy = made(ProxyAuthentication=authentication, IdleClientTimeout="600").properties("Proxy")
    assert proxy["RequireTLS"] is True
    assert proxy["DebugLogging"] is False
    assert proxy["IdleClientTimeout"] == "600"
    assert proxy["EngineFamily"] == "POSTGRESQL"
    assert proxy["VpcSecurityGroupIds"] == [NEEDED["ProxySecurityGroupId"]]
    assert proxy["RoleArn"] == "ProxyRole.Arn"
    if authentication == "iam":
        assert proxy["DefaultAuthScheme"] == "IAM_AUTH"
        assert "Auth" not in proxy
    else:
        assert proxy["DefaultAuthScheme"] == "NONE"
        assert proxy["Auth"] == [
            {
                "AuthScheme": "SECRETS",
                "SecretArn": "ApplicationSecret",
                "IAMAuth": "REQUIRED",
                "ClientPasswordAuthType": "POSTGRES_SCRAM_SHA_256",
            }
        ]
    assert made(DebugLogging="true").properties("Proxy")["DebugLogging"] is True


@pytest.mark.parametrize("engine", ENGINES)
def test_the_proxy_may_log_in_and_nothing_else(engine: str) -> None:
    def allowed(**given: str) -> list[tuple[str, list[str], list[str], Any]]:
        role = made(Engine=engine, DatabaseUser="orders_app", **given).properties("ProxyRole")
        assert set(role) == {"Description", "AssumeRolePolicyDocument", "Policies"}
        (trust,) = statements(role["AssumeRolePolicyDocument"])
        assert trust["Principal"] == {"Service": "rds.amazonaws.com"}
        (policy,) = role["Policies"]
        return [
            (each["Effect"], each["Action"], each["Resource"], each.get("Condition"))
            for each in statements(policy["PolicyDocument"])
        ]

    via = {"StringEquals": {"kms:ViaService": "secretsmanager.us-east-1.amazonaws.com"}}
    assert allowed() == [
        ("Allow", ["secretsmanager:GetSecretValue"], ["ApplicationSecret"], None),
        ("Allow", ["kms:Decrypt"], [KEY], via),
    ]
    database = (
        ATTRIBUTES["Instance", "DbiResourceId"]
        if engine == "postgres"
        else ATTRIBUTES["Cluster", "DBClusterResourceId"]
    )
    resource = f"arn:aws:rds-db:us-east-1:000000000000:dbuser:{database}/orders_app"
    assert allowed(ProxyAuthentication="iam") == [("Allow", ["rds-db:connect"], [resource], None)]


def test_the_pool_follows_the_parameters() -> None:
    targets = made().properties("ProxyTargets")
    assert targets["TargetGroupName"] == "default"
    pool = {"MaxConnectionsPercent": 75, "MaxIdleConnectionsPercent": 50, "ConnectionBorrowTimeout": 20}
    assert targets["ConnectionPoolConfigurationInfo"] == pool
    given = {"MaxConnectionsPercent": "60", "MaxIdleConnectionsPercent": "10", "BorrowTimeout": "5"}
    targets = made(**given, InitQuery="SET work_mem = '8MB'").properties("ProxyTargets")
    assert targets["ConnectionPoolConfigurationInfo"] == {
        "MaxConnectionsPercent": "60",
        "MaxIdleConnectionsPercent": "10",
        "ConnectionBorrowTimeout": "5",
        "InitQuery": "SET work_mem = '8MB'",
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_the_proxy_leads_to_the_database(engine: str) -> None:
    targets = made(Engine=engine).properties("ProxyTargets")
    targeted = {name: targets.get(name) for name in ("DBInstanceIdentifiers", "DBClusterIdentifiers")}
    if engine == "postgres":
        assert targeted == {"DBInstanceIdentifiers": ["Instance"], "DBClusterIdentifiers": None}
    else:
        assert targeted == {"DBInstanceIdentifiers": None, "DBClusterIdentifiers": ["Cluster"]}


def test_the_proxy_is_made_when_its_role_is() -> None:
    # Its targets are not available, and CloudFormation gives up after 20 minutes, while it cannot log in.
    root = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Resources"]
    assert root["Proxy"]["Properties"]["TemplateURL"] == "infra/proxy.yaml"
    assert root["Proxy"]["DependsOn"] == "Migrations"
    assert root["Migrations"]["Type"].startswith("Custom::")
    assert "AWS::RDS::DBProxyTargetGroup" not in str(DOCUMENT)


def test_the_readers_endpoint_reads() -> None:
    stack = made(Engine="aurora-postgresql")
    endpoint = stack.properties("ProxyReaderEndpoint")
    assert (endpoint["DBProxyName"], endpoint["TargetRole"]) == ("Proxy", "READ_ONLY")
    assert endpoint["VpcSecurityGroupIds"] == [NEEDED["ProxySecurityGroupId"]]
    assert endpoint["VpcSubnetIds"] == stack.properties("Proxy")["VpcSubnetIds"] == NEEDED["SubnetIds"].split(",")


# ── everything ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("given", EVERY, ids=lambda given: " ".join(given.values()))
def test_no_wildcard_and_nothing_public(given: dict[str, str]) -> None:
    stack = made(**given)
    text = json.dumps({name: each for name, each in stack.resources.items() if name != "Key"})
    assert '"Resource": "*"' not in text
    assert not re.search(r'"[a-z0-9-]+:\*"', text)
    assert '"PubliclyAccessible": true' not in text
    assert "0.0.0.0/0" not in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RotatorSecurityGroupId": "", "ApplicationSecretArn": "secret"}, "ApplicationSecretArn needs Rotator"),
        ({"RotatorSecurityGroupId": "", "ApplicationSecretArn": ""}, None),
        ({"RotatorSecurityGroupId": "sg-0c1d2e3f405162738", "ApplicationSecretArn": "secret"}, None),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, str], said: str | None) -> None:
    sentences = refusals(PROXY_DOCUMENT, given)
    assert (sentences == []) if said is None else (len(sentences) == 1 and said in sentences[0])
