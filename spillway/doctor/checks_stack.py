"""The CloudFormation stack itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.doctor.finding import Finding, fail, passed, warn
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts


@check("stack-settled", area="stack", needs=deployed)
def stack_settled(facts: Facts) -> Iterator[Finding]:
    """The last deployment is over, and was not rolled back."""
    name, status = facts.stack.name, facts.stack.status
    events = f"aws cloudformation describe-stack-events --stack-name {name} --max-items 40"
    # "Stack status codes", CloudFormation user guide.
    if status.endswith("_FAILED") or status == "ROLLBACK_COMPLETE":
        yield fail(name, f"is in {status}: it can no longer be deployed as it is", f"See why: {events}")
    elif status == "UPDATE_ROLLBACK_COMPLETE":
        yield warn(name, "its last deployment was rolled back: what runs is the version before", f"See why: {events}")
    elif status.endswith("_IN_PROGRESS"):
        yield warn(name, f"is in {status}: old and new resources are side by side", "Look again when it is over.")
    else:
        yield passed(name, f"is in {status}")
