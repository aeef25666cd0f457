"""The combinations of parameters that matter, and what a template is once its conditions are decided by one of them.

Linters look at every branch of a condition at once. With the branches taken, a reference to a resource that is not
made in this combination is simply broken, and a value that only this combination gives is checked as it is.
"""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samcli.yamlhelper import yaml_parse

from spillway.stack.intrinsics import NO_VALUE, Resolver
from spillway.stack.template import ACCOUNT, REGION, REPOSITORY, STACK_NAME, TEMPLATE, _refusal, translate
from tests.template.rules import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STACK = "AWS::CloudFormation::Stack"
PSEUDO_PARAMETERS = {
    "AWS::StackName": STACK_NAME,
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
}
#: Stands for what is known only once another stack or resource exists; a condition sees that it is not empty.
MADE = "made"


def environments() -> dict[str, dict[str, str]]:
    """The parameters of each environment of samconfig.toml, as `sam deploy --config-env` gives them."""
    config = tomllib.loads((REPOSITORY / "samconfig.toml").read_text(encoding="utf-8"))
    found = {}
    for name, section in config.items():
        if isinstance(section, dict) and "deploy" in section:
            overrides = section["deploy"]["parameters"].get("parameter_overrides", [])
            pairs = overrides.split() if isinstance(overrides, str) else overrides
            found[name] = dict(pair.split("=", 1) for pair in pairs)
    # What `sam deploy --guided` starts from overrides nothing.
    return {name: given for name, given in found.items() if given}


VPC = {"VpcId": "vpc-0a1b2c3d4e5f60718", "SubnetIds": "subnet-0a1b2c3d4e5f60718,subnet-0b1c2d3e4f5061728"}
ENDPOINTS = {"EndpointSecurityGroupId": "sg-0b1c2d3e4f5061728", "S3PrefixListId": "pl-0a1b2c3d"}
PROXY = {
    "DatabaseHost": "orders.proxy-abcdefghijkl.us-east-1.rds.amazonaws.com",
    "DatabaseResourceId": "prx-0a1b2c3d4e5f60718",
    "DatabaseSecurityGroupId": "sg-0a1b2c3d4e5f60718",
}
DATABASE = PROXY | {
    "DatabaseHost": "orders.abcdefghijkl.us-east-1.rds.amazonaws.com",
    "DatabaseResourceId": "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
}
NO_ALARMS = {"Alarms": "off", "Rollout": "CodeDeployDefault.LambdaAllAtOnce"}
DIRECT = {"DatabaseRoute": "direct", "DirectAccess": "open"}
TOPIC = {"AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:alarms"}

# Few, because linting one takes a second or two: what does not touch each other shares a combination.
COMBINATIONS: dict[str, dict[str, str]] = {
    **environments(),
    "your own VPC with endpoints, Aurora, alarms to a topic": VPC
    | ENDPOINTS
    | TOPIC
    | {"DatabaseEngine": "aurora-postgresql"},
    "your own proxy": VPC | PROXY | {"ProxyName": "mine", "CreateProxy": "false"},
    "your own database, direct, no alarms": VPC | DATABASE | DIRECT | NO_ALARMS | {"CreateProxy": "false"},
    "Aurora Serverless v2, direct": {"DatabaseEngine": "aurora-serverless-v2", "CreateProxy": "false"} | DIRECT,
    "the proxy logs in with IAM, x86_64": {"ProxyAuthentication": "iam", "Architecture": "x86_64"},
    "Aurora, the proxy logs in with IAM, moving from direct to the proxy": {
        "DatabaseEngine": "aurora-postgresql",
        "ProxyAuthentication": "iam",
        "DirectAccess": "open",
    },
}


