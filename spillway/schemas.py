"""What the contracts look like from outside Python: a JSON Schema for each event type and one AsyncAPI document."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import yaml

from spillway.contracts import CONTRACTS
from spillway.samples import examples, of_worker

FOLDER = "events/schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI = "events/asyncapi.yaml"
#: Of the contracts, not of the package: its first number changes when an event that was valid no longer is.
VERSION = "1.0.0"
#: A queue's name on AWS is the stack's name and the worker's (template.yaml).
STACK = "spillway"

#: What the worker checks and JSON Schema has no words for, in every contract.
BEYOND_JSON_SCHEMA = (
    "The formats `uuid` and `date-time` are part of the contract: have your validator assert them. "
    "Beyond what JSON Schema can say, a worker also refuses: values that do not equal what their description says they "
    "must equal; integers written with a fraction part or an exponent (`2.0`, `2e0`); second 60; UTC offsets of 16:00 "
    "or more. It ignores fields it does not know. Of a field given twice, the last one counts."
)

#: PostgreSQL's text has no U+0000. The pattern means the same in ECMA-262 and in Python: `$` may match before a final
#: line feed in Python, which is no NUL either.
WITHOUT_NUL = "^[^\\u0000]*$"


def render() -> dict[str, str]:
    """The text of every generated file, by its path in the repository."""
    files = {
        f"{FOLDER}/{event_type}.json": json.dumps(event_schema(event), indent=2, ensure_ascii=False) + "\n"
        for contract in CONTRACTS.values()
        for event_type, event in event_types(contract).items()
    }
    return files | {ASYNCAPI: _yaml(asyncapi())}


def event_types(contract: Any) -> dict[str, type[msgspec.Struct]]:
    """The contract's events by their CloudEvents type."""
    return {event.__struct_config__.tag: event for event in get_args(contract) or (contract,)}


def event_schema(event: type[msgspec.Struct]) -> dict[str, Any]:
    """The event as one self-contained JSON Schema."""
    (reference,), definitions = msgspec.json.schema_components([event], ref_template="#/$defs/{name}")
    root = definitions.pop(reference["$ref"].rpartition("/")[2])
    event_type = str(event.__struct_config__.tag)
    schema = {
        "$schema": DIALECT,
        "$id": f"urn:spillway:event:{event_type}",
        **root,
        "title": event_type,
        "description": f"{root['description']} {BEYOND_JSON_SCHEMA}",
        "examples": [examples()[event_type]],
    }
    if definitions:
        schema["$defs"] = dict(sorted(definitions.items()))
    return {name: _sharpened(value) if name != "examples" else value for name, value in schema.items()}


def _sharpened(schema: Any) -> Any:
    """`schema` in 2020-12's own words, and with the rule about NUL, which Python has once for the whole event."""
    if isinstance(schema, list):
        return [_sharpened(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: _sharpened(value) for name, value in schema.items()}
    if isinstance(schema.get("enum"), list) and len(schema["enum"]) == 1:
        schema["const"] = schema.pop("enum")[0]
    if schema.get("type") == "string" and not {"pattern", "format"} & schema.keys():
        schema["pattern"] = WITHOUT_NUL
    return schema


def asyncapi() -> dict[str, Any]:
    """The fleet's queues and events as an AsyncAPI 3.0 document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Spillway",
            "version": VERSION,
            "description": (
                "Events in CloudEvents 1.0 JSON that travel over SQS queues into PostgreSQL. Generated from the "
                "contracts in workers/*/contract.py by `spillway generate`. The `id` is the idempotency key: sending "
                "an event again changes nothing. EventBridge and SNS may deliver the events, too: workers unwrap them."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "aws": {
                "host": "sqs.{region}.amazonaws.com",
                "protocol": "sqs",
                "description": "Amazon SQS; the stack's outputs give the queues' URLs.",
                "variables": {"region": {"default": "eu-central-1", "description": "The stack's region."}},
            },
        },
        "channels": {worker: _channel(worker, contract) for worker, contract in CONTRACTS.items()},
        "operations": {
            f"{action}{worker.capitalize()}": _operation(action, worker)
            for worker in CONTRACTS
            for action in ("send", "receive")
        },
        "components": {
            "messages": {
                event_type: _message(event_type, event)
                for contract in CONTRACTS.values()
                for event_type, event in event_types(contract).items()
            },
            "messageTraits": {"sqs": _SQS_TRAIT},
        },
    }


def _channel(worker: str, contract: Any) -> dict[str, Any]:
    queue = of_worker(worker).QUEUE
    fifo = queue.endswith(".fifo")
    dead = f"{queue.removesuffix('.fifo')}-dlq" + (".fifo" if fifo else "")
    return {
        "address": queue,
        "title": f"The {worker} queue",
        "description": (
            f"Its name is the CloudFormation stack's name and `{queue.removeprefix(STACK)}`. What can never be "
            f"processed goes to `{dead}` with its reason."
        ),
        "servers": [{"$ref": "#/servers/aws"}],
        "messages": {
            event_type: {"$ref": f"#/components/messages/{event_type}"} for event_type in event_types(contract)
        },
        # Times and counts are template.yaml's: a number lives once.
        "bindings": {
            "sqs": {
                "queue": {"name": queue, "fifoQueue": fifo},
                "deadLetterQueue": {"name": dead, "fifoQueue": fifo},
                "bindingVersion": "0.2.0",
            }
        },
    }


def _operation(action: str, worker: str) -> dict[str, Any]:
    summary = {
        "send": "A producer sends events, such as with `spillway send`.",
        "receive": f"The {worker} worker writes them to PostgreSQL, a batch at a time.",
    }
    return {"action": action, "channel": {"$ref": f"#/channels/{worker}"}, "summary": summary[action]}


def _message(event_type: str, event: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": event_type,
        "title": event_type,
        "summary": event.__doc__,
        "contentType": "application/json",
        "traits": [{"$ref": "#/components/messageTraits/sqs"}],
        "payload": {"$ref": f"./schemas/{event_type}.json"},
        "examples": [{"name": event_type, "payload": examples()[event_type]}],
    }


_SQS_TRAIT: dict[str, Any] = {
    "headers": {
        "type": "object",
        "description": (
            "SQS attributes. None is needed, and none changes what a worker does: all it needs is in the body."
        ),
        "properties": {
            "AWSTraceHeader": {"type": "string", "description": "System attribute: the X-Ray trace to continue."},
            "MessageGroupId": {
                "type": "string",
                "maxLength": 128,
                "description": "The tenant, for SQS fair queues; on a FIFO queue the group that is kept in order.",
            },
            "MessageDeduplicationId": {
                "type": "string",
                "maxLength": 128,
                "description": "FIFO queues only; the event's `id`.",
            },
        },
    }
}


class _Dumper(yaml.SafeDumper):
    """Without anchors, which read badly and which AsyncAPI's tools need not know."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _yaml(document: dict[str, Any]) -> str:
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# Generated by `spillway generate`.\n{text}"
