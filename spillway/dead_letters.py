"""What a dead letter says about itself: why it is one, where it came from, and what it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.runtime.dead_letters import ATTRIBUTE, FOLDED, REASON, own_attributes, reasons_in

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ATTRIBUTE", "REASON", "original_attributes", "reasons_of"]


def reasons_of(message: Mapping[str, Any]) -> dict[str, str]:
    """What the worker wrote down: reason, detail, sqlstate, worker, ... (docs/outcomes.md), each a string.

    `message` is as ReceiveMessage returns it, with MessageAttributeNames=["All"]. {} for a message that no worker sent:
    SQS moved it itself after maxReceiveCount receives, or somebody put it there.
    """
    reasons = reasons_in(message.get("MessageAttributes", {}))
    return {name: str(value) for name, value in reasons.items() if name != FOLDED}


def original_attributes(message: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that the message had before it became a dead letter, as SendMessage takes them."""
    return own_attributes(message.get("MessageAttributes", {}))