def root(path: Path = TEMPLATE) -> dict[str, Any]:
    """template.yaml as SAM translates it, with a stand-in for the code that `sam deploy` uploads."""
    document = translate(path)
    for resource in document["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function":
            resource["Properties"]["Code"] = {"S3Bucket": "bucket", "S3Key": "key"}
    return document


def sources() -> list[Path]:
    """Every template as it is written."""
    return [TEMPLATE, *sorted((REPOSITORY / "infra").glob("*.yaml"))]


def stacks(document: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The root stack and every stack that it nests, by name, as `given` decides their conditions.

    Raises AssertionError where a stack is not given what it needs, or is given what it or its Rules would refuse.
    """
    for name, decided, _ in stacks_with_values(document, given):
        yield name, decided


def stacks_with_values(
    document: Mapping[str, Any], given: Mapping[str, Any], *, name: str = "root", folder: Path = REPOSITORY
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """As `stacks`, with the values of each stack's parameters; MADE where another stack gives them."""
    values = _values(name, document.get("Parameters", {}), given)
    _assert_rules_hold(name, document, values)
    decided = decide(document, values)
    yield name, decided, values
    for logical_id, resource in decided["Resources"].items():
        if resource["Type"] == STACK:
            path = folder / resource["Properties"]["TemplateURL"]
            nested = yaml_parse(path.read_text(encoding="utf-8"))
            passed = {
                parameter: _known(decided, values, value)
                for parameter, value in resource["Properties"].get("Parameters", {}).items()
            }
            yield from stacks_with_values(nested, passed, name=f"{name}/{logical_id}", folder=path.parent)


def _values(stack: str, declared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(declared))
    assert not unknown, f"{stack} has no parameter {unknown}"
    values: dict[str, Any] = {name: given.get(name, spec.get("Default")) for name, spec in declared.items()}
    missing = [name for name, value in values.items() if value is None]
    assert not missing, f"{stack} is not given {missing}"
    for name, value in values.items():
        refusal = None if value == MADE else _refusal(declared[name], str(value))
        assert refusal is None, f"{stack} would refuse {name}={value!r}: expected {refusal}"
    return values


def _assert_rules_hold(stack: str, document: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    # The root's refuse at once; a nested stack's would, too, but after what was made before it.
    for empty_list in ((), ("",)):
        assert refusals(document, values, empty_list=empty_list) == [], stack


def _known(document: Mapping[str, Any], values: Mapping[str, Any], value: Any) -> str:
    """`value` if it is known before anything is made, else MADE."""
    resources = []

    def attribute(logical_id: str, name: str | None) -> str:
        resources.append((logical_id, name))
        return MADE

    resolved = _resolver(document, values, attribute).resolve(value)
    return MADE if resources else str(resolved)


def _resolver(document: Mapping[str, Any], values: Mapping[str, Any], attribute: Any) -> Resolver:
    lists = {name for name, spec in document.get("Parameters", {}).items() if "List" in spec["Type"]}
    split = {name: str(value).split(",") if name in lists else value for name, value in values.items()}
    return Resolver(document, PSEUDO_PARAMETERS | split, attribute)


def decide(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`document` without conditions, each decided by `values`, which become the parameters' defaults.

    Everything else that refers to something is left as it is, for a linter to follow.
    """
    resolver = _resolver(document, values, lambda *_: MADE)

    def branch(node: Any) -> Any:
        if isinstance(node, list):
            return [item for item in map(branch, node) if item is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        match node:
            case {"Ref": "AWS::NoValue"}:
                return NO_VALUE
            case {"Fn::If": [condition, then, otherwise]}:
                return branch(then if resolver.condition(condition) else otherwise)
        return {key: item for key, item in ((key, branch(item)) for key, item in node.items()) if item is not NO_VALUE}

    def present(section: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: branch({key: item for key, item in entry.items() if key != "Condition"})
            for name, entry in section.items()
            if "Condition" not in entry or resolver.condition(entry["Condition"])
        }

    decided = {key: copy.deepcopy(item) for key, item in document.items() if key not in ("Conditions", "Rules")}
    decided["Resources"] = present(document["Resources"])
    if "Outputs" in document:
        decided["Outputs"] = present(document["Outputs"])
    for resource in decided["Resources"].values():
        # CloudFormation forgets a DependsOn on what its condition keeps away; a linter would not.
        if "DependsOn" in resource:
            names = resource["DependsOn"]
            names = [names] if isinstance(names, str) else names
            resource["DependsOn"] = [
                name for name in names if name in decided["Resources"] or name not in document["Resources"]
            ]
    for name, parameter in decided.get("Parameters", {}).items():
        parameter.pop("Default", None)
        if values[name] != MADE:
            parameter["Default"] = values[name]
            if "AllowedValues" in parameter:
                parameter["AllowedValues"] = [values[name]]
    return decided
