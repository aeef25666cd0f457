"""What the documents name exists, and what exists is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from spillway.cli import program
from spillway.rdsproxy import faults, metrics
from spillway.stack.template import REPOSITORY
from workers.runtime import dead_letters, telemetry
from workers.runtime.failures import POLICIES, Failure, Reason

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("events/samples/*.md")])
OUTCOMES = (REPOSITORY / "docs/outcomes.md").read_text()
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    for name in re.findall(r"`((?:workers|spillway|events|tests|bench|docs)/[\w./-]+)`", document.read_text()):
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_and_commands_exist(document: Path) -> None:
    text = document.read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"(?:`|/|^)spillway ([a-z][a-z-]*)", text, re.MULTILINE):
        assert command in commands(), command
    for group, command in re.findall(r"(?:`|/|^)spillway (dlq|rdsproxy|new) ([a-z][a-z-]*)", text, re.MULTILINE):
        assert command in commands(group), f"{group} {command}"


def commands(group: str = "") -> set[str]:
    shown = get_command(program())
    assert isinstance(shown, TyperGroup)
    if group:
        shown = shown.commands[group]
        assert isinstance(shown, TyperGroup)
    return set(shown.commands)


def test_the_readme_lists_every_command() -> None:
    assert set(re.findall(r"^\| `spillway ([a-z-]+)` \|", README, re.MULTILINE)) == commands()


def test_every_metric_is_explained() -> None:
    extra = {telemetry.BATCH_SIZE, telemetry.WRITE_MILLISECONDS, telemetry.ISOLATIONS, telemetry.REDELIVERED}
    extra |= {telemetry.BREAKER_OPEN, telemetry.DELAY_REFUSED}
    for metric in {*telemetry.OUTCOME_METRICS.values(), *extra}:
        assert f"`{metric}`" in OUTCOMES, metric
    explained = re.findall(r"^\| [a-z-]+ \| `([A-Za-z]+)` \|", OUTCOMES, re.MULTILINE)
    assert sorted(explained) == sorted(telemetry.OUTCOME_METRICS.values())


def test_every_class_of_failure_and_reason_is_explained() -> None:
    for failure, policy in POLICIES.items():
        row = re.search(rf"^\| {failure.value} \|.*\| (.+) \|$", OUTCOMES, re.MULTILINE)
        assert row, failure
        if failure is not Failure.HELD:
            assert row[1] == f"{policy.delay_s:g} s, x {policy.growth:g}", failure
    for reason in Reason:
        assert f"`{reason.value}`" in OUTCOMES


def test_every_field_of_a_dead_letter_is_explained() -> None:
    source = Path(dead_letters.__file__).read_text()
    names = re.findall(r'^            "([a-z-]+)": ', source, re.MULTILINE)
    assert len(names) == 12
    explained = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", OUTCOMES, re.MULTILINE)))
    assert set(explained) == {*names, dead_letters.FOLDED}
    for attribute in (dead_letters.ATTRIBUTE, dead_letters.REASON):
        assert f"`{attribute}`" in OUTCOMES


EMULATOR = (REPOSITORY / "docs/rds-proxy-emulator.md").read_text()


def test_every_fault_and_its_arguments_are_explained() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", EMULATOR, re.MULTILINE))
    assert set(rows) == set(faults.FAULTS)
    for name, arguments in faults.ARGUMENTS.items():
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(arguments), name


def test_named_cloudwatch_metrics_exist() -> None:
    known = {metric.name for metric in metrics.CLOUDWATCH}
    named = set(re.findall(r"[`\"]((?:Client|Database|Max|Query|Availability)[A-Z]\w+)[`\"]", EMULATOR))
    assert len(named) > 4
    assert named <= known


def test_named_options_of_the_emulator_exist() -> None:
    source = (REPOSITORY / "spillway/commands/rdsproxy.py").read_text()
    plugin = (REPOSITORY / "spillway/rdsproxy/pytest_plugin.py").read_text()
    for option in set(re.findall(r"--([a-z][a-z-]+)", EMULATOR)):
        assert f"--{option}" in source + plugin or re.search(
            rf"^    {option.replace('-', '_')}:", source, re.MULTILINE
        ), option
