"""Checks on the database's secrets: they rotate, have done so lately, and no rotation is stuck."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_secrets import Secret
    from spillway.doctor.finding import Finding

#: Secrets Manager rotates some time during the day on which it is due.
GRACE = timedelta(days=1)
CURRENT = "AWSCURRENT"


@check("secret-rotation", area="secrets", needs=deployed)
def rotation(facts: Facts) -> Iterator[Finding]:
    """The proxy's secret is rotated on schedule."""
    if (secret := facts.application_secret) is None:
        yield _no_secret(facts)
        return
    again = f"aws secretsmanager rotate-secret --secret-id {secret.name}"
    fix = f"See aws logs tail /aws/lambda/{facts.fleet.name}-rotate-secret --since 2d for the reason, then {again}."
    yield from _rotation(secret, facts.now, fix)


@check("secret-pending", area="secrets", needs=deployed)
def pending(facts: Facts) -> Iterator[Finding]:
    """No rotation of the proxy's secret is stuck half-way."""
    if (secret := facts.application_secret) is None:
        yield _no_secret(facts)
        return
    # After a rotation that went well the label is gone, or with AWSCURRENT; else RotateSecret takes the rotation to be
    # still in progress (Secrets Manager API Reference, "RotateSecret").
    stuck = [version for version, labels in secret.stages.items() if "AWSPENDING" in labels and CURRENT not in labels]
    for version in stuck:
        said = "a rotation is under way, or has stopped half-way: one version is AWSPENDING only"
        fix = f"If it stays so for minutes, see aws logs tail /aws/lambda/{facts.fleet.name}-rotate-secret, then "
        fix += f"aws secretsmanager rotate-secret --secret-id {secret.name}. If that fails, too, take the label away: "
        fix += f"aws secretsmanager update-secret-version-stage --secret-id {secret.name} --version-stage AWSPENDING "
        yield warn(secret.name, said, f"{fix}--remove-from-version-id {version}.")
    if not stuck:
        yield passed(secret.name, "no rotation is half-way")


@check("secret-master", area="secrets", needs=deployed)
def master(facts: Facts) -> Iterator[Finding]:
    """RDS keeps the master user's password and rotates it."""
    if (instance := facts.instance) is None:
        yield skip(facts.fleet.name, "the database is yours, not the stack's")
        return
    modify = f"aws rds modify-{instance.kind} --{instance.kind}-identifier {instance.name}"
    if not instance.master_secret:
        fix = f"{modify} --manage-master-user-password"
        yield fail(instance.name, "somebody else than RDS keeps the master user's password", fix)
    elif instance.master_secret_status == "impaired":  # noqa: S105  (a status)
        said = "RDS cannot rotate the master user's password (impaired): it no longer reaches the secret or its key"
        fix = f"Let RDS use both again, or {modify} --no-manage-master-user-password and then the opposite."
        yield fail(instance.name, said, fix)
    else:
        secret = facts.master_secret
        assert secret is not None  # noqa: S101  (its ARN is known)
        yield from _rotation(secret, facts.now, f"{modify} --rotate-master-user-password --apply-immediately")


def _rotation(secret: Secret, now: datetime, fix: str) -> Iterator[Finding]:
    """`fix` is what to do about a rotation that has failed."""
    if secret.deleted_at is not None:
        said = f"it is deleted as of {secret.deleted_at:%Y-%m-%d}"
        yield fail(secret.name, said, f"aws secretsmanager restore-secret --secret-id {secret.name}")
    elif not secret.rotates:
        rules = "--rotation-rules AutomaticallyAfterDays=30"
        switch = f"aws secretsmanager rotate-secret --secret-id {secret.name} {rules}"
        yield fail(secret.name, "it is not rotated", switch)
    elif (due := _due(secret)) is not None and now > due + GRACE:
        last = f"last on {secret.rotated_at:%Y-%m-%d}" if secret.rotated_at else "never yet"
        yield fail(secret.name, f"its rotation was due on {due:%Y-%m-%d} ({last})", fix)
    elif secret.rotated_at:
        yield passed(secret.name, f"it was rotated on {secret.rotated_at:%Y-%m-%d}")
    else:
        yield passed(secret.name, "its first rotation is not due yet")


def _due(secret: Secret) -> datetime | None:
    """When it should be rotated next; the password that it began with is good for one interval, too."""
    since = secret.rotated_at or secret.created_at
    if secret.every_days is not None and since is not None:
        return since + timedelta(days=secret.every_days)
    return secret.next_at


def _no_secret(facts: Facts) -> Finding:
    if facts.stack.parameters.get("ProxyAuthentication") == "iam":
        return passed(facts.fleet.name, "the proxy logs in with IAM: there is no secret to rotate")
    return skip(facts.fleet.name, "this stack has made no secret")
