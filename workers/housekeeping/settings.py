"""What housekeeping reads from its environment: the way to the database like every function, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.runtime.settings import MARGIN_S, START_S, FunctionSettings, Reader, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The shortest retention of claims, in days: 14 in a dead-letter queue (SQS's longest retention), and 14 more after a
#: redrive. apply.sql refuses less, too.
MIN_CLAIM_RETENTION_DAYS = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class HousekeepingSettings(FunctionSettings):
    """Housekeeping's configuration. audit_retention_months 0: audit partitions are kept for ever."""

    claim_retention_days: int
    audit_retention_months: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> HousekeepingSettings:
        """Read and check all variables. Raises SettingsError for the first that is wrong."""
        read = Reader(env)
        settings = cls(
            **cls.values(env),
            claim_retention_days=read.integer("CLAIM_RETENTION_DAYS", MIN_CLAIM_RETENTION_DAYS, 3650),
            audit_retention_months=read.integer("AUDIT_RETENTION_MONTHS", 0, 1200),
        )
        settings.check_connection()
        needed = START_S + settings.connect_timeout + settings.attempt
        if needed > settings.function_timeout:
            raise SettingsError(
                f"FUNCTION_TIMEOUT: expected at least {needed:g} s (start {START_S:g} + connect"
                f" {settings.connect_timeout} + borrow {settings.borrow_timeout} + statement"
                f" {settings.statement_timeout} + margin {MARGIN_S:g}), got {settings.function_timeout}"
            )
        return settings
