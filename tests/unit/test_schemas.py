"""The generated descriptions of the contracts: in step, complete, and readable by others' tools."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from spillway import schemas
from spillway.commands import generate as command
from spillway.contracts import CONTRACTS
from spillway.errors import SpillwayError
from workers.runtime.envelope import EventDecoder

ROOT = Path(__file__).parents[2]
EVENT_TYPES = {
    event_type: worker for worker, contract in CONTRACTS.items() for event_type in schemas.event_types(contract)
}
ASYNCAPI: dict[str, Any] = yaml.safe_load((ROOT / schemas.ASYNCAPI).read_text())


def _schema(event_type: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((ROOT / schemas.FOLDER / f"{event_type}.json").read_text())
    return schema


def _nodes(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        for value in document.values():
            yield from _nodes(value)
    elif isinstance(document, list):
        for value in document:
            yield from _nodes(value)


def _resolved(reference: str, document: Any, file: Path) -> Any:
    where, _, pointer = reference.partition("#")
    if where:
        text = (file.parent / where).read_text()
        document = json.loads(text) if where.endswith(".json") else yaml.safe_load(text)
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    return reduce(lambda node, step: node[step], steps, document)


def test_generated_files_are_in_step() -> None:
    assert command.out_of_step(ROOT) == [], "run `spillway generate`"


def test_check_names_what_is_out_of_step_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    shutil.copytree(ROOT / "events", tmp_path / "events")
    (tmp_path / "events/schemas/order.placed.json").write_text("{}")
    (tmp_path / "events/samples/orders.single.json").unlink()
    (tmp_path / "events/samples/left_over.json").write_text("{}")
    with pytest.raises(SpillwayError) as raised:
        command.generate(check=True, root=tmp_path)
    out_of_step = [
        "events/samples/left_over.json",
        "events/samples/orders.single.json",
        "events/schemas/order.placed.json",
    ]
    assert raised.value.message == f"Out of step with the contracts: {', '.join(out_of_step)}."
    assert (tmp_path / "events/schemas/order.placed.json").read_text() == "{}"

    command.generate(check=False, root=tmp_path)
    command.generate(check=True, root=tmp_path)


def test_generate_refuses_to_litter_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(SpillwayError, match="not a checkout"):
        command.generate(check=False, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_each_event_type_has_a_self_contained_schema(event_type: str) -> None:
    schema = _schema(event_type)
    Draft202012Validator.check_schema(schema)
    assert (schema["title"], schema["$id"]) == (event_type, f"urn:spillway:event:{event_type}")
    assert schema["description"]
    assert schema["properties"]["type"]["const"] == event_type
    references = [node["$ref"] for node in _nodes(schema) if "$ref" in node]
    assert references
    assert [reference for reference in references if not reference.startswith("#/$defs/")] == []
    assert all(_resolved(reference, schema, ROOT) for reference in references)


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_each_example_satisfies_its_schema_and_its_decoder(event_type: str) -> None:
    schema = _schema(event_type)
    (example,) = schema["examples"]
    Draft202012Validator(schema).validate(example)
    decoder: EventDecoder[Any] = EventDecoder(CONTRACTS[EVENT_TYPES[event_type]])
    assert str(decoder.decode(json.dumps(example)).id) == example["id"]
    (in_asyncapi,) = ASYNCAPI["components"]["messages"][event_type]["examples"]
    assert in_asyncapi["payload"] == example


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_patterns_mean_the_same_in_python_and_in_ecma_262(event_type: str) -> None:
    # The constructs that differ: \d \w \s \b (Unicode or not), \A \Z, named groups, inline flags, look-behind, and a
    # `$` that Python lets match before a final line feed, which a maximum length or the pattern itself has to stop.
    for node in _nodes(_schema(event_type)):
        if "pattern" not in node:
            continue
        assert re.search(r"\\[^u]|\(\?", node["pattern"]) is None, node["pattern"]
        for value in ("\n", "EUR\n", "a\n", "\0\n", "ok"):
            if len(value) <= node["maxLength"]:
                assert bool(re.search(node["pattern"], value)) is bool(re.fullmatch(node["pattern"], value)), node


def test_asyncapi_references_resolve() -> None:
    references = [node["$ref"] for node in _nodes(ASYNCAPI) if "$ref" in node]
    assert references
    for reference in references:
        assert _resolved(reference, ASYNCAPI, ROOT / schemas.ASYNCAPI)


def test_asyncapi_has_every_event_type_on_its_queue() -> None:
    assert ASYNCAPI["asyncapi"].startswith("3.")
    assert {
        event_type: worker for worker, channel in ASYNCAPI["channels"].items() for event_type in channel["messages"]
    } == EVENT_TYPES
    assert ASYNCAPI["components"]["messages"].keys() == EVENT_TYPES.keys()
    assert {(operation["action"], operation["channel"]["$ref"]) for operation in ASYNCAPI["operations"].values()} == {
        (action, f"#/channels/{worker}") for worker in CONTRACTS for action in ("send", "receive")
    }


def test_asyncapi_names_the_queues_of_the_template() -> None:
    template = (ROOT / "template.yaml").read_text()
    for channel in ASYNCAPI["channels"].values():
        for queue in ("queue", "deadLetterQueue"):
            suffix = channel["bindings"]["sqs"][queue]["name"].removeprefix(schemas.STACK)
            assert f'QueueName: !Sub "${{AWS::StackName}}{suffix}"' in template
