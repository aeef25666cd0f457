"""Reads a fleet on AWS: every service is asked at once, and one that refuses leaves the rest of the screen whole."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from spillway.aws_errors import EXPIRED, WRONG_CREDENTIALS, code_of, explained, is_denied, missing_action
from spillway.stack.snapshot import depth
from spillway.status import metrics
from spillway.status.metrics import AGE, CONCURRENCY
from spillway.status.reading import Alarm, GovernorReading, MappingReading, ProxyReading, Reading, WorkerReading
from workers.governor.aws import Aws
from workers.governor.load import Health
from workers.governor.record import NOTE_TAG, RECORD_TAG, Record, Setting
from workers.governor.settings import GovernorSettings
from workers.runtime.settings import SettingsError
from workers.runtime.telemetry import BREAKER_OPEN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from spillway.fleet.fleet import Fleet, Worker
    from spillway.status.metrics import Metrics

_T = TypeVar("_T")

#: Calls at once. A fleet of four workers takes 24 of 50 to 100 ms each.
CALLS_AT_ONCE = 8
SERVICES = ("sqs", "lambda", "cloudwatch", "rds")
#: The governor's logical id in template.yaml.
GOVERNOR = "GovernorFunction"
#: Values of the governor's tag that leave a mapping to it.
_HANDED_OVER = ("", "on")
_HEALTH = {Health.AVAILABLE: True, Health.DOWN: False, Health.UNKNOWN: None}


class AwsReader:
    """Reads one fleet on AWS, as often as asked: a look makes one GetMetricData call, which costs by the metric."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Here, one after the other: making clients is not thread-safe, using them is.
        self._clients = {name: fleet.client(name, connections=CALLS_AT_ONCE) for name in SERVICES}

    def read(self) -> Reading:
        """What the fleet is doing now.

        What one service refuses is in the reading's problems. Raises botocore's errors where none can be reached, or
        none takes the credentials.
        """
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            return _Look(self._fleet, self._clients, pool).reading()


