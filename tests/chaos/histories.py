"""The histories of one run: for each worker messages with a known truth, and a message that kills."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import spillway.histories
from spillway.histories.base import VALID, History, Message
from spillway.stack.template import TEMPLATE
from tests.chaos.environment.sitecustomize import KILLER

#: Share of all messages.
POISON, DUPLICATES = 0.05, 0.05


def workers_with_histories() -> tuple[str, ...]:
    """Every worker of template.yaml for which there is a history, in the template's order."""
    banners = re.findall(r"^ *# ── (\w+) ", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    modules = {module.name for module in iter_modules(spillway.histories.__path__)}
    return tuple(name for name in banners if name in modules)


def _claims(worker: str) -> str:
    (history,) = (
        value
        for value in vars(import_module(f"spillway.histories.{worker}")).values()
        if isinstance(value, type) and issubclass(value, History) and getattr(value, "worker", None) == worker
    )
    return history.claims


#: Where each worker remembers the events that it has decided upon.
CLAIMS = {worker: _claims(worker) for worker in workers_with_histories()}


def generate(worker: str, seed: int, events: int, **own: Any) -> History:
    """The history of `worker` for one run; other seeds share no id and no key with it."""
    make = import_module(f"spillway.histories.{worker}").generate
    # Few keys: what is written at the same time should be about the same things.
    few = {"orders": {"prefix": f"ord-{seed}"}, "inventory": {"skus": max(8, events // 12)}, "audit": {"streams": 4}}
    own = few.get(worker, {}) | own
    history: History = make(events=events, seed=seed, duplicates=DUPLICATES, poison=POISON, **own)
    return history


def killers(worker: str, seed: int) -> tuple[Message, ...]:
    """A message that is valid in every way, and ends the process that decodes it."""
    first = next(message for message in generate(worker, seed, 60).messages if message.kind == VALID)
    body = json.dumps(json.loads(first.body) | {"source": KILLER})
    return (Message(body, "killer", first.group),)


def killer_ids(messages: tuple[Message, ...]) -> list[str]:
    """Their event ids: none may ever take effect."""
    return [json.loads(message.body)["id"] for message in messages]
