"""Creates the template's queues on an SQS endpoint, dead-letter queues first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from spillway.stack.errors import StackError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

    from spillway.stack.template import Fleet, Queue


@dataclass(frozen=True, slots=True)
class CreatedQueue:
    """A queue as the endpoint knows it."""

    url: str
    arn: str


def create_queues(client: SQSClient, fleet: Fleet) -> dict[str, CreatedQueue]:
    """Create every queue of `fleet` and return it by logical id. A queue that is there already is used as it is.

    Raises StackError where the endpoint does not answer as SQS does, or a queue exists with other attributes.
    """
    created: dict[str, CreatedQueue] = {}
    # Redrive policies point at queues that must exist, so those that have none come first.
    for queue in sorted(fleet.queues.values(), key=lambda queue: queue.dead_letter_queue is not None):
        created[queue.logical_id] = _create(client, queue, created)
    return created


def _create(client: SQSClient, queue: Queue, created: dict[str, CreatedQueue]) -> CreatedQueue:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    attributes = cast("dict[QueueAttributeNameType, str]", dict(queue.attributes))
    if queue.dead_letter_queue is not None:
        attributes["RedrivePolicy"] = json.dumps(
            {"deadLetterTargetArn": created[queue.dead_letter_queue].arn, "maxReceiveCount": queue.max_receive_count}
        )
    endpoint = client.meta.endpoint_url
    try:
        url = client.create_queue(QueueName=queue.name, Attributes=attributes)["QueueUrl"]
        # Asked for, not made up: account and region are the endpoint's.
        return CreatedQueue(
            url, client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        )
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if "QueueNameExists" in code or "QueueAlreadyExists" in code:
            raise StackError(
                f"The queue {queue.name} at {endpoint} exists with other attributes than template.yaml's.",
                "Delete it, or use another endpoint.",
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "an error")
        raise StackError(
            f"The SQS endpoint {endpoint} answered {status} to creating {queue.name} ({code or 'no error code'}).",
            "Check that the endpoint is an SQS server and that the credentials may create queues.",
        ) from error
    except (BotoCoreError, LookupError, TypeError, AttributeError) as error:
        # The SDK takes any body of an answer with status 200; a queue URL or ARN is then missing from it.
        why = str(error) if isinstance(error, BotoCoreError) else "its answer is not one to CreateQueue"
        raise StackError(
            f"The SQS endpoint {endpoint} does not answer as SQS does: {why}.",
            "Check --sqs-endpoint, or leave it out to use the embedded server.",
        ) from error
