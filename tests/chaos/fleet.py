"""One running fleet: the local stack of template.yaml with short times, a small pool, and everything breakable.

All times are the shortest that the chain of times allows, so that what failed comes again within a run.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from spillway.aws import sqs_client
from spillway.contracts import contract_of
from spillway.packing import Prepared
from spillway.producer import Producer
from spillway.rdsproxy.settings import RdsProxyError
from spillway.stack import ports, reaper
from spillway.stack.errors import StackError
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.snapshot import depth
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.template import REGION, REPOSITORY
from spillway.stack.template_text import changed_template
from tests.chaos.histories import CLAIMS, workers_with_histories
from tests.chaos.hooks import ENVIRONMENT, Hooks, wait_until
from tests.chaos.sqs_faults import SqsFaults
from workers.runtime.dead_letters import own_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from mypy_boto3_sqs.type_defs import MessageTypeDef

    from spillway.histories.base import Message
    from spillway.stack.environment import ExecutionEnvironment
    from spillway.stack.event_source import EventSourceMapping
    from spillway.stack.rds_proxy import Credentials, RdsProxyServer

#: start 1 + connect 2 + borrow 1 + statement 1 + margin 1 + dead letters 3 + visibility 2, in seconds. As visibility
#: timeout it is far below the 6 x function timeout of template.yaml: two owners of a message are what this is about.
FUNCTION_TIMEOUT_S = VISIBILITY_S = 11
BORROW_TIMEOUT_S = 1
#: Database connections for all workers together; fewer than there are environments.
POOL = 5
BATCH_SIZE = 10
CONCURRENCY = 2
#: Three batches at once are the fewest that deadlock when locks are taken in any order.
MORE_CONCURRENCY = {"inventory": 3}
RETRY_MAX_DELAY_S = 2
#: How long the proxy may take to start while its database comes up again.
PROXY_START_S = 20.0


#: Below the ports that other servers of local stacks choose from: none of them may come up in the place of a proxy that
#: was killed.
_FIXED_PORTS = range(12_000, 20_000)


def _fixed_port() -> int:
    for port in random.sample(_FIXED_PORTS, 100):
        with suppress(StackError):
            ports.check_port(port, "The RDS Proxy")
            return port
    raise StackError("No port is free for the RDS Proxy.")


class ChaosStack(LocalStack):
    """A stack whose functions import environment/sitecustomize.py."""

    hooks: Hooks

    def _aws_variables(self) -> dict[str, str]:
        # The code's own directory too: what is tested is this checkout, wherever the package is installed from.
        path = os.pathsep.join([str(ENVIRONMENT), str(REPOSITORY)])
        return super()._aws_variables() | {"PYTHONPATH": path, "CHAOS_DIR": str(self.hooks.directory)}


class Fleet:
    """The stack, what breaks it, and what is needed to look at it. A context manager; `seed` is the faults'."""

    def __init__(self, seed: str, workers: Sequence[str] | None = None) -> None:
        self.names = tuple(workers or workers_with_histories())
        self._seed = seed
        self._exits = ExitStack()
        self._pins_before = 0
        self.stack: ChaosStack
        self.sqs_faults: SqsFaults
        self.hooks: Hooks

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything; safe to repeat."""
        self._exits.close()

    def _start(self) -> None:
        processes = self._exits.enter_context(Processes())
        server = MinistackServer(processes)
        server.start()
        self.sqs_faults = self._exits.enter_context(SqsFaults(server.endpoint_url, self._seed))
        directory = processes.temporary_directory("spillway-chaos-")
        self.hooks = Hooks(processes.temporary_directory("spillway-hooks-"))
        template = directory / "template.yaml"
        numbers = {"timeout": FUNCTION_TIMEOUT_S, "visibility": VISIBILITY_S, "batch_size": BATCH_SIZE}
        template.write_text(changed_template(dict.fromkeys(self.names, numbers)), encoding="utf-8")
        concurrency = {
            f"{name.title().replace('_', '')}MaximumConcurrency": MORE_CONCURRENCY.get(name, CONCURRENCY)
            for name in self.names
        }
        self.stack = ChaosStack(
            processes,
            StackOptions(
                workers=self.names,
                sqs_endpoint=self.sqs_faults.endpoint_url,
                # Fixed, so that a proxy that was killed comes back where the functions look for it.
                proxy_port=_fixed_port(),
                proxy_connections=POOL,
                ramp=False,
                template=template,
                parameters={
                    "DatabaseConnectTimeout": 2,
                    "DatabaseBorrowTimeout": BORROW_TIMEOUT_S,
                    "DatabaseStatementTimeout": 1,
                    "RetryMaxDelay": RETRY_MAX_DELAY_S,
                    **concurrency,
                },
            ),
        )
        self.stack.hooks = self.hooks
        self._exits.callback(self.stack.stop, drain_s=0.5)
        # Receives and deletes that fail are what this is about; they are in the stack's own log.
        logging.getLogger("spillway.stack").propagate = False
        self.stack.start()
        with self.connect() as admin:
            # Well below the statement timeout, or a deadlock would look like a slow statement.
            admin.execute("ALTER SYSTEM SET deadlock_timeout = '100ms'")
            admin.execute("SELECT pg_reload_conf()")
        self.upstream = sqs_client(server.endpoint_url, REGION)
        self._sender = self.stack.sqs_client(connections=16, attempts=1)
        self.urls = {name: self.stack.queue_urls[queue] for name, (queue, _) in self.stack.workers().items()}
        self.dead_letter_urls = {name: self.stack.queue_urls[dead] for name, (_, dead) in self.stack.workers().items()}

    # What goes in and comes out

    def queue_name(self, worker: str, *, dead_letters: bool = False) -> str:
        """The queue's name, as faults of SQS are aimed at it."""
        return (self.dead_letter_urls if dead_letters else self.urls)[worker].rpartition("/")[2]

    def send(self, worker: str, messages: Iterable[Message], first: int, run: str) -> None:
        """Send messages in order; the first is number `first` of its history. Raises AssertionError if one fails."""
        fifo = self.urls[worker].endswith(".fifo")
        producer = Producer(self._sender, self.urls[worker], contract_of(worker))
        prepared = [
            Prepared.raw(
                message.body,
                group_id=(message.group or "none") if fifo else None,
                dedup_id=f"{run}-{number}" if fifo else None,
            )
            for number, message in enumerate(messages, first)
        ]
        errors = [result.error for result in producer.send(prepared) if result.error]
        assert not errors, errors[:3]

    def waiting(self, worker: str) -> int:
        """Messages that are not done: in the queue, visible or not, held by the faults, or in a batch."""
        found = depth(self.stack.client, self.urls[worker], None)
        return found.waiting + found.in_flight + self.mapping(worker).stats.in_flight_messages

    def dead_letters(self, worker: str, *, limit: int = 1_000_000) -> list[MessageTypeDef]:
        """Take up to `limit` messages, and ten at a time, out of a dead-letter queue."""
        url = self.dead_letter_urls[worker]
        taken: list[MessageTypeDef] = []
        while len(taken) < limit:
            batch = self.upstream.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=0,
                MessageSystemAttributeNames=["All"],
                MessageAttributeNames=["All"],
            ).get("Messages", [])
            if not batch:
                break
            taken += batch
            entries: Any = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]} for index, message in enumerate(batch)
            ]
            assert not self.upstream.delete_message_batch(QueueUrl=url, Entries=entries).get("Failed")
        return taken

    def redrive(self, worker: str, limit: int) -> int:
        """Send dead letters back as an operator does: the message as it was, under a new id; returns how many."""
        letters = self.dead_letters(worker, limit=limit)
        for letter in letters:
            attributes: Any = own_attributes(letter.get("MessageAttributes", {}))
            group = letter.get("Attributes", {}).get("MessageGroupId")
            fifo: Any = {"MessageGroupId": group, "MessageDeduplicationId": f"redrive-{letter['MessageId']}"}
            self.upstream.send_message(
                QueueUrl=self.urls[worker],
                MessageBody=letter["Body"],
                MessageAttributes=attributes,
                **(fifo if group else {}),
            )
        return len(letters)

    # The functions

    def mapping(self, worker: str) -> EventSourceMapping:
        return self.stack.mapping_of(worker)

    def environments(self, worker: str) -> dict[int, ExecutionEnvironment]:
        """Those whose function runs, by the process id of the function."""
        found: dict[int, ExecutionEnvironment] = {}
        table = reaper.process_table()
        for environment in list(self.mapping(worker)._environments._all.values()):
            emulator = environment._emulator  # type: ignore[attr-defined]
            if emulator is not None:
                found |= {one.pid: environment for one in table.values() if one.parent == emulator._popen.pid}  # type: ignore[misc]
        return found

    def kill(self, worker: str, pid: int | None = None) -> int:
        """SIGKILL the function in this process, or in all of the worker's; returns how many."""
        victims = [one for number, one in self.environments(worker).items() if pid in (None, number)]
        for victim in victims:
            victim.kill()
        return len(victims)

    def batches(self, worker: str, reason: str) -> int:
        """Invocations that ended so, of those since the fleet was started."""
        return self.mapping(worker).stats.batches_by_reason[reason]

    # The database and the way to it

    @property
    def proxy(self) -> RdsProxyServer:
        assert self.stack.proxy is not None
        return self.stack.proxy

    def connect(self) -> psycopg.Connection[Any]:
        """As the owner, straight to the database, which may have been restarted since."""
        return psycopg.connect(self.stack.dsn, autocommit=True, connect_timeout=5)

    def claims(self, connection: psycopg.Connection[Any], worker: str, ids: Sequence[Any]) -> int:
        """How many of these events were decided upon."""
        row = connection.execute(
            f"SELECT count(DISTINCT event_id) FROM spillway.{CLAIMS[worker]} WHERE event_id = ANY(%s)",  # noqa: S608
            [list(ids)],
        ).fetchone()
        assert row
        return int(row[0])

    def server_log_count(self, text: str) -> int:
        """How often PostgreSQL logged `text`, restarts included."""
        directory = self.stack.postgres._directory
        assert directory is not None
        return Path(directory, "postgres.log").read_text(errors="replace").count(text)

    def restart_proxy(self, credentials: Credentials | None = None) -> None:
        """Kill the proxy without warning and start it on its port; with `credentials` it believes in others' tokens."""
        with suppress(RdsProxyError):
            self._pins_before += self.proxy.snapshot().pinned_sessions_total
        if self.proxy.pid is not None and self.proxy.running:
            os.kill(self.proxy.pid, signal.SIGKILL)
        self.proxy.stop()
        self.proxy._credentials = credentials or self.stack._function_credentials()
        # The emulator looks at its database when it starts, which another fault may just have crashed.
        if not wait_until(self._start_proxy, PROXY_START_S):
            raise AssertionError(f"The RDS Proxy did not start:\n{self.proxy.log_tail()}")

    def _start_proxy(self) -> bool:
        with suppress(StackError):
            self.proxy.start()
        return self.proxy.running

    @property
    def pins(self) -> int:
        """Sessions that were ever pinned, as far as a killed proxy could still be asked."""
        return self._pins_before + self.proxy.snapshot().pinned_sessions_total
