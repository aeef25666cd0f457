"""AWS's own tools on the template: as it is written, and as SAM translates it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spillway.stack.template import REPOSITORY, TEMPLATE, translate

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path = REPOSITORY, home: Path) -> subprocess.CompletedProcess[str]:
    quiet = {"SAM_CLI_TELEMETRY": "0", "HOME": str(home), "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.run(
        command, cwd=cwd, env=os.environ | quiet, capture_output=True, text=True, timeout=240, check=False
    )


def lint_translated(tmp_path: Path, template: Path) -> subprocess.CompletedProcess[str]:
    # The tools check what SAM was given and miss errors in what it makes of that, so lint this too.
    translated = tmp_path / "translated.json"
    document = translate(template)
    for resource in document["Resources"].values():
        # `sam deploy` fills the code's place in; here it is a stand-in that no rule has to know.
        if resource["Type"] == "AWS::Lambda::Function":
            resource["Properties"]["Code"] = {"S3Bucket": "bucket", "S3Key": "key"}
    translated.write_text(json.dumps(document))
    return run(str(BIN / "cfn-lint"), "--non-zero-exit-code", "warning", str(translated), cwd=tmp_path, home=tmp_path)


def test_sam_validate_with_lint(tmp_path: Path) -> None:
    result = run(str(BIN / "sam"), "validate", "--lint", "--template", str(TEMPLATE), home=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_translated_template_lints(tmp_path: Path) -> None:
    result = lint_translated(tmp_path, TEMPLATE)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("BatchSize: 1000", "BatchSize: 10000000", "10000000"),
        (
            "FunctionResponseTypes: [ReportBatchItemFailures]",
            "FunctionResponseTypes: [ReportBatchItemFailure]",
            "ReportBatch",
        ),
    ],
)
def test_the_lint_sees_mistakes_in_what_sam_generates(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    text = TEMPLATE.read_text()
    assert right in text
    broken = tmp_path / "template.yaml"
    broken.write_text(text.replace(right, wrong))
    result = lint_translated(tmp_path, broken)
    assert result.returncode != 0
    assert complaint in result.stdout
