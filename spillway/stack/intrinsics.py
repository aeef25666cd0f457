"""CloudFormation's intrinsic functions, as far as a SAM template without nested stacks needs them locally."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from spillway.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What `!Ref AWS::NoValue` resolves to: the property, list element or branch disappears.
NO_VALUE = object()

_SUBSTITUTION = re.compile(r"\$\{(!?)([^}]+)\}")


class Resolver:
    """Resolves intrinsics against parameters, pseudo parameters and the attributes of the resources that exist locally.

    `attribute(logical_id, name)` gives a resource's attribute (name None for !Ref) or None if there is no such thing.
    """

    def __init__(
        self,
        template: Mapping[str, Any],
        parameters: Mapping[str, Any],
        attribute: Callable[[str, str | None], str | None],
    ) -> None:
        self._conditions = template.get("Conditions", {})
        self._mappings = template.get("Mappings", {})
        self._parameters = parameters
        self._attribute = attribute

    def resolve(self, value: Any) -> Any:
        """`value` with every intrinsic in it replaced. Raises StackError naming the one that cannot be."""
        if isinstance(value, list):
            return [item for item in map(self.resolve, value) if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (name, argument), *_ = value.items()
            if name in {"Ref", "Condition"} or name.startswith("Fn::"):
                return self._call(name, argument)
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NO_VALUE}

    def condition(self, name: str) -> bool:
        """Whether the template's condition `name` holds."""
        if name not in self._conditions:
            raise StackError(f"template.yaml uses the condition {name}, which it does not define.", "Define it.")
        return bool(self.resolve(self._conditions[name]))

    def _call(self, name: str, argument: Any) -> Any:  # noqa: PLR0911, PLR0912  (a table: one line per function)
        match name, argument:
            case "Ref", str():
                return self._ref(argument)
            case "Condition", str():
                return self.condition(argument)
            case "Fn::GetAtt", [str() as logical_id, str() as attribute]:
                return self._require(logical_id, attribute)
            case "Fn::GetAtt", str():
                logical_id, _, attribute = argument.partition(".")
                return self._require(logical_id, attribute)
            case "Fn::Sub", str():
                return self._sub(argument, {})
            case "Fn::Sub", [str() as text, dict() as variables]:
                return self._sub(text, self.resolve(variables))
            case "Fn::Join", [str() as separator, items]:
                return separator.join(map(str, self.resolve(items)))
            case "Fn::Split", [str() as separator, text]:
                return str(self.resolve(text)).split(separator)
            case "Fn::Select", [index, items]:
                return self.resolve(items)[int(self.resolve(index))]
            case "Fn::FindInMap", [table, key, field]:
                # Keys are text, and a parameter that is a number is none here.
                return self._mappings[self.resolve(table)][str(self.resolve(key))][str(self.resolve(field))]
            case "Fn::If", [str() as condition, then, otherwise]:
                return self.resolve(then if self.condition(condition) else otherwise)
            case "Fn::Equals", [left, right]:
                return str(self.resolve(left)) == str(self.resolve(right))
            case "Fn::Not", [inner]:
                return not self.resolve(inner)
            case "Fn::And", list():
                return all(map(self.resolve, argument))
            case "Fn::Or", list():
                return any(map(self.resolve, argument))
        raise StackError(
            f"template.yaml uses {name} in a way the local stack does not know.",
            "Use Ref, GetAtt, Sub, Join, Split, Select, FindInMap, If, Equals, Not, And or Or.",
        )

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self._parameters:
            return self._parameters[name]
        return self._require(name, None)

    def _sub(self, text: str, variables: Mapping[str, Any]) -> str:
        def replace(match: re.Match[str]) -> str:
            literal, name = match.groups()
            if literal:
                return "${" + name + "}"
            if name in variables:
                return str(variables[name])
            logical_id, dot, attribute = name.partition(".")
            return str(self._require(logical_id, attribute) if dot else self._ref(name))

        return _SUBSTITUTION.sub(replace, text)

    def _require(self, logical_id: str, attribute: str | None) -> str:
        found = self._attribute(logical_id, attribute)
        if found is None:
            what = f"{logical_id}.{attribute}" if attribute else logical_id
            raise StackError(
                f"template.yaml refers to {what}, which the local stack does not have.",
                "Give it as a parameter, or keep it out of what the local stack reads.",
            )
        return found
