"""The doctor's framework: running checks, telling what they found, and the command."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import psycopg
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from spillway.cli import program
from spillway.commands import doctor as command
from spillway.doctor import facts as facts_module
from spillway.doctor import registry
from spillway.doctor.facts import Facts, fact
from spillway.doctor.finding import Finding, Level, fail, passed, skip, warn
from spillway.doctor.registry import Check, checks, examine, run, select
from spillway.doctor.report import junit, report, screen
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet
from spillway.stack.template import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DOCUMENT = (REPOSITORY / "docs/doctor.md").read_text()
FLEET = Fleet(name="spillway-test", workers={}, region="eu-west-1")


def looking(look: Callable[[Facts], Iterator[Finding]], area: str = "queues", name: str = "a-check") -> Check:
    return Check(name, area, "Whether.", look, None)


def found(*findings: Finding) -> Check:
    return looking(lambda facts: iter(findings))


def broken(error: Exception) -> Finding:
    def look(facts: Facts) -> Iterator[Finding]:
        yield passed("first", "is fine")
        raise error

    first, second = examine(Facts(FLEET), looking(look))
    assert first.resource == "first"
    return second


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finding_knows_its_check_and_where_that_is_explained() -> None:
    (one,) = examine(Facts(FLEET), found(fail("orders", "is wrong", "Repair it.")))
    assert (one.check, one.area, one.docs) == ("a-check", "queues", "docs/doctor.md#a-check")


def test_a_check_that_says_nothing_is_told_of() -> None:
    (one,) = examine(Facts(FLEET), found())
    assert one.level is Level.FAIL
    assert "said nothing" in one.said


def test_a_check_without_what_it_needs_is_skipped_and_not_run() -> None:
    def look(facts: Facts) -> Iterator[Finding]:
        raise AssertionError

    (one,) = examine(Facts(FLEET), Check("a-check", "queues", "Whether.", look, lambda facts: "there is no moon"))
    assert (one.level, one.said) == (Level.SKIP, "there is no moon")


@pytest.mark.parametrize("code", ["AccessDenied", "AccessDeniedException", "UnauthorizedOperation"])
def test_what_may_not_be_looked_at_is_skipped_with_the_permission(code: str) -> None:
    message = "User: x is not authorized to perform: rds:DescribeDBProxies on resource: y"
    one = broken(ClientError({"Error": {"Code": code, "Message": message}}, "DescribeDBProxies"))
    assert one.level is Level.SKIP
    assert "rds:DescribeDBProxies" in one.said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ClientError({"Error": {"Code": "InternalFailure", "Message": "oh"}}, "DescribeAlarms"), "DescribeAlarms: oh"),
        (EndpointConnectionError(endpoint_url="https://rds"), "could not look: rds "),
        (psycopg.OperationalError("connection refused\nis the server running?"), "could not look: connection refused"),
        (SpillwayError("The proxy is away.", "Start it."), "could not look: The proxy is away."),
        (KeyError("Targets"), "could not look: KeyError: 'Targets'"),
    ],
)
def test_what_cannot_be_looked_at_fails_and_hides_nothing_else(error: Exception, said: str) -> None:
    one = broken(error)
    assert one.level is Level.FAIL
    assert said in one.said
    assert one.fix


def test_areas_are_looked_at_side_by_side_and_told_in_order() -> None:
    together = threading.Barrier(3, timeout=30)

    def look(facts: Facts) -> Iterator[Finding]:
        together.wait()
        yield passed("all", "meet")

    areas = [looking(look, area=area, name=area) for area in ("queues", "functions", "mappings")]
    assert [one.check for one in run(Facts(FLEET), areas)] == ["queues", "functions", "mappings"]


class Counted(Facts):
    def __init__(self) -> None:
        super().__init__(FLEET)
        self.loads = 0
        self.begun = threading.Event()

    @fact
    def moon(self) -> str:
        self.loads += 1
        self.begun.wait(0.05)
        return "full"

    @fact
    def sun(self) -> str:
        self.loads += 1
        raise SpillwayError("It is night.")


def test_a_fact_is_loaded_once_by_whichever_thread_is_first() -> None:
    facts, seen = Counted(), []
    threads = [threading.Thread(target=lambda: seen.append(facts.moon)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen, facts.loads) == (["full"] * 8, 1)


def test_a_fact_that_cannot_be_loaded_is_not_asked_for_again() -> None:
    facts = Counted()
    for _ in range(2):
        with pytest.raises(SpillwayError, match="night"):
            _ = facts.sun
    assert facts.loads == 1


def test_every_fact_says_what_it_is() -> None:
    members = [one for one in vars(facts_module.Facts).values() if isinstance(one, fact)]
    assert len(members) > 6
    assert all(one.__doc__ for one in members)


# ── registering and selecting ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "area"), [("Bad_Name", "queues"), ("redrive-policy", "queues"), ("new", "moon")])
def test_a_check_is_registered_once_by_a_proper_name_and_area(name: str, area: str) -> None:
    checks()

    def look(facts: Facts) -> Iterator[Finding]:
        """Whether."""
        yield passed("x", "is")

    with pytest.raises(ValueError, match="expected a new kebab-case name"):
        registry.check(name, area=area)(look)


def test_names_and_areas_select_and_unknown_ones_are_told_with_the_nearest() -> None:
    assert [one.name for one in select(["told-times"])] == ["told-times"]
    assert {one.area for one in select(areas=["times", "login"])} == {"times", "login"}
    both = select(["told-times"], ["login"])
    assert {one.area for one in both} == {"times", "login"}
    assert len(select()) == len(checks()) > 40
    with pytest.raises(SpillwayError, match="Did you mean 'told-times'") as error:
        select(["tolt-times"])
    assert "--list" in error.value.hint
    with pytest.raises(SpillwayError, match=r"no area 'time'.*Did you mean 'times'"):
        select(areas=["time"])


def test_areas_come_in_order() -> None:
    areas = list(dict.fromkeys(one.area for one in checks()))
    assert areas == list(registry.AREAS)


# ── the document ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_check_is_explained_under_its_area_and_nothing_else_is() -> None:
    explained = {}
    for section in re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]:
        area = section.split("\n", 1)[0]
        for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
            name, text = part.split("\n", 1)
            explained[name] = area, " ".join(text.split())
    assert list(explained) == [one.name for one in checks()]
    for one in checks():
        area, text = explained[one.name]
        assert area == one.area, one.name
        assert text.startswith(one.about), one.name
        assert "**Why.**" in text, one.name
        assert "**Fix.**" in text, one.name


# ── the screen ────────────────────────────────────────────────────────────────────────────────────────────────────────

ALL = (
    *(
        Finding(level=Level.PASS, resource=f"q{n}", said="is fine", check="one", area="queues", docs="d#one")
        for n in "12"
    ),
    Finding(level=Level.WARN, resource="q3", said="is odd", fix="Look.", check="one", area="queues", docs="d#one"),
    Finding(
        level=Level.FAIL, resource="f", said="is [broken]", fix="Mend it.", check="two", area="times", docs="d#two"
    ),
    Finding(level=Level.SKIP, resource="f", said="no moon", check="three", area="times", docs="d#three"),
    Finding(level=Level.SKIP, resource="g", said="no moon", check="four", area="times", docs="d#four"),
)


def shown(findings: tuple[Finding, ...], *, verbose: bool = False, width: int = 100) -> str:
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(screen(report(FLEET, findings), verbose=verbose))
    return re.sub(r" +$", "", capture.get(), flags=re.MULTILINE)


def test_the_screen_tells_what_is_wrong_by_area_and_counts_the_rest() -> None:
    assert shown(ALL) == (
        "queues      1 warn, 2 pass\n"
        "  warn one  q3 is odd\n"
        "       -> Look.\n"
        "times       1 fail, 2 skip\n"
        "  fail two  f is [broken]\n"
        "       -> Mend it.\n"
        "       d#two\n"
        "\n"
        "skipped three, four: no moon\n"
        "\n"
        "1 failure, 1 warning; 2 findings passed, 2 skipped.\n"
    )


def test_the_verbose_screen_tells_everything_once() -> None:
    text = shown(ALL, verbose=True)
    for one in ALL:
        assert text.count(f"{one.check}  {one.resource} {one.said}") == 1
    assert "skipped" not in text.replace("2 skipped", "")


def test_a_good_fleet_is_told_in_counts_and_a_verdict() -> None:
    assert shown(ALL[:2]) == "queues      2 pass\n\nAll well: 2 findings passed.\n"


def test_warnings_alone_are_no_failure() -> None:
    assert shown(ALL[:3]).endswith("\n1 warning, no failure; 2 findings passed.\n")
    assert report(FLEET, ALL[:3]).verdict == "warn"


def test_nothing_looked_at_is_not_all_well() -> None:
    assert shown(ALL[4:]).endswith("\nNothing was looked at: 0 findings passed, 2 skipped.\n")


@settings(max_examples=30)  # a hundred take most of a second
@given(st.lists(st.sampled_from(list(Level)), min_size=1), st.text(max_size=300))
def test_every_screen_fits(levels: list[Level], said: str) -> None:
    findings = [
        Finding(level=level, resource="a" * 120, said=said, fix=said, check="a-check", area="queues", docs="d")
        for level in levels
    ]
    assert all(len(line) <= 100 for line in shown(tuple(findings)).splitlines())


# ── JUnit ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_junit_has_a_suite_for_each_area_and_a_case_for_each_finding() -> None:
    root = ET.fromstring(junit(report(FLEET, ALL)))  # noqa: S314  (ours)
    assert (root.tag, root.get("tests"), root.get("failures"), root.get("skipped")) == ("testsuites", "6", "1", "2")
    queues, times = root
    assert (queues.get("name"), queues.get("tests"), queues.get("failures")) == ("queues", "3", "0")
    assert (times.get("name"), times.get("tests"), times.get("failures"), times.get("skipped")) == (
        "times",
        "3",
        "1",
        "2",
    )
    assert [[child.tag for child in case] for case in root.iter("testcase")] == [
        *([], [], ["system-out"]),
        *(["failure"], ["skipped"], ["skipped"]),
    ]
    failure = times[0][0]
    assert failure.get("message") == "f: is [broken]"
    assert failure.text == "Mend it.\nd#two"
    assert times[0].get("name") == "two f"


@given(st.text())
def test_junit_is_well_formed_whatever_is_said(said: str) -> None:
    findings = [
        Finding(level=level, resource=said, said=said, fix=said, check="a-check", area="queues", docs="d")
        for level in Level
    ]
    root = ET.fromstring(junit(report(FLEET, findings)))  # noqa: S314  (ours)
    assert len(list(root.iter("testcase"))) == len(Level)


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command with one check that finds what the test says, on a fleet that needs no AWS."""

    def set_up(*findings: Finding) -> None:
        monkeypatch.setattr(command, "find_fleet", lambda *_: FLEET)
        monkeypatch.setattr(registry, "checks", lambda: (found(*findings),))

    return set_up


