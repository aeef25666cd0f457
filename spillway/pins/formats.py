"""A report as text, JSON, SARIF 2.1.0 (GitHub code scanning) or GitHub workflow commands."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from spillway.pins.findings import Finding
from spillway.rdsproxy.rules import RULES, Rule

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


class Format(StrEnum):
    """What `--format` takes."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def text(findings: list[Finding], files: int) -> str:
    """One line and an indented fix for each finding, then a summary."""
    lines = [
        f"{finding.file}:{finding.line}: {finding.rule}: {finding.reason} [{finding.certainty}]\n    {finding.fix}"
        for finding in findings
    ]
    places = len({finding.file for finding in findings})
    read = f"{files:,} file{'' if files == 1 else 's'}"
    count = f"{len(findings):,} finding{'' if len(findings) == 1 else 's'} in {places:,} of {read}"
    return "\n".join([*lines, count if findings else f"Nothing pins: {read} read."])


def json(findings: list[Finding], files: int) -> str:  # noqa: ARG001  (one signature for all formats)
    """An array with an object for each finding."""
    return msgspec.json.format(msgspec.json.encode(findings), indent=2).decode()


def github(findings: list[Finding], files: int) -> str:  # noqa: ARG001
    """One workflow command for each finding: GitHub shows it beside the line in a pull request."""
    return "\n".join(
        f"::error file={_property(finding.file)},line={finding.line},title={_property(f'pins: {finding.rule}')}::"
        + _message(f"{finding.reason} [{finding.certainty}] {finding.fix}")
        for finding in findings
    )


def _message(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _message(value).replace(":", "%3A").replace(",", "%2C")


def sarif(findings: list[Finding], files: int) -> str:  # noqa: ARG001
    """One run; paths relative to the folder that the command ran in, as code scanning wants them."""
    used = [rule for rule in RULES.values() if rule.id in {finding.rule for finding in findings}]
    index = {rule.id: number for number, rule in enumerate(used)}
    driver = {"name": "spillway pins", "version": version("spillway"), "rules": [_sarif_rule(rule) for rule in used]}
    log = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [_result(finding, index) for finding in findings]}],
    }
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode()


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    described = {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.fix},
        "defaultConfiguration": {"level": _level(rule.certainty)},
    }
    return described | ({"helpUri": rule.source} if rule.source else {})


def _result(finding: Finding, index: dict[str, int]) -> dict[str, Any]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": _level(finding.certainty),
        "message": {"text": f"{finding.reason} {finding.fix}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(finding.file)},
                    "region": {"startLine": finding.line, "snippet": {"text": finding.sql}},
                }
            }
        ],
    }


def _uri(file: str) -> str:
    path = Path(file)
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _level(certainty: str) -> str:
    return "error" if certainty == "documented" else "warning"


RENDER: dict[Format, Callable[[list[Finding], int], str]] = {
    Format.TEXT: text,
    Format.JSON: json,
    Format.SARIF: sarif,
    Format.GITHUB: github,
}
