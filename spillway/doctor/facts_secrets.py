"""The secrets of the database, by what Secrets Manager says about them. Their values are never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from spillway.doctor.facts import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret. `every_days` is its rotation's interval, None where that is a schedule expression or there is none.

    `stages` are the staging labels of each version, such as AWSCURRENT. `owner` is the service that manages it.
    """

    name: str
    rotates: bool
    every_days: int | None
    created_at: datetime | None
    rotated_at: datetime | None
    next_at: datetime | None
    deleted_at: datetime | None
    stages: Mapping[str, tuple[str, ...]]
    owner: str


def load_application(facts: Facts) -> Secret | None:
    """The secret that the proxy logs in with; None where the stack made none."""
    for one in facts.fleet.of_type("AWS::SecretsManager::Secret", "Database"):
        return _secret(facts, one.physical_id)
    return None


def load_master(facts: Facts) -> Secret | None:
    """The secret of the master user; None where RDS keeps none, or the stack made no database."""
    instance = facts.instance
    if instance is None or not instance.master_secret:
        return None
    return _secret(facts, instance.master_secret)


def _secret(facts: Facts, arn: str) -> Secret:
    about = facts.fleet.client("secretsmanager").describe_secret(SecretId=arn)
    return Secret(
        name=about["Name"],
        rotates=about.get("RotationEnabled", False),
        every_days=about.get("RotationRules", {}).get("AutomaticallyAfterDays"),
        created_at=about.get("CreatedDate"),
        rotated_at=about.get("LastRotatedDate"),
        next_at=about.get("NextRotationDate"),
        deleted_at=about.get("DeletedDate"),
        stages={version: tuple(labels) for version, labels in about.get("VersionIdsToStages", {}).items()},
        owner=about.get("OwningService", ""),
    )
