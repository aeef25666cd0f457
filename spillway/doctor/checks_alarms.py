"""Checks on the alarms: all there, able to tell somebody, quiet, and not blind."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_alarms import Alarm
    from spillway.doctor.finding import Finding

#: A new fleet begins without data, and housekeeping's period is a day.
BLIND = timedelta(days=1)


@check("alarms-exist", area="alarms", needs=deployed)
def exist(facts: Facts) -> Iterator[Finding]:
    """Every alarm of the stack's templates exists."""
    if not facts.alarms:
        yield _off(facts)
        return
    gone = [one for one in facts.alarms if not one.found]
    for one in gone:
        # CloudFormation only makes again what it knows to be gone.
        fix = "Deploy with Alarms=off and Rollout=CodeDeployDefault.LambdaAllAtOnce, then with both as before."
        yield fail(one.name, "it was deleted past CloudFormation", fix)
    if not gone:
        yield passed(facts.fleet.name, f"all {len(facts.alarms)} alarms exist")


@check("alarms-tell", area="alarms", needs=deployed)
def tell(facts: Facts) -> Iterator[Finding]:
    """Alarms tell somebody: their actions are on and lead to the topic."""
    if not facts.alarms:
        yield _off(facts)
        return
    topic = facts.stack.parameters.get("AlarmTopicArn", "")
    if not topic:
        yield warn(
            facts.fleet.name, "its alarms tell nobody", "Deploy with AlarmTopicArn, an SNS topic that somebody reads."
        )
        return
    mute = [one for one in _found(facts) if not one.rollback and (not one.enabled or topic not in one.actions)]
    for one in mute:
        if one.enabled:
            yield fail(
                one.name,
                "it does not tell the topic of AlarmTopicArn",
                "Deploy without AlarmTopicArn, then with it again.",
            )
        else:
            fix = f"aws cloudwatch enable-alarm-actions --alarm-names {one.name}"
            yield fail(one.name, "its actions are switched off: it tells nobody", fix)
    if not mute:
        yield passed(facts.fleet.name, f"alarms tell {topic.rpartition(':')[2]}")


@check("alarms-quiet", area="alarms", needs=deployed)
def quiet(facts: Facts) -> Iterator[Finding]:
    """No alarm is in ALARM."""
    if not facts.alarms:
        yield _off(facts)
        return
    loud = [one for one in _found(facts) if one.state == "ALARM"]
    for one in loud:
        since = f" since {one.since:%Y-%m-%d %H:%M} UTC" if one.since else ""
        read = one.link or "docs/operations.md"
        if one.rollback:
            # What it watches has an alarm of its own that tells people.
            yield warn(one.name, f"a rollout now would be rolled back: ALARM{since}", f"See {read}.")
        else:
            yield fail(one.name, f"it is in ALARM{since}", f"See {read}.")
    if not loud:
        yield passed(facts.fleet.name, "no alarm is in ALARM")


@check("alarms-see", area="alarms", needs=deployed)
def see(facts: Facts) -> Iterator[Finding]:
    """No alarm has been without data for more than a day."""
    if not facts.alarms:
        yield _off(facts)
        return
    blind = [one for one in _found(facts) if _blind(facts, one)]
    for one in blind:
        said = f"it has had no data since {one.since:%Y-%m-%d %H:%M} UTC"
        if one.gap_matters:
            fix = f"What reports to it has stopped: see {one.link or 'docs/operations.md'}."
            yield fail(one.name, said, fix)
        else:
            fix = f"aws cloudwatch describe-alarms --alarm-names {one.name}: does what its dimensions name still exist?"
            yield warn(one.name, said, fix)
    if not blind:
        yield passed(facts.fleet.name, "every alarm has data, or is new")


def _blind(facts: Facts, one: Alarm) -> bool:
    if one.state != "INSUFFICIENT_DATA" or one.rollback or one.since is None:
        return False
    if one.logical_id.startswith("Governor") and facts.stack.parameters.get("Governor") == "off":
        return False  # nobody reports
    return facts.now - one.since > BLIND


def _found(facts: Facts) -> Iterator[Alarm]:
    return (one for one in facts.alarms if one.found)


def _off(facts: Facts) -> Finding:
    if facts.stack.parameters.get("Alarms") == "off":
        return skip(facts.fleet.name, "this stack has no alarms (Alarms=off)", "Deploy with Alarms=on.")
    return fail(facts.fleet.name, "this stack has no alarms", "Deploy with Alarms=on.")
