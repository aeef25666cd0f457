"""checkov, a scanner for insecure infrastructure, on every template: as it is written, and as SAM translates it.

A finding is fixed, or accepted with its reason: beside the resource, as checkov's own entry under Metadata,

    Metadata:
      checkov: { skip: [{ id: CKV_AWS_18, comment: Why this does not hold here. }] }

or in the table below, for what holds for every resource of a type and for what SAM generates, which has no place of its
own. Both are checked the other way round, too: what accepts nothing must go.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from samcli.yamlhelper import yaml_parse

from spillway.stack.template import REPOSITORY
from tests.template.combinations import root, sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

CHECKOV = REPOSITORY / ".venv-checkov/bin/checkov"
TRANSLATED = "template.yaml as translated"
FUNCTIONS = ("AWS::Serverless::Function", "AWS::Lambda::Function")


class Finding(NamedTuple):
    template: str
    check: str
    kind: str
    resource: str


@dataclass(frozen=True)
class Accepted:
    """A check that resources of `kinds` may fail, because of `reason`, while `where` holds for their properties."""

    check: str
    kinds: tuple[str, ...]
    reason: str
    where: Callable[[Mapping[str, Any]], bool] = field(default=lambda _: True)

    def covers(self, finding: Finding, properties: Mapping[str, Any]) -> bool:
        return finding.check == self.check and finding.kind in self.kinds and self.where(properties)


ACCEPTED = [
    Accepted(
        "CKV_AWS_27",
        ("AWS::SQS::Queue",),
        "The check knows KMS keys only. SSE-SQS encrypts as well, and asks no producer for rights on a key.",
        where=lambda properties: properties.get("SqsManagedSseEnabled") is True,
    ),
    Accepted(
        "CKV_AWS_158",
        ("AWS::Logs::LogGroup",),
        "CloudWatch Logs encrypts every group. A key of our own adds a policy and a price, and no log has payloads.",
        where=lambda properties: "RetentionInDays" in properties,
    ),
    Accepted(
        "CKV_AWS_116",
        FUNCTIONS,
        "For asynchronous invocations. Consumers have their queue's, a schedule comes again, CloudFormation waits.",
    ),
    Accepted(
        "CKV_AWS_173",
        FUNCTIONS,
        "Lambda encrypts all variables with its own key. The only secret among them is a password for development.",
    ),
    Accepted(
        "CKV_AWS_115",
        FUNCTIONS,
        "Runs alone, by the clock or by CloudFormation; a reservation would be taken from all others in the account.",
        where=lambda properties: name_ends(properties, "-housekeeping", "-migrate", "-governor"),
    ),
    Accepted(
        "CKV_AWS_117",
        FUNCTIONS,
        "Calls AWS's APIs and never the database; in a VPC without a way out it would need five more endpoints.",
        where=lambda properties: name_ends(properties, "-governor"),
    ),
]


def name_ends(properties: Mapping[str, Any], *endings: str) -> bool:
    return str(properties["FunctionName"]["Fn::Sub"]).endswith(endings)


#: What must be found, in a template with nothing but mistakes.
PLANTED = {
    "Unencrypted": ("CKV_AWS_27", {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "orders"}}),
    "OpenToTheWorld": (
        "CKV_AWS_24",
        {
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": {
                "GroupDescription": "Open.",
                "SecurityGroupIngress": [
                    {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535, "CidrIp": "0.0.0.0/0", "Description": "all"}
                ],
            },
        },
    ),
    "Everything": (
        "CKV_AWS_107",
        {
            "Type": "AWS::IAM::ManagedPolicy",
            "Properties": {
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
                }
            },
        },
    ),
    "Plain": (
        "CKV_AWS_16",
        {"Type": "AWS::RDS::DBInstance", "Properties": {"StorageEncrypted": False, "Engine": "postgres"}},
    ),
    "InAVpcOrNot": (
        "CKV_AWS_117",
        {
            "Type": "AWS::Lambda::Function",
            "Properties": {"FunctionName": {"Fn::Sub": "${AWS::StackName}-orders"}, "Runtime": "python3.13"},
        },
    ),
}


def scan(folder: Path, documents: Mapping[str, Mapping[str, Any]]) -> set[Finding]:
    """What checkov finds in `documents` with no skips of their own; offline, one process for all."""
    assert CHECKOV.exists(), "checkov has a virtual environment of its own: run `make template` once"
    names = {}
    for number, (name, document) in enumerate(documents.items()):
        bare = {
            logical_id: {
                key: without_skips(value) if key == "Metadata" else value
                for key, value in resource.items()
                if key != "Metadata" or without_skips(value)
            }
            for logical_id, resource in document["Resources"].items()
        }
        path = folder / f"{number}.json"
        path.write_text(json.dumps({**document, "Resources": bare}, indent=1))
        names[f"/{path.name}"] = name
    files = [argument for path in names for argument in ("--file", path.removeprefix("/"))]
    result = subprocess.run(
        [
            str(CHECKOV),
            "--framework",
            "cloudformation",
            "--skip-download",
            "--compact",
            "--quiet",
            "-o",
            "json",
            *files,
        ],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    report = json.loads(result.stdout)
    assert report["summary"]["parsing_errors"] == 0, result.stdout[-2000:] + result.stderr
    assert report["summary"]["passed"] > 0
    found = set()
    for failed in report["results"]["failed_checks"]:
        kind, _, resource = failed["resource"].rpartition(".")
        found.add(Finding(names[failed["file_path"]], failed["check_id"], kind, resource))
    return found


def without_skips(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ("checkov", "bridgecrew")}


def skips(documents: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Every skip entry beside a resource: (template, resource, check) -> comment."""
    return {
        (name, logical_id, skip["id"]): skip.get("comment", "")
        for name, document in documents.items()
        for logical_id, resource in document["Resources"].items()
        for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", [])
    }


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    written = {path.name: yaml_parse(path.read_text(encoding="utf-8")) for path in sources()}
    return {TRANSLATED: root(), **written}


