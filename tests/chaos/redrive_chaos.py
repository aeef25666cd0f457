"""Kills redrives at random points and sees that nothing is lost, nothing takes effect twice, and the journal agrees.

python -m tests.chaos.redrive_chaos --seed 7 --kills 100

A dead-letter queue is full of a history's messages; a worker with a real database reads the queue that they go back to.
Redrives begin, or go on with the last one, and each is killed by SIGKILL at its n-th call of SQS: just before it is
made, or just after it was answered, whatever its other threads do at that moment. The last ones are let live. Then:

lost       every message is in the dead-letter queue, in its queue, or was decided upon
twice      every invariant of the worker's history holds: see spillway/histories
as it was  what arrived has its own body and attributes, and nothing of a dead letter's
journal    what the journal says was sent did arrive, what arrived was sent by it or left in doubt by a killed run, what
           it says was deleted is gone, and every message that is gone was sent
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from spillway.dead_letters import reasons_of
from spillway.dlq.journal import Journal
from spillway.dlq.records import DELETED, KEPT, SENDING, SENT, LetterRecord
from spillway.dlq.redrive import THREADS
from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.template import REPOSITORY
from tests.chaos.histories import generate
from tests.conftest import LOGIN, in_memory
from tests.stack.commands import until
from tests.stack.dlq_consumer import SETTINGS, Consumer, DeadLetters
from workers.migrate.roles import ensure_roles
from workers.migrate.runner import load, migrate
from workers.runtime.database import Database
from workers.runtime.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.histories.base import History

#: Seconds that a killed redrive's letters stay invisible, here.
HOLD_S = 1
OWN = {"tenant": {"DataType": "String", "StringValue": "acme"}}
#: Letters for each kill: enough that there is something left to be redriven until the last one.
LETTERS_PER_KILL = 20
#: Letters of a piece, here, and SQS calls after which a redrive is killed at most: so that it dies receiving, sending
#: and deleting alike.
PIECE_LETTERS, MOST_CALLS = 5, 20
DRAIN_S = 60.0
KILLED = -signal.SIGKILL


@dataclass
class Report:
    """What a run of chaos came to. `sent` counts messages that went back to work, `again` those of them that had been
    sent before; `violations` are sentences."""

    worker: str
    kills: int = 0
    ran: int = 0
    letters: int = 0
    sent: int = 0
    again: int = 0
    in_doubt: int = 0
    violations: list[str] = field(default_factory=list)


class Chaos:
    """One worker's: its letters, its consumer, and the process that redrives are forked from."""

    def __init__(
        self, letters: DeadLetters, history: History, postgres: PostgresServer, database: str, directory: Path
    ) -> None:
        self._letters = letters
        self._history = history
        self._directory = directory
        self._server = postgres
        self._database = database
        self.report = Report(letters.worker)
        settings = SETTINGS | {
            "host": postgres.host,
            "port": postgres.port,
            "database": database,
            "user": LOGIN.name,
            "password": LOGIN.password,
            "dead_letter_queue_url": letters.dead,
        }
        self._store = Database(Settings(**settings))
        self.original: dict[str, str] = {}
        self._last_said = ""

    def run(self, seed: int, kills: int) -> Report:
        """Put the letters, kill redrives, let the last ones live, and check."""
        rng = random.Random(seed)
        for message in self._history.messages:
            [message_id] = self._letters.put([message.body], group=message.group, own=OWN)
            self.original[message_id] = message.body
        self.report.letters = len(self.original)
        with Consumer(self._letters, store=self._store) as consumer, _zygote(self._directory) as zygote:
            while self.report.kills < kills and any(self._letters.depth(self._letters.dead)):
                self._redrive(zygote, rng, kill=True)
            # A killed process's last requests may still be on their way, and what it held comes back by itself.
            until(lambda: self._letters.depth(self._letters.dead)[1] == 0, "letters that nobody holds")
            self._let_live(zygote, rng)
            consumer.drain()
            if self._letters.fifo:  # what came too early for its turn in its group is dead again: it has its turn now
                self._let_live(zygote, rng)
                consumer.drain()
        self._check(consumer)
        return self.report

    def _let_live(self, zygote: subprocess.Popen[str], rng: random.Random) -> None:
        deadline = time.monotonic() + DRAIN_S
        while self._redrive(zygote, rng, kill=False) != 0:
            if time.monotonic() > deadline:
                self.report.violations.append("a redrive that nobody kills does not come to its end")
                return
            time.sleep(HOLD_S / 4)

    def _redrive(self, zygote: subprocess.Popen[str], rng: random.Random, *, kill: bool) -> int:
        """One redrive, new or resumed. Returns its exit status."""
        order = {
            "worker": self._letters.worker,
            "resume": rng.random() < 0.5,
            "canary": kill and rng.random() < 0.2,
            "kill_after": rng.randint(1, MOST_CALLS) if kill else 0,
            "answered": rng.random() < 0.5,
        }
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        zygote.stdin.write(json.dumps(order) + "\n")
        zygote.stdin.flush()
        answer = json.loads(zygote.stdout.readline())
        self.report.ran += 1
        self._last_said = f"{order} ended with {answer['status']}: {answer['said'][-2000:]}"
        self.report.kills += answer["status"] == KILLED
        if answer["status"] not in (0, 3, KILLED):
            self.report.violations.append(f"a redrive {self._last_said}")
            return 0
        return int(answer["status"])

    def _check(self, consumer: Consumer) -> None:
        say = self.report.violations.append
        dead = self._letters.take(self._letters.dead)
        waiting = self._letters.take(self._letters.queue)
        if len(dead) + len(waiting) != sum(self._letters.depth(self._letters.dead), len(dead) + len(waiting)):
            say("a letter is still invisible")
        with psycopg.connect(self._server.dsn(self._database), autocommit=True) as admin:
            self.report.violations += self._history.violations(admin)[:5]
        broken = Counter(one["Body"] for one in dead if one["Body"] in self._history.broken)
        for body, count in self._history.broken.items():
            if broken[body] < count:
                say(f"a broken message is lost: {count} were there, {broken[body]} are: {body[:80]}")
        for one in dead:
            if one["Body"] not in self._history.broken:
                reasons = {name: reasons_of(one).get(name) for name in ("reason", "detail", "first-seen")}
                say(f"a good message is still dead: {one['Body'][:80]} {reasons}; the last redrive {self._last_said}")
        bodies = set(self.original.values())
        for names, body in consumer.seen.values():
            if names != OWN.keys():
                say(f"a message arrived with the attributes {sorted(names)}")
            if body not in bodies:
                say(f"a message arrived with another body: {body[:80]}")
        self._check_journal(consumer, {one["MessageId"] for one in dead}, {one["MessageId"] for one in waiting})

    def _check_journal(self, consumer: Consumer, dead: set[str], waiting: set[str]) -> None:
        say = self.report.violations.append
        with Journal.open() as journal:
            rows: list[LetterRecord] = [row for run in journal.runs() for row in journal.letters(run.id)]
        sent = {row.new_message_id: row for row in rows if row.state in (SENT, DELETED)}
        arrived = consumer.seen.keys() | waiting
        for new_id in sent.keys() - arrived:
            say(f"the journal says that {new_id} was sent, and it never arrived")
        known = {row.message_id for row in sent.values()}
        doubtful = sum(row.state == SENDING or (row.state == KEPT and "interrupted" in row.reason) for row in rows)
        # A resumed run writes its own doubts over; what it had sent before came from a letter that it then sent again.
        unexplained = arrived - sent.keys()
        self.report.sent, self.report.again = len(arrived), len(arrived) - len(known)
        self.report.in_doubt = len(unexplained)
        by_body = Counter(self.original[row.message_id] for row in rows if row.message_id in self.original)
        for new_id in unexplained:
            body = consumer.seen[new_id][1] if new_id in consumer.seen else ""
            if not by_body[body]:
                say(f"{new_id} arrived, and the journal has no letter with its body")
        most = doubtful + self.report.kills * THREADS * PIECE_LETTERS
        if len(unexplained) > most:
            say(
                f"{len(unexplained)} messages arrived that the journal did not send; {most} would be explained by kills"
            )
        for row in rows:
            if row.state == DELETED and row.message_id in dead:
                say(f"the journal says that {row.message_id} was deleted, and it is in the dead-letter queue")
        for message_id in self.original.keys() - dead - known:
            say(f"{message_id} is gone, and the journal does not say that it was sent")


