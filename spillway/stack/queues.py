"""Creates the template's queues on an SQS endpoint, dead-letter queues first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from spillway.stack.errors import StackError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.literals import QueueAttributeNameType

    from spillway.stack.template import Fleet, Queue


def create_queues(client: SQSClient, fleet: Fleet) -> dict[str, str]:
    """Create every queue of `fleet` and return its URL by logical id. A queue that is there already is used as it is.

    Raises StackError where the endpoint does not answer as SQS does, or a queue exists with other attributes.
    """
    # Redrive policies point at queues that must exist, so those that have none come first.
    in_order = sorted(fleet.queues.values(), key=lambda queue: queue.dead_letter_queue is not None)
    return {queue.logical_id: _create(client, fleet, queue) for queue in in_order}


def _create(client: SQSClient, fleet: Fleet, queue: Queue) -> str:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    attributes = cast("dict[QueueAttributeNameType, str]", dict(queue.attributes))
    if queue.dead_letter_queue is not None:
        target = fleet.queues[queue.dead_letter_queue].arn
        attributes["RedrivePolicy"] = json.dumps(
            {"deadLetterTargetArn": target, "maxReceiveCount": queue.max_receive_count}
        )
    endpoint = client.meta.endpoint_url
    try:
        return client.create_queue(QueueName=queue.name, Attributes=attributes)["QueueUrl"]
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if "QueueNameExists" in code or "QueueAlreadyExists" in code:
            raise StackError(
                f"The queue {queue.name} at {endpoint} exists with other attributes than template.yaml's.",
                "Delete it, or use another endpoint.",
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "an error")
        raise StackError(
            f"The SQS endpoint {endpoint} answered {status} to CreateQueue ({code or 'no error code'}).",
            "Check that the endpoint is an SQS server and that the credentials may create queues.",
        ) from error
    except BotoCoreError as error:
        raise StackError(
            f"The SQS endpoint {endpoint} does not answer as SQS does: {error}.",
            "Check --sqs-endpoint, or leave it out to use the embedded server.",
        ) from error
