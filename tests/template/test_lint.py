"""AWS's own tools on the templates: as written, as SAM translates them, and as each combination leaves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spillway.stack.template import REPOSITORY, TEMPLATE
from tests.template.combinations import COMBINATIONS, STACK, decide, root, sources, stacks
from tests.template.linter import Linter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BIN = Path(sys.executable).parent

#: What a template with its conditions decided cannot help: parameters, mappings that only the other branch used.
ONLY_OF_OTHER_BRANCHES = ["W2001", "W7001"]


def run(*command: str, cwd: Path = REPOSITORY, home: Path) -> subprocess.CompletedProcess[str]:
    quiet = {"SAM_CLI_TELEMETRY": "0", "HOME": str(home), "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.run(
        command, cwd=cwd, env=os.environ | quiet, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def linter() -> Iterator[Linter]:
    with Linter() as linter:
        yield linter


def uploaded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A template as `sam deploy` uploads it: with addresses where it had paths."""
    address = {"TemplateURL": "https://bucket.s3.amazonaws.com/key"}
    resources = {
        name: resource | {"Properties": resource["Properties"] | address} if resource["Type"] == STACK else resource
        for name, resource in document["Resources"].items()
    }
    return {**document, "Resources": resources}


def test_sam_validate_with_lint(tmp_path: Path) -> None:
    result = run(str(BIN / "sam"), "validate", "--lint", "--template", str(TEMPLATE), home=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_sources_lint(linter: Linter) -> None:
    # template.yaml itself is `sam validate`'s above; here as SAM translates it, with all its branches.
    nested = {path.name: path for path in sources() if path != TEMPLATE}
    assert len(nested) >= 4
    assert linter.lint({"template.yaml as translated": uploaded(root()), **nested}) == []


def test_every_stack_of_every_combination_lints(linter: Linter) -> None:
    # Combinations have many of their stacks in common.
    unique: dict[str, str] = {}
    document = root()
    for combination, given in COMBINATIONS.items():
        for name, decided in stacks(document, given):
            unique.setdefault(json.dumps(uploaded(decided)), f"{combination}: {name}")
    assert len(unique) > len(COMBINATIONS)
    assert linter.lint({name: json.loads(text) for text, name in unique.items()}, ONLY_OF_OTHER_BRANCHES) == []


def test_the_lint_sees_mistakes_in_what_sam_generates(tmp_path: Path, linter: Linter) -> None:
    # The tools check what SAM was given and miss errors in what it makes of that.
    mistakes = {
        "BatchSize: 1000": ("BatchSize: 10000000", "10000000"),
        "[ReportBatchItemFailures]": ("[ReportBatchItemFailure]", "'ReportBatchItemFailure' is not one of"),
    }
    text = TEMPLATE.read_text()
    for right, (wrong, _) in mistakes.items():
        assert right in text
        text = text.replace(right, wrong)
    broken = tmp_path / "template.yaml"
    broken.write_text(text)
    found = "\n".join(linter.lint({"broken": uploaded(root(broken))}))
    for _, complaint in mistakes.values():
        assert complaint in found


def test_the_lint_sees_what_only_one_combination_breaks(linter: Linter) -> None:
    """What it cannot see in the template as it is written, where any value is possible."""
    document = {
        "Parameters": {
            "Makes": {"Type": "String", "Default": "true", "AllowedValues": ["true", "false"]},
            "Size": {"Type": "Number", "Default": 10},
        },
        "Conditions": {"Makes": {"Fn::Equals": [{"Ref": "Makes"}, "true"]}},
        "Resources": {
            "Topic": {"Type": "AWS::SNS::Topic", "Condition": "Makes"},
            "Policy": {
                "Type": "AWS::SNS::TopicInlinePolicy",
                "Condition": "Makes",
                "Properties": {"TopicArn": {"Ref": "Topic"}, "PolicyDocument": {"Version": "2012-10-17"}},
            },
            "Queue": {
                "Type": "AWS::SQS::Queue",
                "DependsOn": ["Policy"],
                "Properties": {
                    "QueueName": {"Fn::If": ["Makes", {"Fn::GetAtt": ["Topic", "TopicName"]}, {"Ref": "AWS::NoValue"}]},
                    "DelaySeconds": {"Ref": "Size"},
                },
            },
        },
        "Outputs": {"Topic": {"Value": {"Ref": "Topic"}}},
    }
    good = {"Makes": "true", "Size": "10"}
    without, large = good | {"Makes": "false"}, good | {"Size": "1000"}
    assert decide(document, without)["Resources"] == {
        "Queue": {"Type": "AWS::SQS::Queue", "DependsOn": [], "Properties": {"DelaySeconds": {"Ref": "Size"}}}
    }

    def found(values: Mapping[str, Any]) -> str:
        return "\n".join(linter.lint({"decided": decide(document, values)}, ONLY_OF_OTHER_BRANCHES))

    assert found(good) == ""
    assert "'Topic' is not one of" in found(without)
    assert "maximum of 900" in found(large)


def test_the_lint_sees_a_file_that_is_no_template(tmp_path: Path, linter: Linter) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("Resources:\n  A: { Type: AWS::SNS::Topic }\n  A: { Type: AWS::SNS::Topic }\n")
    assert "Duplicate" in "\n".join(linter.lint({"twice": twice}))
