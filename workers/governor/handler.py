"""The governor: what Lambda calls every minute."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from workers.governor.aws import clients
from workers.governor.governor import Governor
from workers.governor.settings import GovernorSettings
from workers.governor.telemetry import Telemetry

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  (a schedule says nothing)
    """Look and act once; the answer is the report (governor.Report), for whoever invokes it by hand."""
    return warm_governor().run(datetime.now(UTC)).as_dict()


@cache
def warm_governor() -> Governor:
    """This environment's, made once at cold start. Raises SettingsError when the environment is wrong."""
    settings = GovernorSettings.from_env(os.environ)
    return Governor(clients(), settings, Telemetry(settings))