class _Look:
    """One look: what was asked, and what went wrong."""

    def __init__(self, fleet: Fleet, clients: Mapping[str, Any], pool: ThreadPoolExecutor) -> None:
        self._fleet, self._pool = fleet, pool
        self._sqs, self._lambda, self._cloudwatch = clients["sqs"], clients["lambda"], clients["cloudwatch"]
        self._aws = Aws(self._lambda, clients["rds"], self._cloudwatch)
        self._problems: dict[str, str] = {}

    def reading(self) -> Reading:
        fleet, workers = self._fleet, self._fleet.workers.values()
        settings = self._pool.submit(self._governor_settings)
        queues = {one.name: self._pool.submit(depth, self._sqs, one.queue_url, one.dead_letter_url) for one in workers}
        mappings = [
            self._pool.submit(self._lambda.get_event_source_mapping, UUID=one.physical_id)
            for one in fleet.of_type("AWS::Lambda::EventSourceMapping", "")
        ]
        reserved = {
            one.name: self._pool.submit(self._lambda.get_function_concurrency, FunctionName=one.function)
            for one in workers
        }
        alarms = self._pool.submit(self._alarms)
        governed = self._answer("governor", settings)
        found = self._by_worker([self._answer("mappings", one) for one in mappings])
        proxy_name = self._proxy_name(governed)
        asked = list(metrics.queries(fleet, proxy_name))
        measured = self._pool.submit(metrics.read, self._cloudwatch, asked, datetime.now(UTC))
        health = self._pool.submit(self._aws.health, proxy_name) if proxy_name else None
        tags = {
            name: self._pool.submit(self._lambda.list_tags, Resource=one["EventSourceMappingArn"])
            for name, one in found.items()
            if governed is not None
        }
        values = self._answer("metrics", measured)
        noted = {name: (self._answer("governor", one) or {}).get("Tags", {}) for name, one in tags.items()}
        depths = {name: self._answer("queues", one) for name, one in queues.items()}
        return Reading(
            fleet=fleet.name,
            local=False,
            region=fleet.region,
            taken_at=time.time(),
            queues={name: one for name, one in depths.items() if one is not None},
            workers={
                one.name: _worker(
                    one, values, found.get(one.name), self._answer("reserved concurrency", reserved[one.name])
                )
                for one in workers
            },
            proxy=self._proxy(proxy_name, values, health),
            governor=None if governed is None else _governor(governed, found, noted),
            alarms=self._answer("alarms", alarms) or [],
            problems=self._problems,
        )

    def _answer(self, part: str, asked: Future[_T]) -> _T | None:
        """What the call returned. What AWS refuses becomes the part's problem; raises what concerns every call."""
        from botocore.exceptions import ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

        try:
            return asked.result()
        except ClientError as error:
            if code_of(error) in EXPIRED | WRONG_CREDENTIALS:
                raise
            denied = f"no permission: {missing_action(error)}" if is_denied(error) else ""
            self._problems.setdefault(part, denied or explained(error).message)
        except SettingsError as error:
            self._problems.setdefault(part, f"its environment is wrong: {error}")
        return None

    def _governor_settings(self) -> GovernorSettings | None:
        function = next(
            (one for one in self._fleet.of_type("AWS::Lambda::Function", "") if one.logical_id == GOVERNOR), None
        )
        if function is None or not function.physical_id:
            return None
        configuration = self._lambda.get_function_configuration(FunctionName=function.physical_id)
        return GovernorSettings.from_env(configuration.get("Environment", {}).get("Variables", {}))

    def _alarms(self) -> list[Alarm]:
        """The fleet's own in ALARM, the latest first. A name that begins like them may be another fleet's."""
        ours = {one.physical_id for one in self._fleet.of_type("AWS::CloudWatch::Alarm")}
        pages = self._cloudwatch.get_paginator("describe_alarms").paginate(
            AlarmNamePrefix=f"{self._fleet.name}-", StateValue="ALARM"
        )
        found = [
            alarm
            for page in pages
            for alarm in page["MetricAlarms"]
            if alarm["AlarmName"] in ours and alarm["StateValue"] == "ALARM"
        ]
        found.sort(key=lambda alarm: alarm["StateUpdatedTimestamp"], reverse=True)
        return [Alarm(name=one["AlarmName"], since=one["StateUpdatedTimestamp"].isoformat()) for one in found]

    def _by_worker(self, mappings: list[dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
        queues = {worker.queue: worker.name for worker in self._fleet.workers.values()}
        named = ((queues.get(one["EventSourceArn"].rpartition(":")[2]), one) for one in mappings if one is not None)
        return {name: one for name, one in named if name is not None}

    def _proxy_name(self, settings: GovernorSettings | None) -> str | None:
        """The stack's own, or the one that it was given."""
        made = next((one.physical_id for one in self._fleet.of_type("AWS::RDS::DBProxy")), None)
        return made or (settings.proxy_name if settings is not None else None) or None

    def _proxy(
        self, name: str | None, values: Metrics | None, health: Future[tuple[Health, str]] | None
    ) -> ProxyReading | None:
        if name is None or health is None:
            return None
        state, said = self._answer("proxy", health) or (None, None)
        available = None if state is None else _HEALTH[state]
        return ProxyReading(name=name, target=said, available=available, **(values.proxy() if values else {}))


def _worker(
    worker: Worker, values: Metrics | None, mapping: dict[str, Any] | None, reserved: dict[str, Any] | None
) -> WorkerReading:
    if values is None:
        return WorkerReading(mapping=_mapping(mapping, reserved, None))
    return WorkerReading(
        oldest_s=values.latest(worker.name, AGE),
        per_s=values.per_s(worker.name),
        turned_away=round(values.total(worker.name, BREAKER_OPEN)),
        # A function that does not run publishes nothing.
        mapping=_mapping(mapping, reserved, round(values.latest(worker.name, CONCURRENCY) or 0)),
    )


def _mapping(
    mapping: dict[str, Any] | None, reserved: dict[str, Any] | None, invoking: int | None
) -> MappingReading | None:
    if mapping is None:
        return None
    return MappingReading(
        state=mapping["State"],
        invoking=invoking,
        maximum=mapping.get("ScalingConfig", {}).get("MaximumConcurrency"),
        reserved=(reserved or {}).get("ReservedConcurrentExecutions"),
    )


def _governor(
    settings: GovernorSettings, mappings: dict[str, dict[str, Any]], tags: dict[str, dict[str, str]]
) -> GovernorReading:
    deployed = {one.worker: one.maximum for one in settings.mappings}
    holds, hands_off = {}, {}
    for worker, noted in tags.items():
        note, record = noted.get(NOTE_TAG, "").strip().lower(), Record.decode(noted.get(RECORD_TAG))
        concurrency = mappings[worker].get("ScalingConfig", {}).get("MaximumConcurrency")
        enabled = mappings[worker]["State"] not in ("Disabled", "Disabling")
        maximum = deployed.get(worker)
        if note not in _HANDED_OVER:
            hands_off[worker] = note
        elif record is not None and not record.manual and Setting(enabled, concurrency) != Setting(True, maximum):
            holds[worker] = f"{concurrency} of {maximum}" if enabled else "stopped"
    return GovernorReading(mode=settings.mode, holds=holds, hands_off=hands_off)
