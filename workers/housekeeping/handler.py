"""Housekeeping: what Lambda calls on a schedule (template.yaml, HousekeepingSchedule)."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from workers.housekeeping.housekeeper import Housekeeper
from workers.housekeeping.settings import HousekeepingSettings
from workers.housekeeping.telemetry import Telemetry
from workers.runtime.database import Database

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  (a schedule says nothing)
    """Do what is due; the answer is the report (housekeeper.Report), for whoever invokes it by hand."""
    return warm_housekeeper().run(lambda: context.get_remaining_time_in_millis() / 1000).as_dict()


@cache
def warm_housekeeper() -> Housekeeper:
    """This environment's, made once at cold start. Raises SettingsError when the environment is wrong."""
    settings = HousekeepingSettings.from_env(os.environ)
    return Housekeeper(Database(settings), settings, Telemetry())
