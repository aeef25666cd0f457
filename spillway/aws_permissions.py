"""Which permission is missing where AWS says no."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: The services that the tools ask, by the prefix of their IAM actions: for messages that do not name the action (EC2:
#: "You are not authorized to perform this operation.", SQS: "Access to the resource https://... is denied.").
#: tests/template/test_operators.py holds this equal to what the commands call.
OPERATIONS = {
    "cloudformation": "DescribeStacks GetTemplate ListStackResources",
    "cloudwatch": "DescribeAlarms GetMetricData",
    "ec2": "DescribeSecurityGroupRules DescribeSubnets DescribeVpcEndpoints",
    "lambda": (
        "GetAccountSettings GetAlias GetEventSourceMapping GetFunctionConcurrency GetFunctionConfiguration "
        "ListEventSourceMappings ListTags"
    ),
    "logs": "FilterLogEvents GetQueryResults StartQuery StopQuery",
    "rds": (
        "DescribeCertificates DescribeDBClusters DescribeDBInstances DescribeDBProxies DescribeDBProxyEndpoints "
        "DescribeDBProxyTargetGroups DescribeDBProxyTargets DescribeEvents DescribePendingMaintenanceActions "
        "FailoverDBCluster RebootDBInstance"
    ),
    "secretsmanager": "DescribeSecret",
    "sqs": (
        "CancelMessageMoveTask ChangeMessageVisibility DeleteMessage GetQueueAttributes "
        "ListMessageMoveTasks ReceiveMessage SendMessage StartMessageMoveTask"
    ),
    "sts": "GetCallerIdentity",
}
_SERVICES = {operation: service for service, operations in OPERATIONS.items() for operation in operations.split()}

#: "User: ARN is not authorized to perform: ACTION on resource: ARN because no identity-based policy allows the ACTION
#: action", or "... with an explicit deny in a service control policy" (IAM User Guide, "Troubleshoot access denied
#: error messages"). SQS writes its actions in small letters.
_NOT_AUTHORIZED = re.compile(
    r"not authorized to perform:? (?P<action>[\w-]+:\w+)(?: on resource:? (?P<resource>[^\s,]+))?"
)
_FORBIDDEN = re.compile(r"explicit deny(?: in an? (?P<policy>[\w -]+? policy|permissions boundary))?")
_RESOURCE_DENIED = re.compile(r"Access to the resource (?P<resource>\S+) is denied")


def missing_action(error: ClientError) -> str:
    """The IAM action that the caller lacks, such as `sqs:ReceiveMessage`."""
    # SQS authorizes a batch as what it is a batch of ("Amazon SQS API permissions").
    operation = error.operation_name.removesuffix("Batch")
    if said := _NOT_AUTHORIZED.search(message_of(error)):
        service, _, action = said["action"].partition(":")
        known = {one.lower(): one for one in (operation, *_SERVICES)}
        return f"{service}:{known.get(action.lower(), action)}"
    service = _SERVICES.get(operation, "")
    return f"{service}:{operation}" if service else f"(the action of {operation})"


def denied(error: ClientError) -> SpillwayError:
    """`error`, AWS's refusal of what the caller may not do, in words for a person."""
    operation, action, message = error.operation_name, missing_action(error), message_of(error)
    found = _NOT_AUTHORIZED.search(message) or _RESOURCE_DENIED.search(message)
    resource = (found["resource"] or "").rstrip(".") if found else ""
    where = f" on {resource}" if resource not in ("", "*") else ""
    if forbidden := _FORBIDDEN.search(message):
        policy = forbidden["policy"] or "policy"
        article = "an" if policy[0] in "aeiou" else "a"
        return SpillwayError(
            f"AWS denied {operation}{where}: {article} {policy} forbids {action}.",
            "No permission helps against that: ask whoever keeps the policy, or use another --profile.",
        )
    if action.startswith("kms:"):
        return SpillwayError(
            f"AWS denied {operation}: the queue has a KMS key of yours, and these credentials lack {action}{where}.",
            "Allow it in the key's policy, or use a --profile that has it.",
        )
    return SpillwayError(
        f"AWS denied {operation}{where}: these credentials lack {action}.",
        "Attach the policies of infra/operators.yaml, or use a --profile that has it.",
    )


def message_of(error: ClientError) -> str:
    """What AWS said, without its last full stop."""
    return " ".join(str(error.response.get("Error", {}).get("Message") or "").split()).rstrip(".")
