"""Checks on the database as RDS runs it: encryption, backups, standby, certificate, what is pending."""

from __future__ import annotations

from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING

from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_instance import Instance
    from spillway.doctor.finding import Finding
    from spillway.doctor.registry import Look

    LookAtInstance = Callable[[Facts, Instance], Iterator[Finding]]

#: Of a certificate: time enough to plan the restart that changing the authority may need.
SOON = timedelta(days=90)
#: States that end by themselves (RDS User Guide, "Viewing Amazon RDS DB instance status").
PASSING = frozenset(
    {
        "backing-up",
        "configuring-enhanced-monitoring",
        "configuring-log-exports",
        "failing-over",
        "maintenance",
        "modifying",
        "rebooting",
        "renaming",
        "storage-initialization",
        "storage-optimization",
        "upgrading",
    }
)


def _of_the_instance(look: LookAtInstance) -> Look:
    @wraps(look)
    def looks(facts: Facts) -> Iterator[Finding]:
        if (instance := facts.instance) is None:
            yield skip(facts.fleet.name, "the database is yours, not the stack's")
        else:
            yield from look(facts, instance)

    return looks


@check("instance-status", area="instance", needs=deployed)
@_of_the_instance
def status(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database and its members are available."""
    found = {instance.name: instance.status} | {member.name: member.status for member in instance.members}
    for name, is_ in found.items():
        if is_ == "available":
            yield passed(name, "it is available")
        elif is_ in PASSING:
            yield warn(name, f"it is {is_}", "Look again in some minutes.")
        else:
            kind = instance.kind if name == instance.name else "db-instance"
            fix = f"aws rds describe-events --duration 1440 --source-type {kind} --source-identifier {name}"
            yield fail(name, f"it is {is_}", f"See what happened: {fix}.")


@check("instance-public", area="instance", needs=deployed)
@_of_the_instance
def public(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database has no public address."""
    for one in instance.members:
        if one.public:
            fix = f"aws rds modify-db-instance --db-instance-identifier {one.name} --no-publicly-accessible"
            yield fail(one.name, "it has a public address", fix)
        else:
            yield passed(one.name, "it has no public address")
    if not instance.members:
        yield fail(
            instance.name,
            "the cluster has no instance",
            "Make it one: aws rds create-db-instance --db-cluster-identifier.",
        )


@check("instance-encryption", area="instance", needs=deployed)
@_of_the_instance
def encryption(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database's storage is encrypted."""
    if instance.encrypted:
        yield passed(instance.name, "its storage is encrypted")
    else:
        fix = "It cannot be switched on later: restore an encrypted copy of a snapshot (copy-db-snapshot --kms-key-id)."
        yield fail(instance.name, "its storage is not encrypted", fix)


@check("instance-iam", area="instance", needs=deployed)
@_of_the_instance
def iam(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database takes IAM tokens, which the direct route and ProxyAuthentication=iam need."""
    if instance.iam:
        yield passed(instance.name, "it takes IAM tokens")
    else:
        yield fail(instance.name, "it takes no IAM tokens", _modify(instance, "--enable-iam-database-authentication"))


@check("instance-backups", area="instance", needs=deployed)
@_of_the_instance
def backups(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database is backed up."""
    if instance.backup_days > 0:
        yield passed(instance.name, f"backups are kept for {instance.backup_days} days")
    else:
        fix = "Deploy with BackupRetentionDays=14, or " + _modify(instance, "--backup-retention-period 14")
        yield fail(instance.name, "it has no automatic backups", fix)


@check("instance-protection", area="instance", needs=deployed)
@_of_the_instance
def protection(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database cannot be deleted by mistake."""
    if instance.deletion_protection:
        yield passed(instance.name, "deletion protection is on")
    else:
        fix = f"Deploy with DeletionProtection=on, or {_modify(instance, '--deletion-protection')}"
        yield warn(instance.name, "deletion protection is off", fix)


@check("instance-standby", area="instance", needs=deployed)
@_of_the_instance
def standby(_facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The database has a standby in another availability zone."""
    if instance.multi_az:
        yield passed(instance.name, "it has a reader to fail over to" if instance.cluster else "it has a standby")
    else:
        fix = "Deploy with MultiAz=true; false is for development."
        yield warn(instance.name, "nothing takes over when it fails", fix)


@check("instance-certificate", area="instance", needs=deployed)
@_of_the_instance
def certificate(facts: Facts, instance: Instance) -> Iterator[Finding]:
    """The certificates of the database and of its authority are valid for another 90 days."""
    for one in instance.members:
        ends = [
            ("its certificate", one.valid_till),
            (f"its authority {one.authority}", facts.authorities.get(one.authority)),
        ]
        known = [(what, till) for what, till in ends if till is not None]
        if not known:
            yield skip(one.name, "RDS does not say until when its certificate is valid")
            continue
        what, till = min(known, key=lambda pair: pair[1])
        left = till - facts.now
        fix = f"aws rds modify-db-instance --db-instance-identifier {one.name} --ca-certificate-identifier ID, one of "
        fix += "aws rds describe-certificates that workers/runtime/rds-ca.pem has, too."
        if left <= timedelta(0):
            yield fail(one.name, f"{what} expired on {_day(till)}", fix)
        elif left < SOON:
            yield warn(one.name, f"{what} expires on {_day(till)}, in {left.days} days", fix)
        else:
            yield passed(one.name, f"{what} is the first to expire, on {_day(till)}")


@check("instance-maintenance", area="instance", needs=deployed)
@_of_the_instance
def maintenance(facts: Facts, instance: Instance) -> Iterator[Finding]:
    """No maintenance of the database is pending."""
    for one in facts.maintenance:
        due = f", due on {_day(one.due)}" if one.due else ""
        said = f"{one.action} is pending{due}: {one.description or 'RDS says no more'}"
        fix = "Choose the time: aws rds apply-pending-maintenance-action --opt-in-type next-maintenance "
        yield warn(one.resource, said, f"{fix}--apply-action {one.action} --resource-identifier {one.arn}.")
    if not facts.maintenance:
        yield passed(instance.name, "no maintenance is pending")


def _modify(instance: Instance, change: str) -> str:
    return f"aws rds modify-{instance.kind} --{instance.kind}-identifier {instance.name} {change}"


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d}"