@pytest.fixture(scope="module")
def findings(documents: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> set[Finding]:
    planted = {"Resources": {name: resource for name, (_, resource) in PLANTED.items()}}
    return scan(tmp_path_factory.mktemp("checkov"), {**documents, "planted": planted})


def of(findings: Iterable[Finding], *, planted: bool = False) -> list[Finding]:
    return sorted(finding for finding in findings if (finding.template == "planted") == planted)


def test_nothing_is_found_that_nobody_accepted(documents: dict[str, Any], findings: set[Finding]) -> None:
    beside = skips(documents)
    left = []
    for finding in of(findings):
        properties = documents[finding.template]["Resources"][finding.resource].get("Properties", {})
        accepted = any(entry.covers(finding, properties) for entry in ACCEPTED)
        if not accepted and (finding.template, finding.resource, finding.check) not in beside:
            left.append(finding)
    assert left == []


@pytest.mark.parametrize("entry", ACCEPTED, ids=lambda entry: entry.check)
def test_every_entry_of_the_table_is_needed(entry: Accepted, documents: dict[str, Any], findings: set[Finding]) -> None:
    covered = [
        finding
        for finding in of(findings)
        if entry.covers(finding, documents[finding.template]["Resources"][finding.resource].get("Properties", {}))
    ]
    assert covered
    assert len(entry.reason) > 40
    # For SAM's resources: the one as it is written must not be enough.
    assert any(finding.template != "template.yaml" for finding in covered)


def test_every_skip_beside_a_resource_is_needed_and_says_why(documents: dict[str, Any], findings: set[Finding]) -> None:
    for (template, resource, check), comment in skips(documents).items():
        # SAM hands a function's metadata on to the other resources that it makes for it.
        names = {template, TRANSLATED} if template == "template.yaml" else {template}
        found = {finding.resource for finding in of(findings) if finding.check == check and finding.template in names}
        if template != TRANSLATED:
            assert resource in found, f"{template}: {resource} does not fail {check}: remove the skip"
        assert len(comment) > 20, f"{template}: {resource} does not say why {check} is skipped"


def test_no_skip_is_hidden_in_a_comment() -> None:
    for path in sources():
        assert "checkov:skip" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistakes_are_found(name: str, findings: set[Finding]) -> None:
    check, resource = PLANTED[name]
    finding = Finding("planted", check, resource["Type"], name)
    assert finding in of(findings, planted=True)
    assert not any(entry.covers(finding, resource["Properties"]) for entry in ACCEPTED)