def doctor(*arguments: str) -> Any:
    return CliRunner().invoke(program(), ["doctor", *arguments])


@pytest.mark.parametrize(
    ("finding", "status", "verdict"),
    [
        (passed("orders", "is fine"), 0, "All well: 1 finding passed."),
        (warn("orders", "is odd", "Look."), 0, "1 warning, no failure"),
        (skip("orders", "no moon"), 0, "Nothing was looked at"),
        (fail("orders", "is wrong", "Mend it."), 1, "1 failure, 0 warnings"),
    ],
)
def test_the_exit_status_says_whether_something_failed(
    finding: Finding, status: int, verdict: str, answering: Callable[..., None]
) -> None:
    answering(finding)
    result = doctor()
    assert result.exit_code == status
    assert verdict in result.output


def test_json_has_the_documented_shape(answering: Callable[..., None]) -> None:
    answering(fail("orders", "is wrong", "Mend it."))
    result = doctor("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "fleet": "spillway-test",
        "region": "eu-west-1",
        "local": False,
        "verdict": "fail",
        "counts": {"pass": 0, "warn": 0, "fail": 1, "skip": 0},
        "findings": [
            {
                "level": "fail",
                "resource": "orders",
                "said": "is wrong",
                "fix": "Mend it.",
                "check": "a-check",
                "area": "queues",
                "docs": "docs/doctor.md#a-check",
            }
        ],
    }
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCUMENT, re.MULTILINE))))
    assert set(json.loads(result.stdout)) <= fields
    for name in json.loads(result.stdout)["findings"][0]:
        assert f"`{name}`" in DOCUMENT


