"""The fleet that an operator's command is about: the local stack that runs, or one deployed to AWS."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spillway import aws
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mypy_boto3_sqs import SQSClient

    from spillway.stack.state import StackState

#: Tries of one call, with exponential pauses up to 20 s (botocore's standard mode): an operator's command competes with
#: a fleet that is in trouble, and is to get through.
ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the deployed stack. `stack` is the logical id of the nested stack that has it, '' for the root."""

    logical_id: str
    type: str
    physical_id: str
    stack: str = ""
    status: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker that reads a queue. `function` is the function's name, `logs` its log group (locally: its log file)."""

    name: str
    queue_url: str
    dead_letter_url: str
    function: str
    logs: str

    @property
    def queue(self) -> str:
        """The queue's name."""
        return queue_name(self.queue_url)

    @property
    def dead_letter_queue(self) -> str:
        """The dead-letter queue's name."""
        return queue_name(self.dead_letter_url)

    @property
    def fifo(self) -> bool:
        return self.queue_url.endswith(".fifo")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """One fleet. `local` is the running local stack, None on AWS; `resources` are the deployed stack's, () locally."""

    name: str
    workers: Mapping[str, Worker]
    region: str | None = None
    profile: str | None = None
    local: StackState | None = field(default=None, repr=False)  # it holds secrets
    resources: Sequence[Resource] = field(default=(), repr=False)

    @property
    def identity(self) -> str:
        """What tells this fleet from every other, also from the local stack that ran before this one."""
        if self.local is not None:
            return f"local {self.local.endpoint_url} since {self.local.started_at}"
        return f"{self.name} in {self.region}"

    def sqs(self, *, connections: int = 10) -> SQSClient:
        """A client of the fleet's SQS for `connections` threads."""
        made: SQSClient = self.client("sqs", connections=connections)
        return made

    def client(self, service: str, *, connections: int = 10) -> Any:
        """A boto3 client. The local stack has no service but SQS: asking it for another is a programmer's mistake."""
        if self.local is None:
            return aws.client(service, None, self.region, self.profile, attempts=ATTEMPTS, connections=connections)
        if service != "sqs":
            raise ValueError(f"The local stack has no {service}")
        # A server on this machine answers at once or is gone.
        return aws.client(service, self.local.endpoint_url, self.local.region, connections=connections)

    def of_type(self, kind: str, stack: str | None = None) -> Iterator[Resource]:
        """The deployed resources of a CloudFormation type such as `AWS::SQS::Queue`, of one nested stack or of all."""
        return (one for one in self.resources if one.type == kind and stack in (None, one.stack))

    def find_worker(self, said: str) -> Worker:
        """The worker that `said` means: its name, or the name, URL or ARN of its queue or dead-letter queue.

        Raises SpillwayError for a queue that the fleet does not have, with the nearest name it has.
        """
        wanted = said.rstrip("/").rpartition("/")[2].rpartition(":")[2]
        if (worker := self._by_name.get(wanted)) is not None:
            return worker
        near = get_close_matches(wanted, self._by_name, n=1, cutoff=0.5)
        known = ", ".join(worker.dead_letter_queue for worker in self.workers.values()) or "none"
        raise SpillwayError(
            f"{self.title} has no queue {said!r}.",
            (f"Did you mean {near[0]!r}? " if near else "") + f"Its dead-letter queues: {known}.",
        )

    @cached_property
    def _by_name(self) -> dict[str, Worker]:
        names: dict[str, Worker] = {}
        for worker in self.workers.values():
            for queue in (worker.queue, worker.dead_letter_queue):
                # With the stack's name in front and without, with .fifo and without.
                for name in (queue, queue.removeprefix(f"{self.name}-")):
                    names |= dict.fromkeys((name, name.removesuffix(".fifo")), worker)
        return names | dict(self.workers)

    @property
    def title(self) -> str:
        """The fleet in a sentence."""
        return "The local stack" if self.local is not None else f"The stack {self.name}"


def queue_name(url: str) -> str:
    """The name at the end of a queue's URL."""
    return url.rstrip("/").rpartition("/")[2]
