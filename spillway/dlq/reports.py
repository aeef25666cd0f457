"""What the redrive and its history show. Nothing that came in a message reaches the terminal unescaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from spillway.dlq.filters import Filter
from spillway.dlq.records import (
    DELETED,
    DONE,
    INTERRUPTED,
    KEPT,
    REFUSED,
    RUNNING,
    SENDING,
    SENT,
    UNFINISHED,
)
from spillway.dlq.screens import age, clock, safe
from spillway.dlq.verdicts import DIED, PASSED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from spillway.dlq.letters import Cause
    from spillway.dlq.records import CauseRecord, LetterRecord, RunRecord
    from spillway.dlq.rehearsal import Change, PlannedGroup

#: Bytes of a body that a screen has room for, and refusals.
MAX_BODY = 1_000
LISTED = 10
#: Groups that a screen lists: a queue of hundreds of causes has one that matters more than the others.
LISTED_GROUPS = 20
#: A run's details under other names than the journal's, and those that only a machine needs.
_NAMES = {"canary_s": "canary timeout, s", "edit_with": "edited with"}
_UNSAID = ("contract", "arrived_by")
_STATE_STYLES = {DONE: "green", INTERRUPTED: "yellow", UNFINISHED: "yellow", RUNNING: "cyan"}


def plan(
    groups: Sequence[PlannedGroup], *, title: str, conditions: Sequence[str], notes: Sequence[str], todo: str
) -> RenderableType:
    """A dry run. `notes` are sentences, `todo` the command that does it, '' if there is nothing to do."""
    lines: list[RenderableType] = [Text(safe(title), style="bold")]
    lines += [Text(f"  {safe(condition)}", style="dim") for condition in conditions]
    for group in groups[:LISTED_GROUPS]:
        rows = {"why": _why(group.cause), "what": _what(group.cause)}
        for number, (reason, count) in enumerate(sorted(group.refused.items(), key=lambda one: -one[1])[:LISTED]):
            rows["refused" if number == 0 else " " * number] = Text(f"{count:,}: {safe(reason)}", style="yellow")
        lines += ["", _head(group.key, several(group.count, "letter")), _table(rows)]
        if group.example is not None:
            lines += _change(group.example)
    rest = groups[LISTED_GROUPS:]
    lines += _more(sum(group.total for group in rest), len(rest), "--json")
    lines += ["", *(Text(note) for note in notes)]
    if todo:
        lines += ["", Text("Nothing was sent. To do it:"), _command(todo)]
    return Lines(*lines)


def outcome(
    groups: Sequence[CauseRecord], *, title: str, notes: Sequence[str], refusals: Mapping[str, int], todo: str
) -> RenderableType:
    """What a redrive came to. `todo` is the next command, '' if there is none."""
    lines: list[RenderableType] = [Text(title, style="bold")]
    lines += _outcomes_of(groups)
    lines += _refusals(refusals)
    lines += [Text(note, style="yellow") for note in notes]
    if todo:
        lines += ["", _command(f"Next: {todo}")]
    return Lines(*lines)


def run_list(runs: Sequence[RunRecord], now: datetime, *, path: str) -> RenderableType:
    """The journal's runs."""
    if not runs:
        return Text(f"Nothing was changed yet, as far as {path} knows.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "kind", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("queue", overflow="fold")
    table.add_column("what", overflow="fold", ratio=1)
    for run in runs:
        what = Text(_counts(run.counts) or "nothing")
        conditions = conditions_of(run)
        what.append(f"\n{age(run.started, now)} ago by {safe(run.who)}", style="dim")
        for condition in conditions:
            what.append(f"\n{safe(condition)}", style="dim")
        table.add_row(run.id, run.kind, Text(run.state, style=_STATE_STYLES.get(run.state, "red")), run.queue, what)
    return table


def run_details(
    run: RunRecord,
    groups: Sequence[CauseRecord],
    *,
    canaries: Sequence[LetterRecord],
    refusals: Mapping[str, int],
    edits: Sequence[LetterRecord],
    more_edits: int,
) -> RenderableType:
    """One run, with the first of its edits."""
    rows = {
        "run": Text(f"{run.id}  {run.kind}"),
        "state": Text(run.state, style=_STATE_STYLES.get(run.state, "red")),
        "who": Text(safe(run.who)),
        "when": Text(clock(run.started) + (f" to {clock(run.ended)}" if run.ended else "")),
        "fleet": Text(safe(run.fleet)),
        "queue": Text(safe(run.queue)),
    }
    shown = {name: value for name, value in run.details.items() if value not in (None, [], "") and name not in _UNSAID}
    rows |= {
        _NAMES.get(name, name.replace("_", " ")): Text(_shortened(safe(str(value)))) for name, value in shown.items()
    }
    rows["filter"] = Text("\n".join(map(safe, conditions_of(run))) or "none")
    rows["came to"] = Text(_counts(run.counts) or "nothing")
    lines: list[RenderableType] = [_table(rows, indent="")]
    if groups:
        lines += ["", Text("groups", style="dim"), *_outcomes_of(groups)]
    if canaries:
        lines += ["", Text("canaries", style="dim")]
        lines += [
            Text(f"  {one.cause}  message {one.message_id}, sent as {one.new_message_id or '(not sent)'}")
            for one in canaries
        ]
    if refusals:
        lines += ["", *_refusals(refusals)]
    for one in edits:
        lines += ["", Text(f"edited: message {one.message_id}, sent as {one.new_message_id or '(not sent)'}")]
        lines += _bodies(one.before or "", one.after or "")
    if more_edits:
        lines += ["", Text(f"and {several(more_edits, 'more edited letter')}: --all shows all", style="dim")]
    return Lines(*lines)


def conditions_of(run: RunRecord) -> list[str]:
    """The run's filter in words."""
    return msgspec.convert(run.filter, Filter).described()


def several(count: int, what: str) -> str:
    """`count` of `what`, in the plural where it is one."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _outcomes_of(groups: Sequence[CauseRecord]) -> list[RenderableType]:
    if len(groups) > LISTED_GROUPS:  # those that somebody has to look at come first
        groups = sorted(groups, key=_all_is_well)
    rest = groups[LISTED_GROUPS:]
    return [
        *map(_outcome_of, groups[:LISTED_GROUPS]),
        # Not the same command with --json: it would redrive once more.
        *_more(
            sum(one.stayed + sum(one.letters.values()) for one in rest), len(rest), "spillway dlq history RUN --json"
        ),
    ]


def _all_is_well(group: CauseRecord) -> bool:
    return group.stayed == 0 and group.letters.keys() <= {DELETED} and group.verdict in ("", PASSED)


def _more(letters: int, groups: int, where: str) -> list[RenderableType]:
    if not groups:
        return []
    return ["", Text(f"and {several(letters, 'letter')} in {several(groups, 'more group')}: {where} has all")]


def _outcome_of(group: CauseRecord) -> RenderableType:
    letters = group.letters
    died = int(group.verdict == DIED)
    parts = {
        "redriven": letters.get(SENT, 0) + letters.get(DELETED, 0) - died,
        "died again": died,
        "refused": letters.get(REFUSED, 0),
        "stayed": letters.get(KEPT, 0) + group.stayed,
        "perhaps sent": letters.get(SENDING, 0),
    }
    said = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count) or "nothing yet"
    rows = {"why": _why(group.cause), "what": _what(group.cause)}
    if group.verdict:
        passed = group.verdict == PASSED
        rows["canary"] = Text(
            f"passed: {group.why}" if passed else safe(group.why), style="green" if passed else "yellow"
        )
    elif group.why:
        rows["stays"] = Text(safe(group.why), style="yellow")
    return Lines("", _head(group.key, said), _table(rows))


def _command(line: str) -> Text:
    """In one piece, so that it can be copied."""
    return Text(line, no_wrap=True, overflow="ignore")


def _head(key: str, said: str) -> Text:
    return Text.assemble((key, "bold cyan"), f"  {said}")


def _why(cause: Cause) -> Text:
    why = Text.assemble((safe(cause.reason), "yellow"), f" {safe(cause.code)}" if cause.code else "")
    return why.append(f": {_shortened(safe(cause.detail))}") if cause.detail else why


def _what(cause: Cause) -> Text:
    version = f", worker version {safe(cause.worker_version)}" if cause.worker_version else ""
    return Text((safe(cause.event_type) or "no event type") + version)


def _refusals(refusals: Mapping[str, int]) -> list[RenderableType]:
    if not refusals:
        return []
    listed = sorted(refusals.items(), key=lambda one: -one[1])
    lines = [Text(f"  {count:,}  {safe(reason)}", style="yellow") for reason, count in listed[:LISTED]]
    if rest := listed[LISTED:]:
        lines.append(Text(f"  {sum(count for _, count in rest):,}  for {len(rest)} other reasons", style="yellow"))
    return ["", Text("refused, so they stay:"), *lines]


def _change(change: Change) -> list[RenderableType]:
    return [Text(f"  edit  message {change.message_id}", style="dim"), *_bodies(change.before, change.after)]


def _bodies(before: str, after: str) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("    before", Text(_shortened(safe(before))))
    table.add_row("    after", Text(_shortened(safe(after)), style="green"))
    return [table]


def _counts(counts: Mapping[str, int]) -> str:
    names = {"unknown": "perhaps sent", "undeleted": "not deleted yet", "died_again": "of them died again"}
    return ", ".join(f"{count:,} {names.get(name, name)}" for name, count in counts.items() if count)


def _table(rows: Mapping[str, Text], indent: str = "  ") -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(indent + name, value)
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_BODY else f"{text[:MAX_BODY]}... ({len(text):,} characters; --json has all)"