@contextlib.contextmanager
def _zygote(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported, and forks a redrive for each line it reads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.redrive_chaos", "--zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"SPILLWAY_JOURNAL": str(directory / "journal.sqlite3")},
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


def zygote() -> None:
    """Fork and answer, until standard input ends."""
    from spillway.aws import sqs_client  # noqa: PLC0415
    from spillway.commands import dlq  # noqa: PLC0415, F401

    sqs_client("http://127.0.0.1:1", "us-east-1")  # botocore's models are read once
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os._exit(_redrive_once(json.loads(line)))
            _, status = os.waitpid(child, 0)
            said.seek(0)
            text = said.read().decode(errors="replace")
        answers.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "said": text}) + "\n")
        answers.flush()


def _redrive_once(order: dict[str, Any]) -> int:
    import traceback  # noqa: PLC0415

    from spillway import aws  # noqa: PLC0415
    from spillway.commands.dlq import app  # noqa: PLC0415
    from spillway.dlq import orders  # noqa: PLC0415
    from spillway.dlq.holding import Holder  # noqa: PLC0415

    Holder.__init__.__kwdefaults__["hold_s"] = HOLD_S  # type: ignore[index]
    orders.MAX_LETTERS = PIECE_LETTERS  # type: ignore[attr-defined]
    real = aws.client
    calls = 0

    def client(*given: Any, **more: Any) -> Any:
        made = real(*given, **more)

        def count(**_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == order["kill_after"]:
                os.kill(os.getpid(), signal.SIGKILL)

        if order["kill_after"]:
            made.meta.events.register("after-call.sqs" if order["answered"] else "before-call.sqs", count)
        return made

    aws.client = client
    words = ["redrive", order["worker"], "--canary-timeout", "20"] if order["canary"] else None
    try:
        with Journal.open() as journal:
            resumable = [one for one in journal.runs() if one.kind == "redrive" and one.state != "done"]
        if order["resume"] and resumable:
            words = ["redrive", order["worker"], "--resume", resumable[0].id]
        else:
            words = ["redrive", order["worker"], "--yes", *(() if order["canary"] else ("--no-canary",))]
        return int(app(words, standalone_mode=False) or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def redrive_chaos(
    worker: str, seed: int, kills: int, *, endpoint: str, postgres: PostgresServer, database: str, directory: Path
) -> Report:
    """Chaos for one worker on servers that run. The environment must name `directory`'s state and journal."""
    history = generate(worker, seed, kills * LETTERS_PER_KILL)
    letters = DeadLetters(endpoint, worker, directory, fifo=worker == "payments")
    return Chaos(letters, history, postgres, database, directory).run(seed, kills)


def main() -> None:
    """Make a run with a standard and one with a FIFO queue, half of the kills each; exit 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.redrive_chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what everything is drawn from")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--zygote", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.zygote:
        zygote()
        return
    os.environ["POWERTOOLS_METRICS_DISABLED"] = "true"
    reports = []
    with ExitStack() as resources:
        processes = resources.enter_context(Processes())
        postgres = PostgresServer(processes, durable=False)
        with in_memory():
            postgres.start()
        for worker in ("orders", "payments"):
            server = resources.enter_context(MinistackServer(processes))
            directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="spillway-redrive-")))
            os.environ["SPILLWAY_STATE"] = str(directory / "stack.json")
            os.environ["SPILLWAY_JOURNAL"] = str(directory / "journal.sqlite3")
            with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE {worker}")
            with psycopg.connect(postgres.dsn(worker), autocommit=True) as admin:
                ensure_roles(admin, LOGIN)
                migrate(admin, load())
            started = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()):
                report = redrive_chaos(
                    worker,
                    arguments.seed,
                    arguments.kills // 2,
                    endpoint=server.endpoint_url,
                    postgres=postgres,
                    database=worker,
                    directory=directory,
                )
            reports.append(report)
            sys.stdout.write(f"seed {arguments.seed}: {_summary(report)} ({time.monotonic() - started:.0f} s)\n")
    sys.exit(1 if any(one.violations for one in reports) else 0)


def _summary(report: Report) -> str:
    said = (
        f"{report.worker}: {report.kills} kills in {report.ran} redrives of {report.letters:,} letters; "
        f"{report.sent:,} messages arrived, {report.again:,} of them a second time"
    )
    return "\n  ".join([said, *report.violations[:20]])


if __name__ == "__main__":
    main()
