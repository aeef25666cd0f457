"""One dead letter in full, as a terminal shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group as Lines
from rich.text import Text

from spillway.dlq.contents import indented
from spillway.dlq.screens import age, clock, safe, several, table_of, why

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from spillway.dlq.contents import Attribute, Contents


def letter(found: Contents, max_body: int, now: datetime) -> tuple[RenderableType, str]:
    """One dead letter, and its body, which is not to be wrapped. `max_body` is how many bytes of the body, and of each
    attribute, are shown; 0 shows all."""
    first = {
        "message": Text(safe(found.message_id), style="bold"),
        "group": Text(found.group, style="cyan"),
        "why": why(found.cause),
        "dead since": Text(f"{clock(found.dead_since)} ({age(found.dead_since, now)} ago)"),
    }
    said = {name: Text(safe(value)) for name, value in found.reasons.items() if name != "reason"}
    sqs = {name: Text(safe(value) + _meaning(name, value)) for name, value in found.sqs.items()}
    own = {
        name: Text.assemble((safe(one.type), "dim"), " ", _cut(_content(one), max_body)[0])
        for name, one in found.attributes.items()
    }
    shown, size = "", several(found.body_bytes, "byte")
    if found.body is None:
        size += ", not shown: it is no JSON, so --redact cannot find what to hide in it"
    else:
        shown, cut = _cut(safe(indented(found.body)), max_body)
        size += f", the first {max_body:,} of it as shown here; --max-body 0 shows all" if cut else ""
    lines: list[RenderableType] = [
        table_of(first),
        *_section("what the worker said", said, "nothing"),
        *_section("SQS's attributes", sqs, "none"),
        *_section("its own attributes", own, "none"),
    ]
    if found.missing:
        lines.append(Text(f"It has nothing at {', '.join(map(safe, found.missing))}.", style="yellow"))
    lines.append(Text.assemble(("body", "dim"), f"  {size}"))
    return Lines(*lines), shown


def _section(title: str, rows: Mapping[str, Text], nothing: str) -> list[RenderableType]:
    if not rows:
        return [Text.assemble((title, "dim"), f"  {nothing}")]
    return [Text(title, style="dim"), table_of(rows, "  ")]


def _content(attribute: Attribute) -> str:
    return f"0x{attribute.hex}" if attribute.hex is not None else safe(attribute.text or "")


def _meaning(name: str, value: str) -> str:
    """What the milliseconds of a timestamp are."""
    if not (name.endswith("Timestamp") and value.isascii() and value.isdigit()):
        return ""
    return f" ({clock(datetime.fromtimestamp(int(value) / 1000, UTC))})"


def _cut(text: str, most: int) -> tuple[str, bool]:
    """`text`, at most `most` bytes of it (0: all), and whether that is less."""
    encoded = text.encode()
    if not most or len(encoded) <= most:
        return text, False
    return encoded[:most].decode(errors="ignore"), True
