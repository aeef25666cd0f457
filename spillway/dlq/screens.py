"""What the dead-letter tools show. Nothing that came in a message reaches the terminal unescaped."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from spillway.dlq.letters import FOREIGN, MOVED
from spillway.dlq.reading import interval
from spillway.fleet.find import STACK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from spillway.dlq.groups import Group, Groups
    from spillway.dlq.letters import Cause
    from spillway.dlq.overview import QueueOverview
    from spillway.dlq.reading import Coverage
    from spillway.fleet.fleet import Fleet

#: How many reasons a line of the list has room for.
LISTED_REASONS = 4
_AGES = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))
_UNSAID = {
    MOVED: "it was received as often as its queue allows; no worker blames it",
    FOREIGN: "neither a worker nor SQS's redrive policy put it here",
}
_MAX_DETAIL = 600
_MAX_SUBJECT = 100


def safe(text: str) -> str:
    """`text` without anything that a terminal obeys or cannot show: such characters become JSON escapes, line feeds
    stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text)


def json_text(value: object) -> str:
    """`value` (structs included) as one JSON document in ASCII, safe to print whatever a message holds."""
    # json, not msgspec: it escapes everything beyond ASCII, C1 control characters and lone surrogates included.
    return json.dumps(msgspec.to_builtins(value), indent=2)


def age(moment: datetime, now: datetime | None = None) -> str:
    """How long ago that is, in two units at most: 2 d 4 h."""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for unit, name, next_unit, next_name in _AGES:
        if seconds >= unit:
            rest = seconds % unit // next_unit
            return f"{seconds // unit} {name}" + (f" {rest} {next_name}" if rest and seconds < 10 * unit else "")
    return f"{seconds} s"


def clock(moment: datetime) -> str:
    """Local time with its zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def command(fleet: Fleet, *words: str) -> str:
    """The `spillway` command line for the same fleet, quoted for a shell."""
    options: list[str] = []
    if fleet.local is None:
        if os.environ.get(STACK_VARIABLE) != fleet.name:
            options += ["--stack", fleet.name]
        if fleet.region:
            options += ["--region", fleet.region]
        if fleet.profile:
            options += ["--profile", fleet.profile]
    return shlex.join(["spillway", *words, *options])


def queue_list(fleet: Fleet, queues: Sequence[QueueOverview], now: datetime) -> RenderableType:
    """All dead-letter queues."""
    total = sum(one.depth.total for one in queues)
    if not queues:
        return Text(f"{fleet.title} has no dead-letter queue.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("worker", style="bold", no_wrap=True)
    for name in ("dead letters", "oldest", "last hour"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("read")
    table.add_column("why", overflow="fold")
    for one in queues:
        if one.depth.total == 0 and one.read == 0:
            table.add_row(one.worker, "0", "-", "-", "", Text("empty", style="green"))
            continue
        more = "" if one.complete or one.from_cloudwatch else "+"
        table.add_row(
            one.worker,
            f"{max(one.depth.total, one.read):,}",
            (age(one.oldest, now) if one.oldest is not None else "-") + more,
            f"{one.last_hour:,}{more}",
            f"all {one.read:,}" if one.complete else f"{one.read:,} of about {one.depth.total:,}",
            _reasons(one.reasons),
        )
    lines: list[RenderableType] = [
        Text(f"{fleet.title}: {several(total, 'dead letter')} in {several(len(queues), 'queue')}", style="bold"),
        "",
        table,
    ]
    held = [one for one in queues if one.depth.in_flight]
    lines += [
        Text(f"{one.worker}: {one.depth.in_flight:,} in flight: somebody else reads or redrives them.", style="yellow")
        for one in held
    ]
    if any(not one.complete and not one.from_cloudwatch for one in queues):
        lines.append(Text("+ at least: it is of the letters that were read.", style="dim"))
    largest = max(queues, key=lambda one: max(one.depth.total, one.read))
    lines += (
        ["", Text(f"Next: {command(fleet, 'dlq', 'show', largest.worker)}")]
        if total
        else ["", Text("Nothing is dead: every message was processed, or will be tried again.", style="green")]
    )
    return Lines(*lines)


def group_list(
    fleet: Fleet,
    worker: str,
    queue: str,
    groups: Groups,
    coverage: Coverage,
    *,
    conditions: Sequence[str],
    now: datetime,
    top: int | None = None,
) -> RenderableType:
    """The `top` groups of a dead-letter queue. `conditions` are the filter's, which the letters in `groups` met."""
    found = list(groups)
    matching = groups.count
    about = "" if coverage.complete else "about "
    title = f"{queue}: {about}{several(coverage.total, 'dead letter')}"
    if conditions and coverage.read:
        title += f", {matching:,} of the {coverage.read:,} read match"
    lines: list[RenderableType] = [Text(safe(title), style="bold")]
    lines += [Text(f"  {safe(condition)}", style="dim") for condition in conditions]
    for group in found[:top]:
        lines += ["", *_group(group, matching, coverage, now)]
    if rest := found[len(found[:top]) :]:
        letters = several(sum(group.count for group in rest), "letter")
        lines += [
            "",
            Text(f"and {several(len(rest), 'smaller group')} with {letters}: --top 0 shows all", style="dim"),
        ]
    lines += ["", Text(coverage.described())]
    if not coverage.complete and found:
        lines.append(
            Text(
                "The ranges are 95 % intervals, as for a random sample; SQS tends to show the oldest letters first."
                + ("" if coverage.to_the_end else " --all reads every letter."),
                style="dim",
            )
        )
    if found:
        key = found[0].key
        lines += [
            "",
            Text(f"Look at one:    {command(fleet, 'dlq', 'peek', worker, '--group', key)}"),
            Text(f"Plan a redrive: {command(fleet, 'dlq', 'redrive', worker, '--group', key)}"),
        ]
    return Lines(*lines)


