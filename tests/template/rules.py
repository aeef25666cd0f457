"""CloudFormation's Rules, which refuse a combination of parameters before anything is created; evaluated here.

Only what CloudFormation itself takes in a rule is understood, so that a rule which works here works there: Ref and the
rule-specific functions, And and Or with two to ten conditions (CloudFormation Template Reference, "Rule functions").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_CONDITIONS, MAX_CONDITIONS = 2, 10


class RuleError(Exception):
    """A rule that CloudFormation would not take."""


def refusals(template: Mapping[str, Any], given: Mapping[str, Any], *, empty_list: tuple[str, ...] = ()) -> list[str]:
    """The sentences with which the template's Rules refuse `given`, its other parameters at their defaults.

    AWS does not document whether a CommaDelimitedList of "" has no member or one that is empty: `empty_list` is what
    it becomes, and a rule should hold with both. Raises RuleError for a rule that CloudFormation would not take.
    """
    declared = template["Parameters"]
    if unknown := set(given) - set(declared):
        raise RuleError(f"no parameter {', '.join(sorted(unknown))}")
    values = {
        name: _value(parameter, given.get(name, parameter.get("Default")), empty_list)
        for name, parameter in declared.items()
    }
    said = []
    for rule in template.get("Rules", {}).values():
        if _true(rule.get("RuleCondition", True), values):
            said += [claim["AssertDescription"] for claim in rule["Assertions"] if not _true(claim["Assert"], values)]
    return said


def _value(parameter: Mapping[str, Any], value: Any, empty_list: tuple[str, ...]) -> str | list[str] | None:
    if value is None:
        return None
    if parameter["Type"] == "CommaDelimitedList":
        items = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
        return items if items not in ([], [""]) else list(empty_list)
    return str(value)


def _true(condition: Any, values: Mapping[str, Any]) -> bool:
    result = _evaluate(condition, values)
    if not isinstance(result, bool):
        raise RuleError(f"expected something true or false, got {condition}")
    return result


def _evaluate(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_evaluate(item, values) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Ref": str() as name} if name in values:
            if values[name] is None:
                raise RuleError(f"parameter {name} has no value")
            return values[name]
        case {"Fn::And": list() as conditions}:
            return all(_conditions(conditions, values))
        case {"Fn::Or": list() as conditions}:
            return any(_conditions(conditions, values))
        case {"Fn::Not": [condition]}:
            return not _true(condition, values)
        case {"Fn::Equals": [left, right]}:
            return _text(left, values) == _text(right, values)
        case {"Fn::Contains": [items, item]}:
            return _text(item, values) in _texts(items, values)
        case {"Fn::EachMemberEquals": [items, item]}:
            return all(member == _text(item, values) for member in _texts(items, values))
        case {"Fn::EachMemberIn": [items, allowed]}:
            return set(_texts(items, values)) <= set(_texts(allowed, values))
    # Fn::RefAll, Fn::ValueOf and Fn::ValueOfAll ask the account, which is not here.
    raise RuleError(f"not possible in a rule, or not known here: {value}")


def _conditions(conditions: list[Any], values: Mapping[str, Any]) -> list[bool]:
    if not MIN_CONDITIONS <= len(conditions) <= MAX_CONDITIONS:
        raise RuleError(f"expected {MIN_CONDITIONS} to {MAX_CONDITIONS} conditions, got {len(conditions)}")
    return [_true(condition, values) for condition in conditions]


def _text(value: Any, values: Mapping[str, Any]) -> str:
    result = _evaluate(value, values)
    if isinstance(result, (list, dict)):
        raise RuleError(f"expected a string, got {value}")
    # YAML's own booleans become CloudFormation's words.
    return str(result).lower() if isinstance(result, bool) else str(result)


def _texts(value: Any, values: Mapping[str, Any]) -> list[str]:
    result = _evaluate(value, values)
    if not isinstance(result, list):
        raise RuleError(f"expected a list, got {value}")
    return [_text(item, {}) for item in result]
