"""The options that say which dead letters a command is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from spillway.dlq.filters import REASONS, Filter, read_group, read_moment, read_reason

QueueArgument = Annotated[
    str, typer.Argument(metavar="QUEUE", help="A worker such as `orders`, or its queue or dead-letter queue.")
]
ReasonOption = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="REASON", help=f"Only with this reason: {', '.join(REASONS)}. Repeatable."),
]
TypeOption = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Only of this event type; * stands for any text. Repeatable."),
]
EventIdOption = Annotated[
    list[str] | None, typer.Option("--event-id", metavar="ID", help="Only this event. Repeatable.")
]
SubjectOption = Annotated[
    list[str] | None,
    typer.Option("--subject", metavar="SUBJECT", help="Only with this subject; * stands for any text. Repeatable."),
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="KEY", help="Only of this group of `spillway dlq show`. Repeatable."),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Only dead since then: ISO 8601, or an age like 90m, 12h, 3d."),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="Only dead before then: as --since takes it.")
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="JMESPATH",
        help="Only events of which this is true: their own fields (data.customer), and dead_letter.*, attributes.*, "
        "sqs.*.",
    ),
]


def filter_of(  # noqa: PLR0917  (each is an option's value; they have an order in --help)
    reason: list[str] | None = None,
    type_: list[str] | None = None,
    event_id: list[str] | None = None,
    subject: list[str] | None = None,
    group: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
) -> Filter:
    """The filter that these options' values make. Raises BadFilter."""
    now = datetime.now(UTC)
    return Filter(
        reasons=tuple(map(read_reason, reason or ())),
        types=tuple(type_ or ()),
        event_ids=tuple(one.strip().lower() for one in event_id or ()),
        subjects=tuple(subject or ()),
        groups=tuple(map(read_group, group or ())),
        since=read_moment(since, now) if since is not None else None,
        until=read_moment(until, now) if until is not None else None,
        where=where,
    )
