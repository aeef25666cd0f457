"""A stack of infra/ as it is for some parameters: what exists of it, with every intrinsic resolved."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samcli.yamlhelper import yaml_parse

from spillway.stack.intrinsics import Resolver
from spillway.stack.template import REPOSITORY, _refusal
from tests.template.combinations import PSEUDO_PARAMETERS, decide

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What Fn::GetAZs gives, and more than any stack takes.
ZONES = ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]


@dataclass(frozen=True)
class Stack:
    """Resources and outputs by logical id, without those whose condition does not hold."""

    resources: dict[str, dict[str, Any]]
    outputs: dict[str, Any]

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of every resource of one type, by logical id."""
        return {name: made.get("Properties", {}) for name, made in self.resources.items() if made["Type"] == kind}

    def properties(self, name: str) -> dict[str, Any]:
        """Of one resource. Raises KeyError if it does not exist."""
        return self.resources[name]["Properties"]


def template(name: str) -> dict[str, Any]:
    """infra/`name`.yaml as it is written, with intrinsics in their long form."""
    return yaml_parse((REPOSITORY / "infra" / f"{name}.yaml").read_text(encoding="utf-8"))


def resolved(
    document: Mapping[str, Any],
    given: Mapping[str, str],
    attributes: Mapping[tuple[str, str], str] | None = None,
) -> Stack:
    """The stack that CloudFormation would make of `document`, a parameter not in `given` being at its default.

    !Ref of a resource becomes its logical id, and !GetAtt "<logical id>.<attribute>" unless `attributes` has better.
    Raises AssertionError for parameters that CloudFormation would refuse, StackError for what refers to nothing.
    """
    declared = document["Parameters"]
    values = {name: given.get(name, spec.get("Default")) for name, spec in declared.items()}
    assert set(given) <= set(declared), f"no parameter {sorted(set(given) - set(declared))}"
    for name, value in values.items():
        assert value is not None, f"{name} is missing"
        assert (expected := _refusal(declared[name], str(value))) is None, f"{name}={value!r}: expected {expected}"
    decided = decide(document, values)
    known = attributes or {}

    def attribute(logical_id: str, name: str | None) -> str | None:
        if logical_id not in decided["Resources"]:
            return None
        return logical_id if name is None else known.get((logical_id, name), f"{logical_id}.{name}")

    split = {
        name: str(value).split(",") if declared[name]["Type"] == "CommaDelimitedList" else value
        for name, value in values.items()
    }
    resolver = _Resolver(document, PSEUDO_PARAMETERS | split, attribute)
    resources = {name: _unquoted(resolver, made) for name, made in decided["Resources"].items()}
    outputs = {name: resolver.resolve(output["Value"]) for name, output in decided.get("Outputs", {}).items()}
    return Stack(resources, outputs)


def statements(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a policy document, with Action and Resource as lists."""
    return [
        {
            key: [value] if key in ("Action", "Resource") and isinstance(value, str) else value
            for key, value in statement.items()
        }
        for statement in policy["Statement"]
    ]


def _unquoted(resolver: Resolver, made: Mapping[str, Any]) -> dict[str, Any]:
    # Not the whole resource: DependsOn holds names, and Metadata belongs to other tools.
    return {key: resolver.resolve(value) if key != "Metadata" else value for key, value in made.items()}


class _Resolver(Resolver):
    """Knows the two functions besides that only a network needs."""

    def _call(self, name: str, argument: Any) -> Any:
        match name, argument:
            case "Fn::GetAZs", _:
                return ZONES
            case "Fn::Cidr", [block, count, bits]:
                network = ipaddress.ip_network(str(self.resolve(block)))
                subnets = network.subnets(new_prefix=network.max_prefixlen - int(bits))
                return [str(next(subnets)) for _ in range(int(count))]
        return super()._call(name, argument)
