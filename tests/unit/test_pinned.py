"""`spillway pinned`: lines of the proxy's log, read loosely; their rules and links; where they come from."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import typer
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import spillway.commands.pinned as command
from spillway.commands.rdsproxy import AwsFormatter
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet, Resource
from spillway.pinned import aws
from spillway.pinned.aws import MAX_LINES, QUERY, logged_pins, pinned_now
from spillway.pinned.groups import ALL_RULES, anchor, group, link, rule_of
from spillway.pinned.lines import NO_REASON, PinLine, read_line, read_moment
from spillway.pinned.local import local_pins, with_statements
from spillway.pinned.report import PinnedReport, screen
from spillway.rdsproxy.metrics import PinRecord
from spillway.rdsproxy.pinning import NAMED_STATEMENT, STATEMENT_SIZE, Classifier
from spillway.rdsproxy.rules import RULES, UNTRACKED
from spillway.stack.template import REPOSITORY
from tests.unit.test_drill import local_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
PINNED = (
    "The client session was pinned to the database connection [dbConnection={}] for the remainder of the session. "
    "The proxy can't reuse this connection until the session ends."
)
PINS = [rule for rule in RULES.values() if rule.kind == "pin"]


def line(reason: str = UNTRACKED, connection: int = 3, client: int = 7, at: str = "2026-11-21T10:00:00.250Z") -> str:
    text = PINNED.format(connection)
    return f"{at} [WARN] [proxyEndpoint=default] [clientConnection={client}] {text} Reason: {reason}"


# ── a line ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_formats_that_were_seen() -> None:
    # prisma/prisma-engines#1692 (2021): no time, no client.
    found = read_line(f'{PINNED.format(3377128289)} Reason: {UNTRACKED} Digest: "set search_path = $1; set names $2;".')
    assert found == PinLine(
        at=None,
        client="",
        connection="3377128289",
        reason=UNTRACKED,
        statement="set search_path = $1; set names $2;",
    )
    # elixir-ecto/postgrex#514 (2020): no endpoint, no digest.
    old = "2020-08-04T11:47:24.251Z [WARN] [clientConnection=3888679423] " + PINNED.format(529039385)
    found = read_line(f"{old} Reason: A parse message was detected.")
    assert found is not None
    assert (found.client, found.reason, found.statement) == ("3888679423", "A parse message was detected.", "")
    assert found.at == datetime(2020, 8, 4, 11, 47, 24, 251000, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21T10:00:00.000Z [INFO] [clientConnection=1] A new client connected from 10.0.0.1:5.",
        # Its end, as the emulator words it: no second pin.
        "The database connection closed. Reason: The client session it was pinned to ended.",
    ],
)
def test_other_lines_are_no_pins(text: str) -> None:
    assert read_line(text) is None


def test_a_line_that_lost_everything_but_the_pin() -> None:
    assert read_line("session was pinned, somehow") == PinLine(
        at=None, client="", connection="", reason=NO_REASON, statement=""
    )


@given(st.text())
def test_no_line_breaks_the_reader(text: str) -> None:
    read_line(text)
    read_line("session was pinned " + text)
    read_line(line() + text)
    read_moment(text)


def test_the_emulators_own_lines_are_read() -> None:
    pin = Classifier().verdict(b"SET search_path = app")
    assert pin is not None
    text = f"[clientConnection=7] {PINNED.format(3)} Reason: {pin.reason}"
    record = logging.LogRecord("spillway.rdsproxy", logging.WARNING, "", 0, text, None, None)
    found = read_line(AwsFormatter().format(record))
    assert found is not None
    assert (found.client, found.connection, found.statement) == ("7", "3", "set search_path = $1")
    assert found.at == datetime.fromtimestamp(int(record.created * 1000) / 1000, UTC)


# ── rules and links ──────────────────────────────────────────────────────────────────────────────────────────────────

HEADINGS = {
    anchor(heading) for heading in re.findall(r"^#+ (.+)$", (REPOSITORY / "docs/pinning.md").read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_every_rules_link_leads_to_its_heading(rule: Any) -> None:
    path, _, name = link(rule).partition("#")
    assert (REPOSITORY / path).exists()
    assert name in HEADINGS
    assert name.startswith(rule.id)


def test_the_link_without_a_rule_leads_somewhere_too() -> None:
    assert ALL_RULES.partition("#")[2] in HEADINGS


@pytest.mark.parametrize("rule", PINS, ids=lambda rule: rule.id)
def test_what_the_proxy_logs_leads_back_to_the_rule(rule: Any) -> None:
    given = {"statement-size": STATEMENT_SIZE, "named-statement": NAMED_STATEMENT}.get(rule.id)
    pin = given or Classifier().verdict(rule.pins.encode())
    assert pin is not None
    found = read_line(line(pin.reason))
    assert found is not None
    told = rule_of(found.reason, found.statement)
    # A digest has no values, and set_config's third argument is one.
    assert told is RULES[{"set-config-local": "set-config"}.get(rule.id, rule.id)]


@pytest.mark.parametrize(
    ("reason", "statement", "rule"),
    [
        (UNTRACKED, "set search_path = $1; set names $2;", "set"),
        (UNTRACKED, "set session characteristics as transaction isolation level read committed", "set"),
        (UNTRACKED, "select pg_advisory_unlock_all ( ) ; close all ; unlisten * ; reset all", "session-lock"),
        (UNTRACKED, "", None),
        (UNTRACKED, "select $1", None),
        ("A parse message was detected.", "", "named-statement"),
        ("The moon is full.", "", None),
        (UNTRACKED, "declare \x00 c", "cursor"),
        (UNTRACKED, "declare 'c", None),
    ],
)
def test_reasons_from_the_field(reason: str, statement: str, rule: str | None) -> None:
    found = rule_of(reason, statement)
    assert (found.id if found else None) == rule


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LINES = st.builds(
    PinLine,
    at=st.none() | st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),
    client=st.sampled_from(["", "1", "2"]),
    connection=st.sampled_from(["", "8", "9"]),
    reason=st.sampled_from([UNTRACKED, "other"]),
    statement=st.sampled_from(["", "set a = $1", "listen b"]),
)


@given(st.lists(LINES, max_size=40))
def test_groups_hold_every_line_once(lines: list[PinLine]) -> None:
    groups = group(lines)
    assert sum(one.times for one in groups) == len(lines)
    assert [one.times for one in groups] == sorted((one.times for one in groups), reverse=True)
    assert len({(one.reason, one.statement) for one in groups}) == len(groups)
    for one in groups:
        its = [each for each in lines if (each.reason, each.statement) == (one.reason, one.statement)]
        assert one.times == len(its)
        assert one.connections == len({each.connection for each in its} - {""})
        assert one.clients == len({each.client for each in its} - {""})
        moments = [each.at for each in its if each.at is not None]
        assert (one.first, one.last) == (min(moments, default=None), max(moments, default=None))


def test_the_emulator_knows_more_than_the_line() -> None:
    sql = "SELECT set_config('app.tenant', 'acme', true)"
    pin = Classifier().verdict(sql.encode())
    assert pin is not None
    found = read_line(line(pin.reason))
    assert found is not None
    groups = group([found])
    assert groups[0].rule == "set-config"
    record = PinRecord(pin.rule, pin.reason, pin.certainty, sql, "u", "d", "a", "127.0.0.1:1", 3, 0.0)
    with_statements(groups, [record])
    assert (groups[0].rule, groups[0].example) == ("set-config-local", sql)
    assert groups[0].link == link(RULES["set-config-local"])


def report(*lines: PinLine, shown: int = 20, **changes: Any) -> PinnedReport:
    groups = group(lines)
    given: dict[str, Any] = {
        "fleet": "shop",
        "proxy": "shop",
        "since": NOW - timedelta(hours=3),
        "until": NOW,
        "pinned_now": 4,
        "pins": len(lines),
        "complete": True,
        "group_count": len(groups),
        "groups": groups[:shown],
    }
    return PinnedReport(**given | changes)


def shown(one: PinnedReport) -> str:
    console = Console(file=StringIO(), width=100, force_terminal=False, highlight=False)
    console.print(screen(one))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_the_screen_fits_and_cannot_be_taken_over() -> None:
    nasty = PinLine(
        at=NOW, client="1", connection="1", reason=UNTRACKED, statement="set a = '\x1b[2J\n" + "x" * 400 + "'"
    )
    unknown = PinLine(at=None, client="1", connection="1", reason="new [bold]reason[/bold]", statement="")
    text = shown(report(nasty, nasty, unknown))
    assert "\x1b" not in text
    assert "4 connections pinned now, 3 pins since" in text
    assert "new [bold]reason[/bold]" in text
    assert "docs/pinning.md#set-set-and-reset" in text
    assert ALL_RULES in text
    assert "ProxyDebugLogging" in text
    assert "A pin ends when its client disconnects" in text


def test_one_of_each_is_not_said_in_the_plural() -> None:
    one = PinLine(at=NOW, client="1", connection="1", reason=UNTRACKED, statement="set a = $1")
    assert "1 connection pinned now, 1 pin since" in shown(report(one, pinned_now=1))


def test_what_is_left_out_is_said() -> None:
    lines = [
        PinLine(at=NOW, client="1", connection="1", reason=UNTRACKED, statement=f"set a{n} = $1") for n in range(3)
    ]
    text = shown(report(*lines, shown=1, complete=False, pinned_now=None))
    assert "and 2 more kinds: --limit 3" in text
    assert "at least 3 (the latest) pins" in text
    assert "unknown connections pinned now" in text
    assert "ProxyDebugLogging" not in text


def test_nothing_pinned_is_said() -> None:
    assert "The log has no pin since" in shown(report(pinned_now=0))


# ── AWS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def stubbed(service: str) -> tuple[Any, Stubber]:
    client = boto3.client(service, region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="s")
    stub = Stubber(client)
    stub.activate()
    return client, stub


@pytest.fixture
def logs() -> tuple[Any, Stubber]:
    client, stub = stubbed("logs")
    stub.add_response(
        "start_query",
        {"queryId": "q"},
        {
            "logGroupName": "/aws/rds/proxy/shop",
            "startTime": int((NOW - timedelta(hours=3)).timestamp()),
            "endTime": int(NOW.timestamp()),
            "queryString": QUERY,
            "limit": MAX_LINES,
        },
    )
    return client, stub


def results(stub: Stubber, status: str, *messages: str) -> None:
    rows = [
        [
            {"field": "@timestamp", "value": "2026-11-21 20:15:00.123"},
            {"field": "@message", "value": message},
            {"field": "@ptr", "value": "x"},
        ]
        for message in messages
    ]
    stub.add_response("get_query_results", {"results": rows, "status": status}, {"queryId": "q"})


def read(client: Any, sleep: Any = lambda _: None) -> list[PinLine]:
    return logged_pins(client, "shop", NOW - timedelta(hours=3), NOW, sleep=sleep)


def test_the_log_is_asked_until_the_query_is_complete(logs: tuple[Any, Stubber]) -> None:
    client, stub = logs
    results(stub, "Scheduled")
    results(stub, "Running", line())  # what is there so far, and not all
    results(stub, "Complete", line(connection=1), line(connection=2), "a session it was pinned to")
    found = read(client)
    assert [one.connection for one in found] == ["1", "2"]
    assert found[0].at == datetime(2026, 11, 21, 20, 15, 0, 123000, UTC)
    stub.assert_no_pending_responses()


@pytest.mark.parametrize("status", ["Failed", "Cancelled", "Timeout"])
def test_a_query_that_gives_up_is_no_empty_log(logs: tuple[Any, Stubber], status: str) -> None:
    client, stub = logs
    results(stub, status)
    with pytest.raises(SpillwayError, match=f"the query is {status}"):
        read(client)


def test_a_query_that_is_interrupted_is_stopped(logs: tuple[Any, Stubber]) -> None:
    client, stub = logs
    results(stub, "Running")
    stub.add_response("stop_query", {"success": True}, {"queryId": "q"})

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(client, interrupt)
    stub.assert_no_pending_responses()


def test_a_log_group_that_is_not_there_is_named() -> None:
    client, stub = stubbed("logs")
    stub.add_client_error("start_query", "ResourceNotFoundException", "no")
    with pytest.raises(SpillwayError, match="There is no log group /aws/rds/proxy/shop"):
        read(client)


class FakeFleet(Fleet):
    clients: Mapping[str, Any] = {}

    def client(self, service: str, *, connections: int = 10) -> Any:
        return self.clients[service]


def fleet(*resources: Resource, **clients: Any) -> Fleet:
    made = FakeFleet(name="shop", workers={}, region="eu-west-1", resources=resources)
    object.__setattr__(made, "clients", clients)
    return made


def metric(*values: float) -> tuple[Any, Stubber]:
    client, stub = stubbed("cloudwatch")
    stub.add_response(
        "get_metric_data",
        {
            "MetricDataResults": [
                {"Id": "pinned", "StatusCode": "Complete", "Timestamps": [NOW] * len(values), "Values": list(values)}
            ]
        },
    )
    return client, stub


@pytest.mark.parametrize(("values", "now"), [((3.0, 9.0), 3), ((0.0,), 0), ((), None)])
def test_the_latest_minute_tells_how_many_are_pinned(values: tuple[float, ...], now: int | None) -> None:
    client, _ = metric(*values)
    assert pinned_now(fleet(cloudwatch=client), "shop", NOW) == now


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

app = typer.Typer()
app.command()(command.pinned)
PROXY = Resource("Proxy", "AWS::RDS::DBProxy", "shop", "Proxy")


def test_a_deployed_fleets_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    client, stub = stubbed("logs")
    stub.add_response("start_query", {"queryId": "q"})
    results(stub, "Complete", line(f'{UNTRACKED} Digest: "set a = $1".'), line(f'{UNTRACKED} Digest: "set a = $1".', 4))
    cloudwatch, _ = metric(2.0)
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet(PROXY, logs=client, cloudwatch=cloudwatch))
    result = CliRunner().invoke(app, ["--stack", "shop", "--since", "2d", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["proxy"], told["pinned_now"], told["pins"], told["complete"]) == ("shop", 2, 2, True)
    [one] = told["groups"]
    assert (one["rule"], one["times"], one["connections"], one["statement"]) == ("set", 2, 2, "set a = $1")


def test_more_lines_than_a_query_returns_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    client, stub = stubbed("logs")
    monkeypatch.setattr(aws, "MAX_LINES", 2)
    monkeypatch.setattr(command, "MAX_LINES", 2)
    stub.add_response("start_query", {"queryId": "q"})
    results(stub, "Complete", line(), line())
    cloudwatch, _ = metric(2.0)
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet(PROXY, logs=client, cloudwatch=cloudwatch))
    assert json.loads(CliRunner().invoke(app, ["--stack", "shop", "--json"]).stdout)["complete"] is False


@pytest.mark.parametrize(
    ("parameter", "arguments", "group_name"),
    [("shared", [], "/aws/rds/proxy/shared"), ("", ["--proxy", "mine"], "/aws/rds/proxy/mine")],
)
def test_a_proxy_that_was_brought_along(
    monkeypatch: pytest.MonkeyPatch, parameter: str, arguments: list[str], group_name: str
) -> None:
    cloudformation, stacks = stubbed("cloudformation")
    given = [{"ParameterKey": "ProxyName", "ParameterValue": parameter}]
    about = {"StackName": "shop", "CreationTime": NOW, "StackStatus": "CREATE_COMPLETE", "Parameters": given}
    stacks.add_response("describe_stacks", {"Stacks": [about]}, {"StackName": "shop"})
    client, stub = stubbed("logs")
    stub.add_client_error("start_query", "ResourceNotFoundException", "no")
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet(logs=client, cloudformation=cloudformation))
    result = CliRunner().invoke(app, ["--stack", "shop", *arguments])
    assert group_name in str(result.exception)


def test_a_fleet_without_a_proxy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cloudformation, stacks = stubbed("cloudformation")
    about = {"StackName": "shop", "CreationTime": NOW, "StackStatus": "CREATE_COMPLETE"}
    stacks.add_response("describe_stacks", {"Stacks": [about]}, {"StackName": "shop"})
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet(cloudformation=cloudformation))
    result = CliRunner().invoke(app, ["--stack", "shop"])
    assert "The stack shop has no RDS Proxy" in str(result.exception)


def test_the_local_stack_without_a_proxy_has_no_pins(tmp_path: Path) -> None:
    with pytest.raises(SpillwayError, match="without an RDS Proxy"):
        local_pins(local_state(proxy_admin_url=None, log_dir=str(tmp_path)), NOW)


def test_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(command, "find_fleet", asked.append)
    for since in ("soon", "2999-01-01", "0m"):
        assert CliRunner().invoke(app, ["--since", since]).exit_code != 0
    assert asked == []
