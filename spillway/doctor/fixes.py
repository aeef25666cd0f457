"""Commands and sentences that say what to do, as they are typed for this fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spillway.doctor.facts import Facts


def set_attribute(facts: Facts, queue_url: str, attribute: str) -> str:
    """The command that sets `attribute` (NAME=VALUE) of a queue."""
    local = facts.fleet.local
    endpoint = "" if local is None else f" --endpoint-url {local.endpoint_url}"
    return f"aws sqs set-queue-attributes{endpoint} --queue-url {queue_url} --attributes {attribute}"


def spillway(facts: Facts, command: str) -> str:
    """`command` of spillway's, for this fleet."""
    return f"spillway {command}" if facts.fleet.local is not None else f"spillway {command} --stack {facts.fleet.name}"


def deploy_again(facts: Facts, why: str) -> str:
    """A deployment puts it right; `why` is a clause after a colon."""
    return f"{'Start `spillway up` anew' if facts.fleet.local is not None else 'Deploy again'}: {why}."


def set_back(facts: Facts) -> str:
    """Somebody changed a resource past the template, which a deployment alone may not notice."""
    if facts.fleet.local is not None:
        return "Start `spillway up` anew."
    return (
        f"Find what else changed: aws cloudformation detect-stack-drift --stack-name {facts.fleet.name}; "
        "then set it back, or put it into the template and deploy."
    )
