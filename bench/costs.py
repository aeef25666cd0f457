"""What a fleet costs a month on AWS: the formula behind the tables of docs/deploy.md, which a test compares with it.

Prices are dollars in us-east-1, on demand, without free tiers, savings plans or tax. Everything that is neither a price
nor a number measured here is an assumption, and says so.

    python -m bench.costs
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

#: When the prices below were last compared with the pages named beside them.
PRICES_OF = "June 2026"
HOURS = 730
SECONDS = HOURS * 3600

# https://aws.amazon.com/lambda/pricing/
LAMBDA_GB_SECOND = {"arm64": 0.0000133334, "x86_64": 0.0000166667}
LAMBDA_REQUEST = 0.20 / 1e6
# https://aws.amazon.com/sqs/pricing/ (a request is up to 64 KB)
SQS_REQUEST = 0.40 / 1e6
# https://aws.amazon.com/rds/proxy/pricing/ (the database's vCPUs, two at least; Serverless v2: its ACU, eight at least)
PROXY_VCPU_HOUR, PROXY_LEAST_VCPUS = 0.015, 2
PROXY_ACU_HOUR, PROXY_LEAST_ACUS = 0.015, 8
# https://aws.amazon.com/rds/postgresql/pricing/ (one instance; Multi-AZ is twice that)
INSTANCE_HOUR = {
    "db.t4g.medium": 0.065,
    "db.t4g.large": 0.129,
    "db.r7g.large": 0.239,
    "db.r7g.xlarge": 0.478,
    "db.r7g.2xlarge": 0.956,
    "db.r7g.4xlarge": 1.912,
}
VCPUS = {"medium": 2, "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16}
GP3_GB_MONTH = 0.115
# https://aws.amazon.com/rds/aurora/pricing/ (Aurora Standard)
ACU_HOUR = 0.12
# https://aws.amazon.com/privatelink/pricing/ (the gateway endpoint of S3 is free)
ENDPOINT_HOUR = 0.01
# https://aws.amazon.com/cloudwatch/pricing/
LOGS_GB = 0.50
METRIC_MONTH = 0.30
ALARM_METRIC_MONTH = 0.10
DASHBOARD_MONTH = 3.00
METRIC_READ = 0.01 / 1000
# https://aws.amazon.com/xray/pricing/
TRACE = 5.00 / 1e6
# https://aws.amazon.com/kms/pricing/, https://aws.amazon.com/secrets-manager/pricing/
KEY_MONTH, SECRET_MONTH = 1.00, 0.40
# https://aws.amazon.com/ec2/pricing/on-demand/ ("Data transfer within the same AWS Region": both sides pay)
BETWEEN_ZONES_GB = 0.02

# ── the fleet, as template.yaml and infra/ make it ────────────────────────────────────────────────────────────────────
QUEUES = 4
INTERFACE_ENDPOINTS = 2  # SQS, Secrets Manager
#: Metrics that the fleet's alarms look at; an alarm on an expression pays for each metric in it.
ALARM_METRICS = 75
MEMORY_GB = 0.5
BATCH_SIZE, WINDOW_S = 1000, 1
CLAIM_RETENTION_DAYS = 35
#: Metrics that a busy worker publishes (seven in any batch, three more now and then), housekeeping and the governor.
WORKER_METRICS, HOUSEKEEPING_METRICS, GOVERNOR_METRICS = 10, 5, 4 + QUEUES

# ── measured here ─────────────────────────────────────────────────────────────────────────────────────────────────────
#: Milliseconds from record to committed row by batch size: docs/benchmarks.md, write path, column (a) in us/event.
BATCH_MS = {10: 0.961, 100: 3.05, 1000: 22.2}
#: Bytes of table and index for a claim (300,000 ids of version 7; of version 4: 100).
CLAIM_BYTES = 92
#: Bytes of log for an invocation: the EMF record (606), Lambda's own start and report lines (about 600).
LOG_BYTES = 1_200

# ── assumed ───────────────────────────────────────────────────────────────────────────────────────────────────────────
#: Lambda gives a function of 1,769 MB one vCPU (Developer Guide, "Configure Lambda function memory"); batches were
#: measured with a whole one, database included, so this errs upwards.
VCPU_SHARE = MEMORY_GB * 1024 / 1769
#: Milliseconds for one round trip through the proxy, commit on two availability zones included.
ROUND_TRIP_MS = 8
#: Batches that Lambda gathers side by side at least, and the long polls it keeps open on an idle queue.
POLLERS, POLL_S = 5, 20
#: Messages in a SendMessageBatch, ReceiveMessage, DeleteMessageBatch: ten where there are enough of them.
SQS_BATCH = 10
#: Bytes that an event takes on its way to the database, twice: to the proxy and from there.
WIRE_BYTES, WIRE_HOPS = 1_000, 2
#: X-Ray's default sampling: one invocation a second, and 5 % of the others.
TRACED_FIRST, TRACED_REST = 1, 0.05
#: Gigabytes of flow logs, database and proxy logs of a month that is quiet.
QUIET_LOG_GB = 2
GOVERNOR_S, GOVERNOR_GB = 0.5, 0.25


@dataclass(frozen=True, slots=True)
class Fleet:
    """What of a deployment has a price. `acus`: average capacity of an Aurora Serverless v2; 0 for RDS PostgreSQL."""

    instance: str = "db.r7g.large"
    multi_az: bool = True
    storage_gb: int = 100
    acus: float = 0
    proxy: bool = True
    zones: int = 2
    alarms: bool = True
    governor: bool = True
    secrets: int = 2
    architecture: str = "arm64"


def batches(rate: float) -> tuple[float, float]:
    """Invocations per second and messages in each, at `rate` messages/s on one standard queue."""
    if not rate:
        return 0.0, 0.0
    count = max(min(POLLERS / WINDOW_S, rate), rate / BATCH_SIZE)
    return count, rate / count


def duration_ms(batch: float) -> float:
    """Billed milliseconds of an invocation with `batch` messages."""
    points = sorted(BATCH_MS.items())
    for (low, low_ms), (high, high_ms) in pairwise(points):
        if batch <= high or high == points[-1][0]:
            worked = low_ms + (batch - low) * (high_ms - low_ms) / (high - low)
            return ROUND_TRIP_MS + max(worked, 0.1) / VCPU_SHARE
    raise AssertionError("at least two points")


def month(fleet: Fleet, rate: float = 0) -> dict[str, float]:
    """Dollars a month by what they pay for, at a steady `rate` messages/s on one standard queue."""
    invocations, batch = batches(rate)
    messages = rate * SECONDS
    gb_seconds = invocations * SECONDS * duration_ms(batch) / 1000 * MEMORY_GB if rate else 0.0
    requests = invocations * SECONDS
    if fleet.governor:
        requests += HOURS * 60
        gb_seconds += HOURS * 60 * GOVERNOR_S * GOVERNOR_GB
    idle_queues = QUEUES - bool(rate)
    polls = idle_queues * POLLERS * SECONDS / POLL_S

    if fleet.acus:
        database = fleet.acus * ACU_HOUR * HOURS
        proxy = max(fleet.acus, PROXY_LEAST_ACUS) * PROXY_ACU_HOUR * HOURS
    else:
        copies = 2 if fleet.multi_az else 1
        claims_gb = messages / (HOURS / 24) * CLAIM_RETENTION_DAYS * CLAIM_BYTES / 1e9
        database = copies * HOURS * INSTANCE_HOUR[fleet.instance]
        database += copies * max(fleet.storage_gb, claims_gb) * GP3_GB_MONTH
        vcpus = VCPUS[fleet.instance.rpartition(".")[2]]
        proxy = max(vcpus, PROXY_LEAST_VCPUS) * PROXY_VCPU_HOUR * HOURS

    logs_gb = QUIET_LOG_GB + invocations * SECONDS * LOG_BYTES / 1e9
    metrics = HOUSEKEEPING_METRICS + (WORKER_METRICS if rate else 0) + (GOVERNOR_METRICS if fleet.governor else 0)
    cloudwatch = logs_gb * LOGS_GB + metrics * METRIC_MONTH
    if fleet.alarms:
        cloudwatch += ALARM_METRICS * ALARM_METRIC_MONTH + DASHBOARD_MONTH
    if fleet.governor:
        cloudwatch += HOURS * 60 * (2 * QUEUES + fleet.proxy) * METRIC_READ
    traced = min(invocations, TRACED_FIRST + TRACED_REST * max(invocations - TRACED_FIRST, 0))

    wire_gb = messages * WIRE_BYTES * (WIRE_HOPS if fleet.proxy else 1) / 1e9
    return {
        "SQS: 3 requests for ten messages, idle polling": (messages * 3 / SQS_BATCH + polls) * SQS_REQUEST,
        "Lambda": gb_seconds * LAMBDA_GB_SECOND[fleet.architecture] + requests * LAMBDA_REQUEST,
        "Database and its storage": database,
        "RDS Proxy": proxy if fleet.proxy else 0.0,
        "Interface endpoints": INTERFACE_ENDPOINTS * fleet.zones * ENDPOINT_HOUR * HOURS,
        "CloudWatch: logs, metrics, alarms, dashboard": cloudwatch,
        "X-Ray": traced * SECONDS * TRACE,
        "Between availability zones": wire_gb * (1 - 1 / fleet.zones) * BETWEEN_ZONES_GB,
        "Key and secrets": KEY_MONTH + fleet.secrets * SECRET_MONTH,
    }


#: The environments of samconfig.toml; a test compares them.
ENVIRONMENTS = {
    "dev": Fleet("db.t4g.medium", multi_az=False, storage_gb=20, proxy=False, alarms=False, governor=False, secrets=1),
    "staging": Fleet("db.t4g.large", storage_gb=50),
    "prod": Fleet("db.r7g.large", storage_gb=200, zones=3),
}
#: An assumption, too: try yours under load before you believe it.
SIZES = {0: "db.r7g.large", 100: "db.r7g.large", 1_000: "db.r7g.large", 10_000: "db.r7g.2xlarge"}

Table = tuple[list[str], list[list[str]]]


def by_rate() -> Table:
    """`prod` at several steady rates."""
    months = {rate: month(Fleet(instance, storage_gb=200, zones=3), rate) for rate, instance in SIZES.items()}
    head = ["prod, $ a month", *("idle" if not rate else f"{rate:,}/s" for rate in months)]
    rows = [[line, *(dollars(costs[line]) for costs in months.values())] for line in months[0]]
    rows.append(["**all**", *(f"**{dollars(sum(costs.values()))}**" for costs in months.values())])
    million = [sum(costs.values()) / (rate * SECONDS / 1e6) if rate else None for rate, costs in months.items()]
    rows.append(["for a million messages", *("" if each is None else f"{each:,.2f}" for each in million)])
    rows.append(["instance, twice (Multi-AZ)", *(f"`{instance}`" for instance in SIZES.values())])
    return head, rows


def by_environment() -> Table:
    """What is paid while nothing happens."""
    fleets = {
        **{f"`{name}`": fleet for name, fleet in ENVIRONMENTS.items()},
        # MultiAz=false: a reader would double both.
        "Serverless v2 at 1 ACU": Fleet(acus=1),
        "the same, direct": Fleet(acus=1, proxy=False, secrets=1),
    }
    costs = {name: month(fleet) for name, fleet in fleets.items()}
    first = next(iter(costs.values()))
    rows = [
        [line, *(dollars(each[line]) for each in costs.values())]
        for line in first
        if any(each[line] for each in costs.values())
    ]
    rows.append(["**all**", *(f"**{dollars(sum(each.values()))}**" for each in costs.values())])
    return ["idle, $ a month", *costs], rows


def dollars(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.1f}"


def markdown(table: Table) -> str:
    """A table as docs/deploy.md has it."""
    head, rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- |", "|---|").replace(" ---: |", "---:|")
    )


def main() -> None:
    """Print the tables of docs/deploy.md."""
    for table in (by_rate(), by_environment()):
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    main()
