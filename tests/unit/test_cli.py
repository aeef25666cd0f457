"""The command line as a whole: which commands there are, and what each costs to be asked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from spillway.cli import COMMANDS, program


def commands(asked: str | None = None) -> dict[str, Any]:
    shown = get_command(program(asked))
    assert isinstance(shown, TyperGroup)
    return shown.commands


def test_the_program_has_every_command_in_the_order_of_the_help() -> None:
    assert list(commands()) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_one_that_was_asked_for_is_there_alone_and_the_same(name: str) -> None:
    alone, among = commands(name), commands()
    assert list(alone) == [name]
    assert alone[name].get_short_help_str() == among[name].get_short_help_str()
    assert [one.name for one in alone[name].params] == [one.name for one in among[name].params]


def test_one_that_there_is_not_is_looked_for_among_all() -> None:
    assert list(commands("flood")) == list(COMMANDS)


@pytest.mark.parametrize("name", ["send", "status", "doctor", "pinned", "dlq"])
def test_a_command_for_a_fleet_anywhere_does_not_load_the_local_stack(name: str) -> None:
    code = (
        f"import sys, spillway.cli; spillway.cli.program({name!r});"
        " print({'spillway.stack.local', 'psycopg', 'boto3'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
