"""The list of what the copy for ministack has otherwise: no entry too many, none too few."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.deploy.derived import (
    Change,
    NothingToChange,
    Template,
    change_all,
    read,
    remove,
    report,
    unknown_types,
    without,
)
from tests.deploy.fleet import Local, changes

LOCAL = Local(proxy_port=1, database_port=2, master_secret_arn="arn:aws:secretsmanager:us-east-1:000000000000:secret:x")
LIST = changes(LOCAL)


@pytest.fixture(scope="module")
def original() -> dict[str, Template]:
    return read()


@pytest.fixture
def templates(original: dict[str, Template]) -> dict[str, Template]:
    return copy.deepcopy(original)


def test_every_entry_has_a_place_and_nothing_unknown_stays(templates: dict[str, Template]) -> None:
    applied = change_all(templates, LIST)
    assert all(each.places for each in applied)
    assert unknown_types(templates) == set()
    assert all(f"- {entry.what}: {entry.why}" in report(applied) for entry in LIST)


def test_an_entry_without_a_place_is_refused(templates: dict[str, Template]) -> None:
    with pytest.raises(NothingToChange, match=r"without AWS::EC2::NatGateway"):
        change_all(templates, (*LIST, without("AWS::EC2::NatGateway", "there is none")))


@pytest.mark.parametrize(
    "entry", [entry for entry in LIST if entry.why.startswith("ministack does not know")], ids=lambda entry: entry.what
)
def test_what_is_taken_out_for_its_type_is_still_unknown_to_ministack(
    entry: Change, templates: dict[str, Template]
) -> None:
    change_all(templates, tuple(each for each in LIST if each is not entry))
    assert unknown_types(templates) == {entry.what.removeprefix("without ")}


def test_references_to_what_is_taken_out_get_a_value_of_the_same_form() -> None:
    template: dict[str, Any] = {
        "Resources": {
            "Proxy": {"Type": "P"},
            "Group": {
                "Type": "G",
                "DependsOn": "Proxy",
                "Properties": {
                    "Name": {"Ref": "Proxy"},
                    "Other": {"Ref": "ProxyName"},
                    "Id": {"Fn::Select": [6, {"Fn::Split": [":", {"Fn::GetAtt": ["Proxy", "DBProxyArn"]}]}]},
                    "Text": {"Fn::Sub": "${Proxy.Endpoint}:5432/${AWS::Region}/${Proxy}/${Group.Arn}"},
                    "Given": {
                        "Fn::Sub": ["${Proxy}/${Host}", {"Proxy": "mine", "Host": {"Fn::GetAtt": "Proxy.Endpoint"}}]
                    },
                },
            },
            "Last": {"Type": "L", "DependsOn": ["Proxy", "Group"]},
        },
        "Outputs": {"Endpoint": {"Value": {"Fn::GetAtt": ["Proxy", "Endpoint"]}}},
    }
    remove(template, "Proxy")
    arn = "arn:aws:none:us-east-1:000000000000:none:prx-proxy"
    assert template == {
        "Resources": {
            "Group": {
                "Type": "G",
                "Properties": {
                    "Name": "proxy",
                    "Other": {"Ref": "ProxyName"},
                    "Id": {"Fn::Select": [6, {"Fn::Split": [":", arn]}]},
                    "Text": {"Fn::Sub": "localhost:5432/${AWS::Region}/proxy/${Group.Arn}"},
                    "Given": {"Fn::Sub": ["${Proxy}/${Host}", {"Proxy": "mine", "Host": "localhost"}]},
                },
            },
            "Last": {"Type": "L", "DependsOn": ["Group"]},
        },
        "Outputs": {"Endpoint": {"Value": "localhost"}},
    }
    assert arn.split(":")[6].startswith("prx-")