def test_junit_is_written_beside_the_screen(answering: Callable[..., None], tmp_path: Path) -> None:
    answering(fail("orders", "is wrong", "Mend it."))
    result = doctor("--junit", str(tmp_path / "doctor.xml"))
    assert result.exit_code == 1
    assert "is wrong" in result.output
    assert ET.parse(tmp_path / "doctor.xml").getroot().get("failures") == "1"  # noqa: S314  (ours)


def test_a_junit_file_that_cannot_be_written_is_named(answering: Callable[..., None], tmp_path: Path) -> None:
    answering(passed("orders", "is fine"))
    result = doctor("--junit", str(tmp_path / "missing" / "doctor.xml"))
    assert result.exit_code == 1
    assert isinstance(result.exception, FileNotFoundError)
    assert result.exception.filename == str(tmp_path / "missing" / "doctor.xml")


@pytest.mark.parametrize("arguments", [["--only", "nothing-like-it"], ["--area", "moon"]])
def test_an_unknown_check_or_area_is_wrong_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_fleet", lambda *_: pytest.fail("asked for a fleet"))
    result = doctor(*arguments)
    assert result.exit_code == 2
    assert "--list" in result.output


def test_the_list_has_every_check_and_needs_no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_fleet", lambda *_: pytest.fail("asked for a fleet"))
    listed = json.loads(doctor("--list", "--json").stdout)
    assert [one["check"] for one in listed] == [one.name for one in checks()]
    text = doctor("--list").stdout
    assert max(map(len, text.splitlines())) <= 100
    assert all(one.name in text for one in checks())
    assert [one["check"] for one in json.loads(doctor("--list", "--json", "--area", "times").stdout)] == [
        "visibility-timeout",
        "chain-of-times",
        "told-times",
    ]


