"""What was deployed: the template as CloudFormation processed it, and what its parameters are. Locally, the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillway.stack import template
from spillway.stack.errors import StackError
from spillway.stack.intrinsics import Resolver

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet

#: Nested stacks whose outputs functions have in their environment.
_ASKED = ("Proxy", "Database")
_RESOURCES = frozenset(
    {
        "AWS::SQS::Queue",
        "AWS::Lambda::Function",
        "AWS::Lambda::Alias",
        "AWS::Lambda::EventSourceMapping",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The stack. `wanted` is what its template says, by logical id. `status` is CloudFormation's, '' locally.

    `physical` maps logical ids of the root stack to physical ids, `outputs` a nested stack's to its outputs.
    """

    name: str
    status: str
    parameters: Mapping[str, str]
    wanted: template.Fleet
    pseudo: Mapping[str, str] = field(default_factory=dict)
    physical: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def environment(self, logical_id: str) -> dict[str, str]:
        """The variables that the template gives the function, as far as they can be told from here."""
        resolver = Resolver(self.wanted.template, self.wanted.parameters | dict(self.pseudo), self._attribute)
        told = {}
        for name, value in self.wanted.functions[logical_id].environment.items():
            try:
                told[name] = str(resolver.resolve(value))
            except StackError:
                continue  # it refers to something that only CloudFormation knows
        return told

    def _attribute(self, logical_id: str, name: str | None) -> str | None:
        if name is None:
            return self.physical.get(logical_id)
        return self.outputs.get(logical_id, {}).get(name.removeprefix("Outputs."))


def load(fleet: Fleet) -> Stack:
    """Raises botocore's errors, and StackError for a template that cannot be read."""
    return _local(fleet) if fleet.local is not None else _deployed(fleet)


def _local(fleet: Fleet) -> Stack:
    state = fleet.local
    assert state is not None  # noqa: S101  (asked before)
    if not state.template:
        raise StackError("The local stack does not say which template it runs.", "Start it anew: spillway up.")
    parameters = {name: value for name, value in state.parameters.items() if not name.startswith("AWS::")}
    wanted = template.resolve(template.translate(Path(state.template)), parameters)
    by_name = {worker.queue: worker.queue_url for worker in fleet.workers.values()}
    by_name |= {worker.dead_letter_queue: worker.dead_letter_url for worker in fleet.workers.values()}
    physical = {queue.logical_id: by_name[queue.name] for queue in wanted.queues.values() if queue.name in by_name}
    return Stack(name=fleet.name, status="", parameters=parameters, wanted=wanted, physical=physical)


def _deployed(fleet: Fleet) -> Stack:
    client = fleet.client("cloudformation")
    described = client.describe_stacks(StackName=fleet.name)["Stacks"][0]
    body = client.get_template(StackName=fleet.name, TemplateStage="Processed")["TemplateBody"]
    processed: dict[str, Any] = json.loads(body if isinstance(body, str) else json.dumps(body))
    parameters = {
        one["ParameterKey"]: one.get("ResolvedValue", one.get("ParameterValue", ""))
        for one in described.get("Parameters", [])
    }
    # Of the rest nothing is read, and intrinsics that only CloudFormation knows may be in it.
    processed["Resources"] = {
        name: one for name, one in processed["Resources"].items() if one["Type"] in _RESOURCES
    } | {name: {"Type": one["Type"]} for name, one in processed["Resources"].items() if one["Type"] not in _RESOURCES}
    wanted = template.resolve(processed, parameters)
    _, partition, _, region, account, _ = described["StackId"].split(":", 5)
    outputs = {}
    for nested in fleet.of_type("AWS::CloudFormation::Stack", ""):
        if nested.logical_id in _ASKED:
            found = client.describe_stacks(StackName=nested.physical_id)["Stacks"][0].get("Outputs", [])
            outputs[nested.logical_id] = {one["OutputKey"]: one["OutputValue"] for one in found}
    return Stack(
        name=fleet.name,
        status=described["StackStatus"],
        parameters=parameters,
        wanted=wanted,
        pseudo={
            "AWS::StackName": fleet.name,
            "AWS::Region": region,
            "AWS::AccountId": account,
            "AWS::Partition": partition,
        },
        physical={one.logical_id: one.physical_id for one in fleet.resources if not one.stack},
        outputs=outputs,
    )
