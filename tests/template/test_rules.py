"""A wrong combination of parameters is refused by a sentence before anything is created."""

from __future__ import annotations

from typing import Any

import pytest

from tests.template.combinations import COMBINATIONS, DATABASE, ENDPOINTS, NO_ALARMS, PROXY, TOPIC, VPC, root
from tests.template.rules import RuleError, refusals

# Whether a CommaDelimitedList of "" has no member or an empty one: rules must not depend on it.
EMPTY_LISTS = [(), ("",)]


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    # As SAM hands it on to CloudFormation.
    return root()


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("empty_list", EMPTY_LISTS)
def test_combinations_that_make_sense_pass(template: dict[str, Any], name: str, empty_list: tuple[str, ...]) -> None:
    assert refusals(template, COMBINATIONS[name], empty_list=empty_list) == []


OWN = VPC | PROXY
PASSWORD = {"DatabaseAuth": "password", "DatabasePassword": "secret"}

WRONG: list[tuple[dict[str, str], str]] = [
    ({"VpcId": VPC["VpcId"]}, "VpcId and SubnetIds go together"),
    ({"SubnetIds": VPC["SubnetIds"]}, "VpcId and SubnetIds go together"),
    ({"EndpointSecurityGroupId": ENDPOINTS["EndpointSecurityGroupId"]}, "EndpointSecurityGroupId belongs to VpcId"),
    (PROXY, "a VPC made here could not reach it"),
    (OWN | {"DatabaseSecurityGroupId": ""}, "give DatabaseSecurityGroupId"),
    (OWN | {"DatabaseResourceId": ""}, "give DatabaseResourceId"),
    ({"DatabaseResourceId": PROXY["DatabaseResourceId"]}, "they belong to a DatabaseHost"),
    ({"DatabaseSecurityGroupId": PROXY["DatabaseSecurityGroupId"]}, "they belong to a DatabaseHost"),
    ({"ProxyName": "mine"}, "they belong to a DatabaseHost"),
    (PASSWORD, "takes tokens"),
    ({"DatabasePort": "6432"}, "listens on 5432"),
    ({"CreateProxy": "false"}, "DatabaseRoute=proxy needs a proxy"),
    ({"DatabaseRoute": "direct"}, "DatabaseRoute=direct needs DirectAccess=open"),
    (OWN | {"DatabaseAuth": "password"}, "needs DatabasePassword"),
    ({"DatabaseSslMode": "disable"}, "needs TLS"),
    ({"Alarms": "off"}, "A gradual Rollout needs Alarms=on"),
    (NO_ALARMS | TOPIC, "AlarmTopicArn needs Alarms=on"),
    ({"DatabaseUser": "spillway_admin"}, "DatabaseUser cannot be spillway_admin"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG)
@pytest.mark.parametrize("empty_list", EMPTY_LISTS)
def test_a_wrong_combination_is_refused_by_one_sentence(
    template: dict[str, Any], given: dict[str, str], sentence: str, empty_list: tuple[str, ...]
) -> None:
    (said,) = refusals(template, given, empty_list=empty_list)
    assert sentence in said


def test_every_sentence_has_its_wrong_combination(template: dict[str, Any]) -> None:
    sentences = {claim["AssertDescription"] for rule in template["Rules"].values() for claim in rule["Assertions"]}
    tried = {said for given, _ in WRONG for said in refusals(template, given)}
    assert sentences == tried
    # CloudFormation shows it as it is: it must name what to change.
    for sentence in sentences:
        assert sentence.endswith("."), sentence
        assert any(name in sentence for name in template["Parameters"]), sentence


@pytest.mark.parametrize(
    "given",
    [
        DATABASE | VPC | {"DatabaseRoute": "direct", "DirectAccess": "open"},
        OWN | PASSWORD | {"DatabaseResourceId": ""},
        OWN | PASSWORD | {"DatabaseSslMode": "disable", "DatabasePort": "6432"},
        OWN | {"ProxyName": "mine"} | TOPIC,
        {"CreateProxy": "false", "DatabaseRoute": "direct", "DirectAccess": "open"},
        NO_ALARMS,
    ],
)
def test_what_is_close_to_wrong_passes(template: dict[str, Any], given: dict[str, str]) -> None:
    assert refusals(template, given) == []


def equals(name: str, value: str) -> dict[str, Any]:
    return {"Fn::Equals": [{"Ref": name}, value]}


def template_of(claim: Any, condition: Any = True) -> dict[str, Any]:
    return {
        "Parameters": {
            "Engine": {"Type": "String", "Default": "postgres"},
            "Timeout": {"Type": "Number", "Default": 10},
            "Subnets": {"Type": "CommaDelimitedList", "Default": ""},
            "Needed": {"Type": "String"},
        },
        "Rules": {
            "Rule": {"RuleCondition": condition, "Assertions": [{"Assert": claim, "AssertDescription": "No."}]},
        },
    }


NONE_GIVEN = {"Fn::EachMemberEquals": [{"Ref": "Subnets"}, ""]}


@pytest.mark.parametrize(
    ("claim", "given", "holds"),
    [
        (equals("Engine", "postgres"), {}, True),
        (equals("Engine", "postgres"), {"Engine": "aurora-postgresql"}, False),
        (equals("Timeout", "10"), {}, True),  # numbers are compared by their text
        ({"Fn::Equals": [{"Ref": "Timeout"}, 10]}, {"Timeout": 10}, True),
        ({"Fn::Equals": ["true", True]}, {}, True),
        ({"Fn::Not": [equals("Engine", "postgres")]}, {}, False),
        ({"Fn::And": [equals("Engine", "postgres"), equals("Timeout", "10")]}, {}, True),
        ({"Fn::And": [equals("Engine", "postgres"), equals("Timeout", "10")]}, {"Timeout": 20}, False),
        ({"Fn::Or": [equals("Engine", "x"), equals("Timeout", "10")]}, {}, True),
        ({"Fn::Or": [equals("Engine", "x"), equals("Timeout", "11")]}, {}, False),
        ({"Fn::Contains": [["postgres", "x"], {"Ref": "Engine"}]}, {}, True),
        ({"Fn::Contains": [["x", "y"], {"Ref": "Engine"}]}, {}, False),
        ({"Fn::Contains": [{"Ref": "Subnets"}, "subnet-b"]}, {"Subnets": "subnet-a, subnet-b"}, True),
        ({"Fn::EachMemberIn": [{"Ref": "Subnets"}, ["a", "b", "c"]]}, {"Subnets": "a,b"}, True),
        ({"Fn::EachMemberIn": [{"Ref": "Subnets"}, ["a", "c"]]}, {"Subnets": "a,b"}, False),
        (NONE_GIVEN, {}, True),
        (NONE_GIVEN, {"Subnets": "a"}, False),
        (NONE_GIVEN, {"Subnets": ["a", "b"]}, False),
    ],
)
@pytest.mark.parametrize("empty_list", EMPTY_LISTS)
def test_the_evaluator(claim: Any, given: dict[str, Any], holds: bool, empty_list: tuple[str, ...]) -> None:
    assert refusals(template_of(claim), given, empty_list=empty_list) == ([] if holds else ["No."])


def test_an_assertion_counts_only_where_its_rule_applies() -> None:
    never = {"Fn::Equals": ["a", "b"]}
    assert refusals(template_of(never, equals("Engine", "postgres")), {}) == ["No."]
    assert refusals(template_of(never, equals("Engine", "postgres")), {"Engine": "other"}) == []


@pytest.mark.parametrize(
    ("claim", "complaint"),
    [
        ({"Condition": "IsProduction"}, "not possible in a rule"),
        ({"Fn::If": ["A", True, False]}, "not possible in a rule"),
        ({"Fn::Equals": [{"Fn::Join": ["", {"Ref": "Subnets"}]}, ""]}, "not possible in a rule"),
        ({"Fn::Equals": [{"Ref": "Subnets"}, ""]}, "expected a string"),
        ({"Fn::Contains": [{"Ref": "Engine"}, "x"]}, "expected a list"),
        ({"Fn::And": [equals("Engine", "x")]}, "expected 2 to 10 conditions, got 1"),
        ({"Fn::Or": [equals("Engine", "x")] * 11}, "expected 2 to 10 conditions, got 11"),
        (equals("Nobody", "x"), "not known here"),
        (equals("Needed", "x"), "parameter Needed has no value"),
        ("true", "expected something true or false"),
        ({"Fn::RefAll": "AWS::EC2::VPC::Id"}, "not known here"),
    ],
)
def test_what_cloudformation_would_not_take_is_an_error(claim: Any, complaint: str) -> None:
    with pytest.raises(RuleError, match=complaint):
        refusals(template_of(claim), {})


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(RuleError, match="no parameter Enigne"):
        refusals(template_of(equals("Engine", "postgres")), {"Enigne": "x"})
