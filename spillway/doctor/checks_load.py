"""Checks on what the RDS Proxy has had to do: whether connections are shared, waited for, refused."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from spillway.doctor.checks_proxy import nothing_known
from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_load import Load, Minute
    from spillway.doctor.finding import Finding
    from spillway.doctor.registry import Look

    LookAtLoad = Callable[[Facts, Load], Iterator[Finding]]

#: With fewer clients, each may well have a connection at work at the same moment.
FEWEST_CLIENTS = 10
#: Borrowed connections for each client; from here on the proxy only passes connections through.
MOST_BORROWED = 0.9
#: As the alarms (infra/observability.yaml): PinnedShare, BorrowLatencyShare, PoolUse.
PINNED_SHARE = 0.3
BORROW_LATENCY_SHARE = 0.1
POOL_USE = 0.9
#: A single minute is somebody's psql or a burst: a fault lasts.
SEVERAL = 3


def _of_the_load(look: LookAtLoad) -> Look:
    @wraps(look)
    def looks(facts: Facts) -> Iterator[Finding]:
        if (load := facts.proxy_load) is None:
            yield nothing_known(facts)
        else:
            yield from look(facts, load)

    return looks


@check("proxy-multiplexing", area="proxy")
@_of_the_load
def multiplexing(_facts: Facts, load: Load) -> Iterator[Finding]:
    """Many clients share few database connections."""
    busy = [minute for minute in load.minutes if minute.clients >= FEWEST_CLIENTS]
    if not busy:
        yield passed(load.proxy, f"fewer than {FEWEST_CLIENTS} clients {load.at}: nothing to share")
        return
    clients = sum(minute.clients for minute in busy) / len(busy)
    borrowed = sum(minute.borrowed for minute in busy) / len(busy)
    said = f"{clients:.0f} clients borrow {borrowed:.0f} connections on average {load.at}"
    if borrowed >= MOST_BORROWED * clients:
        fix = "Transactions are held open or sessions pinned: `spillway pinned`, and pg_stat_activity for open ones."
        yield warn(load.proxy, f"{said}: hardly any connection is shared", fix)
    else:
        yield passed(load.proxy, said)


@check("proxy-pinned", area="proxy")
@_of_the_load
def pinned(_facts: Facts, load: Load) -> Iterator[Finding]:
    """No session is pinned to its database connection."""
    found = [minute for minute in load.minutes if minute.pinned > 0]
    fix = "`spillway pinned` shows which statements pin; docs/pinning.md has the way out for each."
    if _often(load, lambda minute: minute.pinned > PINNED_SHARE * minute.connections):
        most = max(minute.pinned for minute in found)
        said = f"up to {most:.0f} session(s) pinned {load.at}, more than {PINNED_SHARE:.0%} of the connections"
        yield fail(load.proxy, said, fix)
    elif found:
        most = max(minute.pinned for minute in found)
        yield warn(load.proxy, f"up to {most:.0f} session(s) pinned {load.at}", fix)
    elif load.pins:
        yield warn(load.proxy, f"{load.pins} session(s) pinned {load.over}, none now", fix)
    else:
        yield passed(load.proxy, f"no session was pinned {load.over}")


@check("proxy-borrow-latency", area="proxy")
@_of_the_load
def borrow_latency(facts: Facts, load: Load) -> Iterator[Finding]:
    """Clients get a connection long before the borrow timeout."""
    timeout = _borrow_timeout(facts)
    waits = [minute.borrow_latency for minute in load.minutes if minute.borrow_latency is not None]
    if timeout <= 0:
        yield skip(load.proxy, "no function goes through the proxy")
    elif not waits:
        yield passed(load.proxy, f"nobody borrowed a connection {load.over}")
    elif _often(load, lambda minute: (minute.borrow_latency or 0) > BORROW_LATENCY_SHARE * timeout):
        said = f"clients waited up to {max(waits):.1f} s on average for a connection {load.over}; the timeout is "
        fix = "See docs/operations.md#borrow-latency: pinned sessions first, then the sum of MaximumConcurrency."
        yield warn(load.proxy, f"{said}{timeout:g} s", fix)
    else:
        yield passed(load.proxy, f"clients waited {1000 * max(waits):.1f} ms on average at worst {load.over}")


@check("proxy-pool-use", area="proxy")
@_of_the_load
def pool_use(_facts: Facts, load: Load) -> Iterator[Finding]:
    """The pool has connections left."""
    known = [minute for minute in load.minutes if minute.allowed > 0]
    if not known:
        yield passed(load.proxy, f"the pool was not used {load.at}")
        return
    most = max(minute.writer / minute.allowed for minute in known)
    if _often(load, lambda minute: minute.writer > POOL_USE * minute.allowed > 0):
        said = f"up to {most:.0%} of the {known[-1].allowed:.0f} connections of the pool were open {load.at}"
        fix = "See docs/operations.md#pool-use: a lower sum of MaximumConcurrency, or a larger instance."
        yield warn(load.proxy, said, fix)
    else:
        yield passed(load.proxy, f"at most {most:.0%} of the pool was open {load.at}")


@check("proxy-concurrency", area="proxy", needs=deployed)
@_of_the_load
def concurrency(facts: Facts, load: Load) -> Iterator[Finding]:
    """As many batches as the fleet may write at once find a connection in the pool."""
    allowed = max((minute.allowed for minute in load.minutes[-SEVERAL:]), default=0)
    mappings = facts.mappings.values()
    without = [one.worker for one in mappings if one.maximum_concurrency is None]
    batches = sum(one.maximum_concurrency or 0 for one in mappings)
    if allowed <= 0:
        yield skip(load.proxy, f"the size of the pool is not known: nobody used it {load.at}")
    elif without:
        fix = "Give each event source mapping its MaximumConcurrency: aws lambda update-event-source-mapping."
        yield warn(load.proxy, f"{', '.join(without)} may write without limit, the pool has {allowed:.0f}", fix)
    elif batches > allowed:
        said = f"{batches} batches may be written at once, but the pool has {allowed:.0f} connections: the others wait"
        fix = "Lower the queues' MaximumConcurrency, or deploy with a larger instance or ProxyMaxConnectionsPercent."
        yield warn(load.proxy, said, fix)
    else:
        yield passed(load.proxy, f"{batches} batches at once, {allowed:.0f} connections")


def _counts_others_only(facts: Facts) -> str:
    return "" if facts.fleet.local is None else "the emulator also counts the doctor's own tries to get in"


@check("proxy-login-failures", area="proxy", needs=_counts_others_only)
@_of_the_load
def login_failures(_facts: Facts, load: Load) -> Iterator[Finding]:
    """The proxy does not keep turning clients away."""
    refused = sum(minute.failed_logins for minute in load.minutes)
    # On AWS, too, the doctor tries to get in where it must not, in one minute.
    if _often(load, lambda minute: minute.failed_logins > 0):
        said = f"it refused {refused:.0f} client(s) {load.over}: their login or their TLS was wrong"
        yield warn(load.proxy, said, "Its log names role and address: docs/operations.md#proxy-login-failures.")
    elif refused:
        yield passed(load.proxy, f"it refused {refused:.0f} client(s) {load.over}, but does not go on doing so")
    else:
        yield passed(load.proxy, f"it refused no client {load.over}")


@check("proxy-setup-failures", area="proxy")
@_of_the_load
def setup_failures(_facts: Facts, load: Load) -> Iterator[Finding]:
    """The proxy could open every database connection that it tried to."""
    failed = sum(minute.failed_setups for minute in load.minutes)
    if failed:
        said = f"{failed:.0f} connection(s) to the database could not be opened {load.over}"
        yield warn(load.proxy, said, "See docs/operations.md#database-setup-failures for the causes.")
    else:
        yield passed(load.proxy, f"every connection to the database could be opened {load.over}")


def _often(load: Load, holds: Callable[[Minute], bool]) -> bool:
    """Whether it holds in several minutes; the emulator, which has one moment only, is asked about that."""
    minutes: Sequence[Minute] = load.minutes
    return sum(map(holds, minutes)) >= min(SEVERAL, max(len(minutes), 1))


def _borrow_timeout(facts: Facts) -> float:
    """Seconds, as the functions on the proxy's route reckon with; 0 where there is none."""
    told = (
        one.environment.get("DATABASE_BORROW_TIMEOUT", "0")
        for one in facts.functions.values()
        if one.environment.get("DATABASE_ROUTE") == "proxy"
    )
    return max((float(one) for one in told if one.replace(".", "", 1).isdigit()), default=0.0)