def test_the_database_is_named_by_option_or_variable_and_never_shown(
    answering: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_dsns = []

    def look(facts: Facts) -> Iterator[Finding]:
        given_dsns.append(facts.dsn)
        yield passed("orders", "is fine")

    answering()
    monkeypatch.setattr(registry, "checks", lambda: (looking(look),))
    monkeypatch.setenv(command.DSN_VARIABLE, "postgresql://a:s3cret@b/c")
    assert "s3cret" not in doctor().output + doctor("--help").output
    doctor("--dsn", "postgresql://d/e")
    assert given_dsns == ["postgresql://a:s3cret@b/c", "postgresql://d/e"]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("doctor --only told", ["told-times"]),
        ("doctor --area fu", ["functions"]),
        ("doctor --area queues --area ti", ["times"]),
    ],
)
def test_the_shell_completes_checks_and_areas(words: str, completed: list[str]) -> None:
    env = {
        "_SPILLWAY_COMPLETE": "complete_bash",
        "COMP_WORDS": f"spillway {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(program(), [], env=env, prog_name="spillway")
    assert result.output.split() == completed


def test_the_help_shows_examples_as_they_are_typed() -> None:
    text = doctor("--help").output
    assert "spillway doctor --stack spillway-prod --profile ops" in text
    assert "Exit status: 0" in " ".join(text.split())
