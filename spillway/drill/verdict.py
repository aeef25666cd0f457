"""From what was seen in a drill to its report and verdict. Pure: the same facts give the same report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from spillway.drill.failover import Note
from spillway.drill.measure import Fates, Gap, fates_of, interruption, longest_wait, pending_at_end, usual_gap
from spillway.drill.probes import run_name
from spillway.drill.report import Check, DrillReport, Moment, Seen

if TYPE_CHECKING:
    from spillway.drill.probes import Sent
    from spillway.fleet.canaries import Fate

#: Order ids that a statement of the verdict names.
NAMED = 3
#: A gap that is shorter is not worth a line of the timeline.
NOTED_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was seen. Moments are seconds since the epoch; `answered` are the database's good answers, `every` how far
    apart they are meant to be, `troubles` its others. `unread` is why the workers' log could not be read to the end."""

    run: str
    fleet: str
    worker: str
    failover: str
    began: float
    failover_at: float
    ended: float
    goal_s: float
    rate: float
    sent: Sequence[Sent]
    fates: Sequence[Fate]
    answered: Sequence[float]
    every: float
    asks: str
    troubles: Counter[str]
    notes: Sequence[Note] = ()
    rows: Mapping[str, int] | None = None
    unread: str = ""


def compose(facts: Facts) -> DrillReport:
    """The report."""
    fates = fates_of(facts.sent, facts.fates)
    orders = {one.message_id: one.order_id for one in facts.sent if one.message_id is not None}
    lost = [orders[message_id] for message_id in fates.lost]
    doubled = [orders[message_id] for message_id in fates.doubled]
    if facts.rows is not None:
        rows = facts.rows
        lost += [orders[message_id] for message_id in fates.done if not rows.get(orders[message_id])]
        doubled = sorted({*doubled, *(order for order, count in rows.items() if count > 1)})
    views = (_producers(facts), _consumers(facts, fates), _database(facts))
    checks = list(_checks(facts, fates, views, accepted=len(orders), lost=lost, doubled=doubled))
    return DrillReport(
        run=facts.run,
        fleet=facts.fleet,
        worker=facts.worker,
        failover=facts.failover,
        started_at=_moment(facts.began),
        failover_at=_moment(facts.failover_at),
        ended_at=_moment(facts.ended),
        goal_s=facts.goal_s,
        rate=facts.rate,
        sent=len(orders),
        done=len(fates.done),
        dead_lettered=len(fates.dead),
        lost=lost,
        doubled=doubled,
        rows=None if facts.rows is None else sum(facts.rows.values()),
        given_back=dict(fates.given_back),
        longest_wait_s=round(longest_wait(facts.sent, fates.done), 3),
        producers=views[0],
        consumers=views[1],
        database=views[2],
        timeline=[Moment(_moment(note.at), note.what) for note in sorted(_timeline(facts, fates, views))],
        checks=checks,
        goal_met=all(check.holds for check in checks),
        find=find_rows(facts.run),
        remove=remove_rows(facts.run),
    )


def find_rows(run: str) -> str:
    """The statement that shows the rows which a run left."""
    return f"SELECT * {_of(run)};"


def remove_rows(run: str) -> str:
    """The statement that removes them."""
    return f"DELETE {_of(run)};"


def _of(run: str) -> str:
    return f"FROM spillway.orders WHERE order_id LIKE '{run_name(run)}-%'"


def _producers(facts: Facts) -> Seen:
    accepted = [one.at for one in facts.sent if one.message_id is not None]
    tries = [one.at for one in facts.sent]
    every = 1 / facts.rate
    return _seen(
        "producers",
        interruption(accepted, every, facts.failover_at, max(tries, default=None)),
        usual_gap(accepted, every, facts.failover_at),
        of="sends accepted",
        well=len(accepted),
        troubles=Counter(one.error for one in facts.sent if one.message_id is None),
    )


def _consumers(facts: Facts, fates: Fates) -> Seen:
    done = list(fates.done.values())
    every = 1 / facts.rate
    dead = Counter(f"dead letter: {fate.reason} {fate.detail}".rstrip() for fate in fates.dead.values())
    return _seen(
        "consumers",
        interruption(done, every, facts.failover_at, facts.ended if pending_at_end(facts.sent, fates) else None),
        usual_gap(done, every, facts.failover_at),
        of="probes done",
        well=len(done),
        troubles=dead + Counter({"not done": len(fates.lost)} if fates.lost else {}),
    )


def _database(facts: Facts) -> Seen:
    return _seen(
        "database",
        interruption(facts.answered, facts.every, facts.failover_at, facts.ended),
        usual_gap(facts.answered, facts.every, facts.failover_at),
        of=facts.asks,
        well=len(facts.answered),
        troubles=facts.troubles,
    )


def _seen(by: str, gap: Gap, usual: Gap, *, of: str, well: int, troubles: Counter[str]) -> Seen:
    return Seen(
        by=by,
        interruption_s=round(gap.seconds, 3),
        since=_moment(gap.since) if gap.since is not None else None,
        until=_moment(gap.until) if gap.until is not None else None,
        usual_s=round(usual.seconds, 3),
        of=of,
        well=well,
        badly=troubles.total(),
        troubles=dict(troubles),
    )


def _timeline(facts: Facts, fates: Fates, views: Sequence[Seen]) -> Iterator[Note]:
    yield Note(facts.began, "probes begin")
    yield Note(facts.failover_at, f"failover started: {facts.failover}")
    for view in views:
        if view.since is None or view.until is None or view.interruption_s < max(NOTED_S, view.usual_s):
            continue
        yield Note(view.since.timestamp(), f"{view.by}: the last sign before the gap")
        over = view.until.timestamp() < facts.ended
        yield Note(
            view.until.timestamp(),
            f"{view.by}: back, after {view.interruption_s:.1f} s"
            if over
            else f"{view.by}: still away when the drill ended",
        )
    if facts.sent:
        yield Note(facts.sent[-1].at, "the last probe is sent")
    if fates.done and not fates.lost:
        yield Note(max(fates.done.values()), "the last probe is done")
    yield from facts.notes


def _checks(
    facts: Facts, fates: Fates, views: Sequence[Seen], *, accepted: int, lost: list[str], doubled: list[str]
) -> Iterator[Check]:
    told = ", ".join(f"{view.by} {_for(view.interruption_s)}" for view in views)
    longest = max(view.interruption_s for view in views)
    within = longest <= facts.goal_s
    yield Check(
        "interruption", within, f"{'no' if within else 'an'} interruption is longer than {facts.goal_s:g} s: {told}"
    )
    if lost:
        yield Check("lost", holds=False, statement=f"{len(lost):,} of {accepted:,} probes are lost: {_named(lost)}")
    else:
        yield Check("lost", holds=True, statement=f"no probe is lost: {accepted:,} sent, {len(fates.done):,} done")
    if doubled:
        yield Check("doubled", holds=False, statement=f"{len(doubled):,} probes took effect twice: {_named(doubled)}")
    else:
        yield Check("doubled", holds=True, statement="no probe took effect twice")
    if fates.dead:
        yield Check("dead-lettered", holds=False, statement=f"{len(fates.dead):,} probes became dead letters")
    if facts.unread:
        yield Check("log", holds=False, statement=f"the workers' log could not be read to the end: {facts.unread}")


def _for(seconds: float) -> str:
    return "none" if seconds < 0.05 else f"{seconds:.1f} s"


def _named(orders: Sequence[str]) -> str:
    return ", ".join(orders[:NAMED]) + (f" and {len(orders) - NAMED:,} more" if len(orders) > NAMED else "")


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
