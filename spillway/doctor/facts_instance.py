"""The database that the stack made, as RDS describes it: an instance, or an Aurora cluster and its members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from spillway.doctor.facts import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An instance. `valid_till` is the end of its server's certificate, `authority` who signed that."""

    name: str
    arn: str
    status: str
    public: bool
    authority: str
    valid_till: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance, which is then its own only member, or a cluster. `backup_days` is 0 where backups are off.

    `master_secret` is the ARN of the master user's secret, '' where RDS does not keep the password.
    """

    name: str
    cluster: bool
    arn: str
    status: str
    groups: tuple[str, ...]
    encrypted: bool
    iam: bool
    backup_days: int
    deletion_protection: bool
    multi_az: bool
    master_secret: str
    master_secret_status: str
    members: tuple[Member, ...]

    @property
    def kind(self) -> str:
        """As the AWS CLI names it in options: db-instance or db-cluster."""
        return "db-cluster" if self.cluster else "db-instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """A pending action on `resource`, whose ARN is `arn`; `due` is when RDS applies it by itself, if it will."""

    resource: str
    arn: str
    action: str
    description: str
    due: datetime | None


def load(facts: Facts) -> Instance | None:
    """The database as RDS describes it; None where the stack made none."""
    for one in facts.fleet.of_type("AWS::RDS::DBCluster", "Database"):
        return _cluster(facts.fleet.client("rds"), one.physical_id)
    for one in facts.fleet.of_type("AWS::RDS::DBInstance", "Database"):
        return _instance(facts.fleet.client("rds"), one.physical_id)
    return None


def load_authorities(facts: Facts) -> dict[str, datetime]:
    """When RDS's certificate authorities expire, by identifier."""
    pages = facts.fleet.client("rds").get_paginator("describe_certificates").paginate()
    return {one["CertificateIdentifier"]: one["ValidTill"] for page in pages for one in page["Certificates"]}


def load_maintenance(facts: Facts) -> tuple[Maintenance, ...]:
    """What is pending on the database and its members."""
    instance = facts.instance
    if instance is None:
        return ()
    client = facts.fleet.client("rds")
    arns = dict.fromkeys((instance.arn, *(member.arn for member in instance.members)))
    return tuple(action for arn in arns for action in _pending(client, arn))


def _cluster(client: Any, name: str) -> Instance:
    (about,) = client.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"]
    wanted = [{"Name": "db-cluster-id", "Values": [name]}]
    pages = client.get_paginator("describe_db_instances").paginate(Filters=wanted)
    return Instance(
        cluster=True,
        name=name,
        arn=about["DBClusterArn"],
        status=about["Status"],
        encrypted=about["StorageEncrypted"],
        iam=about.get("IAMDatabaseAuthenticationEnabled", False),
        # A cluster's own MultiAZ only says that its members are in several zones.
        multi_az=len(about.get("DBClusterMembers", ())) > 1,
        members=tuple(_member(one) for page in pages for one in page["DBInstances"]),
        **_common(about),
    )


def _instance(client: Any, name: str) -> Instance:
    (about,) = client.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"]
    return Instance(
        cluster=False,
        name=name,
        arn=about["DBInstanceArn"],
        status=about["DBInstanceStatus"],
        encrypted=about["StorageEncrypted"],
        iam=about.get("IAMDatabaseAuthenticationEnabled", False),
        multi_az=about.get("MultiAZ", False),
        members=(_member(about),),
        **_common(about),
    )


def _common(about: Mapping[str, Any]) -> dict[str, Any]:
    secret = about.get("MasterUserSecret", {})
    return {
        "groups": tuple(one["VpcSecurityGroupId"] for one in about.get("VpcSecurityGroups", ())),
        "backup_days": about.get("BackupRetentionPeriod", 0),
        "deletion_protection": about.get("DeletionProtection", False),
        "master_secret": secret.get("SecretArn", ""),
        "master_secret_status": secret.get("SecretStatus", ""),
    }


def _member(about: Mapping[str, Any]) -> Member:
    certificate = about.get("CertificateDetails", {})
    return Member(
        name=about["DBInstanceIdentifier"],
        arn=about["DBInstanceArn"],
        status=about["DBInstanceStatus"],
        public=about.get("PubliclyAccessible", False),
        authority=certificate.get("CAIdentifier") or about.get("CACertificateIdentifier", ""),
        valid_till=certificate.get("ValidTill"),
    )


def _pending(client: Any, arn: str) -> Iterator[Maintenance]:
    pages = client.get_paginator("describe_pending_maintenance_actions").paginate(ResourceIdentifier=arn)
    for page in pages:
        for resource in page["PendingMaintenanceActions"]:
            for one in resource["PendingMaintenanceActionDetails"]:
                yield Maintenance(
                    resource=resource["ResourceIdentifier"].rpartition(":")[2],
                    arn=resource["ResourceIdentifier"],
                    action=one["Action"],
                    description=one.get("Description", ""),
                    due=one.get("CurrentApplyDate") or one.get("ForcedApplyDate") or one.get("AutoAppliedAfterDate"),
                )
