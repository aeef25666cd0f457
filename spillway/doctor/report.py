"""What the doctor found, for people, for programs (JSON) and for build servers (JUnit)."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree as ET

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from spillway.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from spillway.fleet.fleet import Fleet

STYLES = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.SKIP: "dim"}

# XML 1.0 has no other characters, not even escaped (section 2.2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`--json`. `verdict` is the worst level but skip; `counts` has every level, in findings."""

    fleet: str
    region: str | None
    local: bool
    verdict: Literal["pass", "warn", "fail"]
    counts: dict[str, int]
    findings: list[Finding]


def report(fleet: Fleet, findings: Sequence[Finding]) -> Report:
    counts = Counter(one.level for one in findings)
    return Report(
        fleet=fleet.name,
        region=fleet.region,
        local=fleet.local is not None,
        verdict="fail" if counts[Level.FAIL] else "warn" if counts[Level.WARN] else "pass",
        counts={level.value: counts[level] for level in Level},
        findings=list(findings),
    )


def screen(found: Report, *, verbose: bool = False) -> RenderableType:
    """Areas with their counts, below each what is wrong there and what to do; then what was skipped, and the verdict.

    `verbose` lists what passed, too.
    """
    parts: list[RenderableType] = [area for name in _areas(found) for area in _area(found, name, verbose=verbose)]
    if not verbose and (skipped := list(_skipped(found))):
        parts += ["", *skipped]
    return Group(*parts, "", verdict(found))


def verdict(found: Report) -> Text:
    """One line."""
    counts = found.counts
    rest = f"{_many(counts['pass'], 'finding')} passed"
    rest += f", {counts['skip']} skipped" if counts["skip"] else ""
    warnings = _many(counts["warn"], "warning")
    if found.verdict == "fail":
        text, style = f"{_many(counts['fail'], 'failure')}, {warnings}; {rest}.", STYLES[Level.FAIL]
    elif found.verdict == "warn":
        text, style = f"{warnings}, no failure; {rest}.", STYLES[Level.WARN]
    elif counts["pass"]:
        text, style = f"All well: {rest}.", STYLES[Level.PASS]
    else:
        text, style = f"Nothing was looked at: {rest}.", STYLES[Level.WARN]
    return Text(text, style=style)


def junit(found: Report) -> bytes:
    """JUnit XML: a suite for every area, a case for every finding. A warning is a passed case with a word about it."""
    root = ET.Element("testsuites", name="spillway doctor")
    for area in _areas(found):
        findings = [one for one in found.findings if one.area == area]
        counts = Counter(one.level for one in findings)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=area,
            tests=str(len(findings)),
            failures=str(counts[Level.FAIL]),
            errors="0",
            skipped=str(counts[Level.SKIP]),
        )
        for one in findings:
            case = ET.SubElement(
                suite, "testcase", classname=f"doctor.{area}", name=_xml(f"{one.check} {one.resource}")
            )
            said = _xml(f"{one.resource}: {one.said}")
            more = _xml("\n".join(line for line in (one.fix, one.docs) if line))
            if one.level is Level.FAIL:
                ET.SubElement(case, "failure", message=said, type=one.check).text = more
            elif one.level is Level.SKIP:
                ET.SubElement(case, "skipped", message=said)
            elif one.level is Level.WARN:
                ET.SubElement(case, "system-out").text = f"warning: {said}\n{more}"
    for suite in root:
        for attribute in ("tests", "failures", "errors", "skipped"):
            root.set(attribute, str(int(root.get(attribute, "0")) + int(suite.get(attribute, "0"))))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _areas(found: Report) -> list[str]:
    return list(dict.fromkeys(one.area for one in found.findings))


def _area(found: Report, name: str, *, verbose: bool) -> Iterator[RenderableType]:
    findings = [one for one in found.findings if one.area == name]
    counts = Counter(one.level for one in findings)
    heading = Text(f"{name:<12}", style="bold")
    for index, level in enumerate(level for level in (Level.FAIL, Level.WARN, Level.PASS, Level.SKIP) if counts[level]):
        heading.append(", " if index else "", style="not bold")
        heading.append(f"{counts[level]} {level.value}", style=f"not bold {STYLES[level]}")
    yield heading
    shown = [one for one in findings if verbose or one.level in (Level.WARN, Level.FAIL)]
    if shown:
        yield _table(shown)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=6, justify="right")
    table.add_column(overflow="fold", max_width=92)
    for one in sorted(findings, key=lambda one: one.level is not Level.FAIL):
        said = Text.assemble((one.check, "bold"), f"  {one.resource} {one.said}")
        table.add_row(Text(one.level.value, style=STYLES[one.level]), said)
        if one.fix:
            table.add_row("", Text(f"-> {one.fix}"))
        if one.level is Level.FAIL:
            table.add_row("", Text(one.docs, style="dim"))
    return table


def _skipped(found: Report) -> Iterator[Text]:
    """Why, and which checks: a reason is told once."""
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for one in found.findings:
        if one.level is Level.SKIP:
            reasons.setdefault((one.said, one.fix), {})[one.check] = None
    for (said, fix), names in reasons.items():
        which = ", ".join(names) if len(names) <= 3 else f"{len(names)} checks"
        yield Text(f"skipped {which}: {said}" + (f" -> {fix}" if fix else ""), style=STYLES[Level.SKIP])


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
