"""A failover on AWS: of an RDS instance to its standby, or of a cluster to one of its readers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from spillway import aws
from spillway.drill.failover import Note
from spillway.errors import SpillwayError
from spillway.fleet.proxies import find_proxy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spillway.fleet.fleet import Fleet

EVERY_S = 1.0
#: RDS events listed in the report.
LISTED_EVENTS = 20
_AVAILABLE = "available"


class AwsFailover:
    """The database of a deployed fleet: the stack's own, else the one that its proxy leads to.

    Making one asks RDS which it is. Raises SpillwayError where there is none.
    """

    every = EVERY_S

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rds = fleet.client("rds")
        self._proxy = find_proxy(fleet)
        self.cluster, self.identifier = self._find()
        kind = "cluster" if self.cluster else "instance"
        self.title = f"the {kind} {self.identifier}"
        self.asks = (
            f"looks at the target health of the proxy {self._proxy}" if self._proxy else f"looks at {self.title}"
        )
        self._before = ""

    def check(self) -> None:
        (self._check_cluster if self.cluster else self._check_instance)()
        if trouble := self.ask():
            raise SpillwayError(
                f"The database does not answer now: {trouble}.",
                "Mend that first; `spillway doctor` says more. A fleet in trouble gets no drill.",
            )
        self._before = self._writer()

    def ask(self) -> str:
        """The health of the proxy's writer, or the database's own state where the fleet has no proxy."""
        if self._proxy is None:
            state = (self._cluster()["Status"]) if self.cluster else self._instance()["DBInstanceStatus"]
            return "" if state == _AVAILABLE else f"{self.title} is {state}"
        writers = [one for one in self._targets() if one.get("Role") == "READ_WRITE"]
        states = [one.get("TargetHealth", {}) for one in writers]
        if any(state.get("State") == "AVAILABLE" for state in states):
            return ""
        if not states:
            return "the proxy has no writer"
        return f"target {states[0].get('State', 'UNKNOWN')} {states[0].get('Reason', '')}".rstrip()

    def start(self) -> str:
        # One try: a second one, after an answer that was lost, could fail over twice.
        once = aws.client("rds", None, self._fleet.region, self._fleet.profile, attempts=1)
        if self.cluster:
            once.failover_db_cluster(DBClusterIdentifier=self.identifier)
            return f"failover of the cluster {self.identifier}, whose writer was {self._before}"
        once.reboot_db_instance(DBInstanceIdentifier=self.identifier, ForceFailover=True)
        return f"reboot of the instance {self.identifier} with failover, from {self._before}"

    def notes(self, since: float) -> Iterable[Note]:
        """RDS's events, which are sent by best effort ("Monitoring Amazon RDS events"), and the writer now."""
        yield from list(self._events(since))[:LISTED_EVENTS]
        now = self._writer()
        moved = f"the writer is {now}, before it was {self._before}"
        yield Note(datetime.now(UTC).timestamp(), moved if now != self._before else f"the writer is {now}, as before")

    def rows(self, run: str) -> Mapping[str, int] | None:  # noqa: ARG002
        """The database is in a private network."""
        return None

    def close(self) -> None:
        """Every question ends by itself."""

    def _find(self) -> tuple[bool, str]:
        """Whether it is a cluster, and its identifier."""
        for kind, cluster in (("AWS::RDS::DBCluster", True), ("AWS::RDS::DBInstance", False)):
            if (own := next(self._fleet.of_type(kind), None)) is not None and own.physical_id:
                return cluster, own.physical_id
        for target in self._targets() if self._proxy else ():
            if target["Type"] == "TRACKED_CLUSTER":
                return True, target["RdsResourceId"]
            if target["Type"] == "RDS_INSTANCE":
                tracked = target.get("TrackedClusterId")
                return bool(tracked), tracked or target["RdsResourceId"]
        raise SpillwayError(
            f"{self._fleet.title} has no database of its own, and no RDS Proxy that leads to one.",
            "Deploy it with ProxyName, or start the failover where the database is kept.",
        )

    def _check_cluster(self) -> None:
        found = self._cluster()
        self._require_available(found["Status"])
        if len(found["DBClusterMembers"]) < 2:
            raise SpillwayError(
                f"The cluster {self.identifier} has no reader that could take over: a failover is not possible.",
                "Deploy with MultiAz=true first.",
            )

    def _check_instance(self) -> None:
        found = self._instance()
        self._require_available(found["DBInstanceStatus"])
        if not found.get("MultiAZ"):
            raise SpillwayError(
                f"The instance {self.identifier} has no standby (it is not Multi-AZ): a failover is not possible, "
                "and a reboot would be nothing but an outage.",
                "Deploy with MultiAz=true first.",
            )

    def _require_available(self, state: str) -> None:
        if state != _AVAILABLE:
            raise SpillwayError(
                f"{self.title[0].upper()}{self.title[1:]} is {state}, not {_AVAILABLE}.",
                "Wait until it is; a fleet in trouble gets no drill.",
            )

    def _writer(self) -> str:
        if self.cluster:
            writers = [m["DBInstanceIdentifier"] for m in self._cluster()["DBClusterMembers"] if m["IsClusterWriter"]]
            return ", ".join(writers) or "unknown"
        return f"{self._instance().get('AvailabilityZone', 'unknown')}"

    def _cluster(self) -> dict[str, Any]:
        [found] = self._rds.describe_db_clusters(DBClusterIdentifier=self.identifier)["DBClusters"]
        return dict(found)

    def _instance(self) -> dict[str, Any]:
        [found] = self._rds.describe_db_instances(DBInstanceIdentifier=self.identifier)["DBInstances"]
        return dict(found)

    def _targets(self) -> list[dict[str, Any]]:
        return list(self._rds.describe_db_proxy_targets(DBProxyName=self._proxy)["Targets"])

    def _events(self, since: float) -> Iterator[Note]:
        found = self._rds.describe_events(
            SourceType="db-cluster" if self.cluster else "db-instance",
            SourceIdentifier=self.identifier,
            StartTime=datetime.fromtimestamp(since, UTC),
        )
        for event in found["Events"]:
            yield Note(event["Date"].timestamp(), f"RDS: {event['Message'].strip()}")