def table_of(rows: Mapping[str, Text], indent: str = "") -> Table:
    """Names, dimmed, and their values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(indent + safe(name)), value)
    return table


def why(cause: Cause) -> Text:
    """Reason, SQLSTATE and detail in a line."""
    line = Text.assemble((safe(cause.reason), "yellow"))
    if cause.code:
        line.append(f" {safe(cause.code)}")
    if detail := cause.detail or _UNSAID.get(cause.reason, ""):
        line.append(f": {safe(detail)[:_MAX_DETAIL]}")
    return line


def _group(group: Group, matching: int, coverage: Coverage, now: datetime) -> list[RenderableType]:
    share = f"{group.count / matching:.0%}".replace("%", " %")
    if not coverage.complete:
        low, high = interval(group.count, matching)
        share += f" ({low * 100:.0f} to {high * 100:.0f} %)"
    cause, example = group.cause, group.example
    head = Text.assemble((group.key, "bold cyan"), f"  {several(group.count, 'letter')}, {share}")
    what = [safe(cause.event_type) or "no event type"]
    if cause.worker_version:
        what.append(f"worker version {safe(cause.worker_version)}")
    first, last = clock(group.first_seen), clock(group.last_seen)
    when = f"{first}" if first == last else f"{first} to {last}"
    rows = {
        "why": why(cause),
        "what": Text(", ".join(what)),
        "when": Text(f"{when} ({age(group.last_seen, now)} ago)"),
        "like": Text(f"message {safe(example.message_id)}" + (f", at {safe(example.place)}" if example.place else "")),
    }
    event = [f"event {safe(example.event_id)}"] if example.event_id else []
    event += [f"subject {safe(example.subject)[:_MAX_SUBJECT]}"] if example.subject else []
    if event:
        rows[""] = Text(", ".join(event))
    return [head, table_of(rows, "  ")]


def _reasons(reasons: dict[str, int]) -> Text:
    listed = list(reasons.items())
    words = [f"{safe(reason)} {count:,}" for reason, count in listed[:LISTED_REASONS]]
    if rest := listed[LISTED_REASONS:]:
        words.append(f"{len(rest)} more {sum(count for _, count in rest):,}")
    return Text(", ".join(words) or "-", style="yellow")


def several(count: int, what: str) -> str:
    """A count and what it counts: 1 letter, 2 letters."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _escaped(char: str) -> str:
    short = {"\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}.get(char)
    if short:
        return short
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
