"""The migrate function: a custom resource of the stack, and something to invoke by hand.

It answers CloudFormation whatever happens, because otherwise a deployment waits for an hour. So it imports what may be
missing or broken only once it can answer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workers.migrate.custom_resource import Request
from workers.runtime.failures import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aws_lambda_powertools.utilities.typing import LambdaContext

    from workers.migrate.deployment import Deployment, Report

#: Kept back of the function's time: END_S and a request to cancel, then all attempts to answer (19 s).
RESERVE_S = 30.0
#: What a run that was told to end has for it; then it is answered for.
END_S = 6.0
_POLL_S = 0.25


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Bring the database up to date. Without a ResponseURL the answer is the report (deployment.Report).

    Delete touches nothing: rows outlive their stack. Raises where invoked by hand, or if CloudFormation cannot be told.
    """
    if "ResponseURL" not in event:
        return _deploy(context, lambda _: None).as_dict()
    request = Request(event, f"{os.environ.get('FLEET_NAME') or event.get('LogicalResourceId', 'fleet')}-schema")
    if request.kind == "Delete":
        request.succeeded({})
        return {}
    try:
        report = _deploy(context, request.failed)
    except Exception as error:  # everything is answered for
        request.failed(f"{error} (log stream {context.log_stream_name})")
        return {}
    data = {"Version": f"{report.version:04d}", "Applied": ",".join(report.applied), "Newer": ",".join(report.newer)}
    request.succeeded(data | {"Warnings": "; ".join(report.warnings)})
    return report.as_dict()


class MigrateError(Exception):
    """Why the database was not brought up to date, fit to be shown: where, what PostgreSQL said, no password."""


def _deploy(context: LambdaContext, overdue: Callable[[str], object]) -> Report:
    """Run it, within the function's time; `overdue` is told if it does not even end. Raises MigrateError."""
    # Now that there is somebody to tell: a broken artifact, too, is a failed deployment with a reason.
    try:
        from aws_lambda_powertools.logging import Logger  # noqa: PLC0415

        from workers.migrate.deployment import Deployment  # noqa: PLC0415
        from workers.migrate.secrets_manager import SecretsManager  # noqa: PLC0415
        from workers.migrate.settings import MigrateSettings  # noqa: PLC0415

        logger = Logger(service="migrate")

        def remaining_s() -> float:
            return context.get_remaining_time_in_millis() / 1000

        deployment = Deployment(MigrateSettings.from_env(os.environ), SecretsManager, remaining_s)
    except Exception as error:
        logging.getLogger(__name__).exception("cannot_start")
        raise MigrateError(f"{type(error).__name__}: {error}") from error
    try:
        with _watched(deployment, remaining_s, overdue):
            report = deployment.run()
    except Exception as error:
        why = deployment.redacted(_explained(deployment, error))
        # A traceback where it is a fault of ours; PostgreSQL's errors would come with rows.
        unexpected = not (isinstance(error, WorkerError) or hasattr(error, "diag"))
        logger.error("migration_failed", why=why, doing=deployment.doing, exc_info=unexpected)  # noqa: TRY400
        raise MigrateError(why) from None
    say = logger.warning if report.warnings else logger.info
    say("migrated", **report.as_dict())
    return report


@contextmanager
def _watched(
    deployment: Deployment, remaining_s: Callable[[], float], overdue: Callable[[str], object]
) -> Iterator[None]:
    """End the run when its time is up, and if it does not end, tell `overdue`."""
    done = threading.Event()

    def watch() -> None:
        while remaining_s() > RESERVE_S:
            if done.wait(_POLL_S):
                return
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            # Again and again, because a request to cancel that comes between two statements ends neither.
            deployment.end()
            if done.wait(_POLL_S):
                return
        overdue(_late(deployment))

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        # It may be in the middle of an answer; a frozen environment would leave that half sent.
        watcher.join()


def _late(deployment: Deployment) -> str:
    return f"timed out while {deployment.doing}; nothing is half done"


def _explained(deployment: Deployment, error: Exception) -> str:
    if deployment.ended:
        return _late(deployment)
    if isinstance(error, WorkerError):
        return str(error)
    said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error) or type(error).__name__
    sqlstate = getattr(error, "sqlstate", None)
    return f"{deployment.doing}: {said}" + (f" (SQLSTATE {sqlstate})" if sqlstate else "")
