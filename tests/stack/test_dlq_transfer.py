"""`spillway dlq export`, `import` and `discard` against a real SQS server."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from spillway.aws import sqs_client
from spillway.commands.dlq import app, discarding
from spillway.dlq import importing, reading, transfer
from spillway.dlq.files import Attribute, BadLine, End, Entry, Header, Numbered, entry_of, line_of, read_lines
from spillway.dlq.holding import Holder
from spillway.dlq.importing import Destination
from spillway.dlq.journal import Journal
from spillway.dlq.letters import Letter, read_letter
from spillway.errors import SpillwayError
from spillway.histories.orders import generate
from spillway.producer import Producer
from spillway.send_result import SendError, SendResult
from spillway.stack.state import StackState, write_state
from workers.runtime.dead_letters import DeadLetterQueue
from workers.runtime.failures import Poison, Reason

URL = "https://sqs.eu-west-1.amazonaws.com/"
PAUSED = Poison(Reason.CONTRACT, "Expected `int`, got `str` - at `$.data.version`")


class Sender:
    """What DeadLetterQueue takes for a connection to SQS."""

    def __init__(self, client: Any) -> None:
        self.client = client


class LocalStack:
    """Queues of two workers on an SQS server, and the state that a command finds them by."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        self.client = sqs_client(endpoint)
        self.name = "spillway"
        self.queues = {"orders": self._queue("orders"), "payments": self._queue("payments.fifo")}
        self.dead = {"orders": self._queue("orders-dlq"), "payments": self._queue("payments-dlq.fifo")}
        write_state(
            StackState(
                pid=os.getpid(),
                endpoint_url=endpoint,
                region="us-east-1",
                queues=self.queues,
                dead_letter_queues=self.dead,
                dsn="",
                started_at=1.5,
                log_dir=str(directory),
            )
        )

    def _queue(self, name: str) -> str:
        attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        return str(self.client.create_queue(QueueName=f"{self.name}-{name}", Attributes=attributes)["QueueUrl"])

    def close(self) -> None:
        for url in (*self.queues.values(), *self.dead.values()):
            self.client.delete_queue(QueueUrl=url)

    def poison(self, bodies: list[str], *, worker: str = "orders", why: Poison = PAUSED, **own: Any) -> None:
        """Dead-letter messages as a worker does."""
        records = [
            {
                "messageId": str(uuid4()),
                "body": body,
                "attributes": {"ApproximateReceiveCount": "1"}
                | ({"MessageGroupId": f"account-{number % 2}"} if worker == "payments" else {}),
                "messageAttributes": own,
            }
            for number, body in enumerate(bodies)
        ]
        queue = DeadLetterQueue(self.dead[worker], worker, Sender(self.client))  # type: ignore[arg-type]
        confirmed, trouble = queue.send([(record, why) for record in records], lambda: 30.0)  # type: ignore[misc]
        assert (len(confirmed), trouble) == (len(bodies), "")

    def visible(self, url: str) -> list[Letter]:
        """What can be received at once; all of it is given back."""
        with Holder(self.client, url) as holder:
            return [letter for batch in iter(holder.receive, []) for letter in batch]


@pytest.fixture
def stack(sqs_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "stack.json"))
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    monkeypatch.delenv("SPILLWAY_STACK", raising=False)
    # The server takes a twelve-digit access key for the account: each test has queues of its own.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"{uuid4().int % 10**12:012}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    stack = LocalStack(sqs_endpoint, tmp_path)
    yield stack
    stack.close()


def run(*arguments: object, input: str | None = None) -> tuple[int, str]:
    """Exit status, and all that was said."""
    result = CliRunner().invoke(app, list(map(str, arguments)), input=input)
    if isinstance(result.exception, SpillwayError):
        return result.exception.exit_code, f"{result.output}{result.exception.message}\n{result.exception.hint}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def bodies(letters: list[Letter]) -> list[str]:
    return sorted(letter.body for letter in letters)


def runs() -> list[tuple[str, str, dict[str, int]]]:
    with Journal.open() as journal:
        return [(one.kind, one.state, one.counts) for one in journal.runs()]


#: Any text, and often what is hard to carry: surrogates, alone and in pairs, controls, noncharacters, line ends.
HARD = st.sampled_from('\ud800\ud83d\ude00\udfff\ufffe\uffff\x00\x1b\x85\u2028\r\n"\\')
#: Not st.text(...), which leaves surrogates out of such an alphabet without a word.
TEXTS = st.lists(st.characters(exclude_categories=()) | HARD, min_size=1).map("".join)
ATTRIBUTES = st.dictionaries(
    st.from_regex(r"[a-z][a-z.]{0,20}[a-z]", fullmatch=True),
    st.one_of(
        st.builds(
            lambda kind, text: {"DataType": kind, "StringValue": text}, st.sampled_from(["String", "Number"]), TEXTS
        ),
        st.builds(
            lambda kind, value: {"DataType": kind, "BinaryValue": value},
            st.sampled_from(["Binary", "Binary.gif"]),
            st.binary(min_size=1),
        ),
    ),
    max_size=3,
)


@given(st.lists(st.tuples(TEXTS, ATTRIBUTES, st.dictionaries(TEXTS, TEXTS, max_size=2)), max_size=5))
def test_every_text_and_attribute_comes_back_from_a_file(messages: list[tuple[str, Any, Any]]) -> None:
    file = io.BytesIO(line_of(Header(queue="q")))
    file.seek(0, io.SEEK_END)
    for number, (body, attributes, reasons) in enumerate(messages):
        letter = Letter(
            message_id=str(number),
            receipt_handle="",
            body=body,
            attributes=attributes,
            reasons=reasons,
            system={"n": "1"},
        )
        file.write(line_of(entry_of(letter)))
    file.write(line_of(End(letters=len(messages), complete=True)))
    assert file.getvalue().count(b"\n") == len(messages) + 2
    file.seek(0)
    header, *entries, end = read_lines(file)
    assert (header, end) == (Header(queue="q"), End(letters=len(messages), complete=True))
    read = [(one.entry.text, one.entry.message_attributes) for one in entries if isinstance(one, Numbered)]
    assert read == [(body, attributes) for body, attributes, _ in messages]


def test_the_message_that_had_to_fold_an_attribute_is_as_before() -> None:
    own = {f"a{number}": {"DataType": "String", "StringValue": "x" * number} for number in range(1, 11)}
    sent: list[Any] = []

    class Client:
        def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
            sent.extend(Entries)
            return {"Successful": [{"Id": one["Id"]} for one in Entries]}

    lambda_form = {name: {"dataType": "String", "stringValue": one["StringValue"]} for name, one in own.items()}
    record: Any = {"messageId": "m", "body": "{", "attributes": {}, "messageAttributes": lambda_form}
    DeadLetterQueue("q", "orders", Sender(Client())).send([(record, PAUSED)], lambda: 30.0)  # type: ignore[arg-type]
    message = {"MessageId": "m", "ReceiptHandle": "r", "Body": "{", "MessageAttributes": sent[0]["MessageAttributes"]}
    line = line_of(entry_of(read_letter(message)))
    [entry] = [one.entry for one in read_lines(io.BytesIO(line)) if isinstance(one, Numbered)]
    assert entry.own_attributes == own
    assert entry.message_attributes == sent[0]["MessageAttributes"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"message_id": "m"}', "one of `body` and `base64`"),
        ('{"message_id": "m", "body": "b", "base64": "eA=="}', "one of `body` and `base64`"),
        ('{"message_id": "m", "base64": "/w=="}', "got another byte at 0"),
        ('{"message_id": "m", "base64": "?"}', "base64"),
        ('{"message_id": "m", "body": "b", "attributes": {"a": {"type": "Binary", "value": "b"}}}', "binary attribute"),
        ('{"message_id": "m", "body": "b", "typo": 1}', "unknown field `typo`"),
    ],
)
def test_a_bad_line_says_why(text: str, why: str) -> None:
    good = line_of(Entry(message_id="m", body="b"))
    found = list(read_lines(io.BytesIO(good + b"\n" + text.encode() + b"\n" + good)))
    assert [type(one) for one in found] == [Numbered, BadLine, Numbered]
    assert isinstance(found[1], BadLine)
    assert found[1].number == 3
    assert why in found[1].why


def test_a_file_of_something_else_or_of_the_future() -> None:
    for head, why in [
        ('{"spillway": "orders", "queue": "q"}', "'orders'"),
        ('{"spillway":"dead letters","version":2,"queue":"q"}', "newer"),
    ]:
        [bad] = read_lines(io.BytesIO(head.encode()))
        assert isinstance(bad, BadLine)
        assert why in bad.why


def test_export_writes_what_matches_and_takes_nothing(stack: LocalStack, tmp_path: Path) -> None:
    stack.poison(["{", '{"n": "é\u2028\x85"}'], why=Poison(Reason.UNDECODABLE, "malformed (byte 1)"))
    stack.poison(["text"], trace={"dataType": "Binary", "binaryValue": "AP8="})
    stack.client.send_message(QueueUrl=stack.dead["orders"], MessageBody="foreign")
    file = tmp_path / "orders.jsonl"
    status, said = run("export", "orders", file)
    assert (status, said.splitlines()[0]) == (0, f"Wrote 4 letters of {stack.name}-orders-dlq to {file}.")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.glob(".orders*")) == []
    header, *entries, end = lines(file)
    assert (header["queue"], header["worker"], header["filter"]) == (f"{stack.name}-orders-dlq", "orders", [])
    assert end == {"end": {"letters": 4, "complete": True}}
    assert sorted(entry["body"] for entry in entries) == bodies(stack.visible(stack.dead["orders"]))
    [text] = [entry for entry in entries if entry["body"] == "text"]
    assert text["reasons"]["reason"] == "contract"
    assert text["attributes"]["trace"] == {"type": "Binary", "base64": "AP8="}
    assert text["sqs"]["SentTimestamp"].isdigit()

    status, said = run("export", "orders", file)
    assert status == 1
    assert "is there already" in said
    status, said = run("export", "orders", file, "--force", "--reason", "undecodable", "--json")
    assert (status, json.loads(said)["letters"], json.loads(said)["complete"]) == (0, 2, True)
    assert json.loads(said)["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert lines(file)[0]["filter"] == ["reason undecodable"]
    status, said = run("export", "orders", file, "--force", "--limit", 3)
    assert "There may be more" in said
    assert lines(file)[-1] == {"end": {"letters": 3, "complete": False}}
    assert len(stack.visible(stack.dead["orders"])) == 4


def test_export_to_a_pipe(stack: LocalStack, tmp_path: Path) -> None:
    stack.poison([f"{number}" for number in range(3)])
    command = [sys.executable, "-m", "spillway", "dlq", "export", "orders", "-"]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert result.returncode == 0
    found = list(read_lines(io.BytesIO(result.stdout)))
    assert [type(one) for one in found] == [Header, Numbered, Numbered, Numbered, End]
    assert b"Wrote 3 letters" in result.stderr
    assert run("export", "orders", "-", "--json")[0] == 2

    # A reader that has seen enough is no error to talk about.
    stack.poison(["x" * 200_000])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
    assert len(stack.visible(stack.dead["orders"])) == 4


def test_what_was_exported_is_imported_as_it_was(stack: LocalStack, tmp_path: Path) -> None:
    own = {
        "tenant": {"dataType": "String.id", "stringValue": "t-1"},
        "trace": {"dataType": "Binary", "binaryValue": "AP8="},
    }
    stack.poison(["{", "[1]", "é\u2028"], **own)
    file = tmp_path / "orders.jsonl"
    assert run("export", "orders", file)[0] == 0

    status, said = run("import", file, "--to", "orders")
    assert status == 0
    size = sum(len(one.encode()) for one in ("{", "[1]", "é\u2028")) + 3 * len("tenantString.idt-1traceBinary..")
    assert f"Would send 3 messages, {size} bytes, to {stack.name}-orders." in said
    assert "  3 contract" in said
    assert "Add --yes" in said
    assert stack.visible(stack.queues["orders"]) == []

    status, said = run("import", file, "--to", "orders", "--yes", "--rate", 1000)
    assert (status, said) == (0, f"Sent 3 of 3 messages to {stack.name}-orders.\n")
    arrived = stack.visible(stack.queues["orders"])
    assert bodies(arrived) == ["[1]", "{", "é\u2028"]
    for letter in arrived:
        assert letter.attributes == {
            "tenant": {"DataType": "String.id", "StringValue": "t-1"},
            "trace": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        }

    # As dead letters again, with the reasons; a dead-letter queue's name alone is no way to say that.
    for said_so in ("orders-dlq", f"{stack.name}-orders-dlq", stack.dead["orders"]):
        status, said = run("import", file, "--to", said_so, "--yes")
        assert status == 2, said
        assert "is a dead-letter queue" in said
    assert run("import", file, "--to", "orders-dlq", "--as-dead-letters", "--yes")[0] == 0
    letters = stack.visible(stack.dead["orders"])
    assert bodies(letters) == ["[1]", "[1]", "{", "{", "é\u2028", "é\u2028"]
    assert {letter.reason for letter in letters} == {"contract"}
    assert len({letter.cause for letter in letters}) == 1
    assert runs() == [("import", "done", {"letters": 3, "sent": 3, "failed": 0})] * 2


def test_a_fifo_queue_keeps_groups_and_order(stack: LocalStack, tmp_path: Path) -> None:
    sent = [f'{{"n": {number}}}' for number in range(10)]
    stack.poison(sent, worker="payments")
    file = tmp_path / "payments.jsonl"
    assert run("export", "payments", file)[0] == 0
    for _ in range(2):  # the second time SQS drops them all, since the deduplication ids are the same
        assert run("import", file, "--to", "payments", "--yes")[0] == 0
    assert reading.depth_of(stack.client, stack.queues["payments"]).total == 10
    arrived = stack.visible(stack.queues["payments"])
    by_group: dict[str | None, list[str]] = {}
    for letter in arrived:
        by_group.setdefault(letter.group_id, []).append(letter.body)
    assert by_group == {"account-0": sent[::2], "account-1": sent[1::2]}
    before = {one.system["MessageDeduplicationId"] for one in stack.visible(stack.dead["payments"])}
    after = {one.system["MessageDeduplicationId"] for one in arrived}
    assert (len(before), len(after), len(before | after)) == (10, 10, 20)

    # Another file is another import.
    file.write_bytes(file.read_bytes().replace(b'"complete":true', b'"complete":false'))
    stack.client.purge_queue(QueueUrl=stack.queues["payments"])
    assert run("import", file, "--to", "payments", "--yes")[0] == 0
    again = stack.visible(stack.queues["payments"])
    assert bodies(again) == sorted(sent)
    assert after.isdisjoint(one.system["MessageDeduplicationId"] for one in again)

    # Of a message group SQS shows no more than one answer can hold.
    stack.poison(sent, worker="payments")
    assert "10 of about 20 were read: of a FIFO queue" in run("export", "payments", file, "--force")[1]
    assert lines(file)[-1]["end"]["complete"] is False

    # A standard queue's letters have no group.
    stack.poison(["{"])
    assert run("export", "orders", tmp_path / "orders.jsonl")[0] == 0
    status, said = run("import", tmp_path / "orders.jsonl", "--to", "payments", "--yes")
    assert status == 1
    assert f"{tmp_path / 'orders.jsonl'}:2: expected `sqs.MessageGroupId`" in said


def test_nothing_is_sent_while_a_line_is_bad(stack: LocalStack, tmp_path: Path) -> None:
    good = line_of(Entry(message_id="m", body="b"))
    bad = [
        b"{\n",
        line_of(Entry(message_id="m", body="")),
        line_of(Entry(message_id="m", body="x" * (1 << 20) + "x")),
        b'{"message_id": "m"}\n' * 4,
    ]
    file = tmp_path / "f.jsonl"
    file.write_bytes(good + b"".join(bad) + good)
    status, said = run("import", file, "--to", "orders", "--yes")
    assert status == 1
    assert said.splitlines()[:2] == [
        f"Nothing was sent: {file} has 7 bad lines.",
        f"  {file}:2: Input data was truncated",
    ]
    assert f"{file}:3: SQS takes no empty body" in said
    assert f"{file}:4: expected at most 1,048,576 bytes, got 1,048,577" in said
    assert "  and 2 more" in said
    assert stack.visible(stack.queues["orders"]) == []
    assert runs() == []

    status, said = run("import", "-", "--to", "orders", "--yes", input=(good * 2).decode())
    assert (status, said) == (0, f"Sent 2 of 2 messages to {stack.name}-orders.\n")
    file.write_bytes(line_of(Header(queue="q", worker="audit")) + good)
    status, said = run("import", file, "--to", "orders")
    assert "of audit, not of orders" in said
    assert "no last line" in said
    file.write_bytes(line_of(Header(queue="q")) + good + line_of(End(letters=2, complete=True)))
    assert "2 letters were exported; 1 are in" in run("import", file, "--to", "orders")[1]
    assert run("import", tmp_path / "none.jsonl", "--to", "orders") == (
        1,
        f"Cannot read {tmp_path / 'none.jsonl'}: No such file or directory.\nName a JSONL file, or - for stdin.",
    )


def test_a_dry_run_names_what_the_worker_would_refuse(stack: LocalStack, tmp_path: Path) -> None:
    good = [message.body for message in generate(3, seed=2, poison=0, duplicates=0).messages]
    event = json.loads(good[0])
    event["data"]["items"][0]["quantity"] = 0
    texts = [good[0], "{", good[1], json.dumps(event), good[2], *["no JSON"] * 4]
    file = tmp_path / "f.jsonl"
    file.write_bytes(b"".join(line_of(Entry(message_id="m", body=text)) for text in texts))
    status, said = run("import", file, "--to", "orders")
    assert status == 0
    shown = said[said.index("By the contract") :].splitlines()
    assert shown[0] == "By the contract that is here, 6 of them would be dead-lettered again:"
    assert shown[1].startswith(f"  {file}:2: undecodable: ")
    assert shown[2] == f"  {file}:4: contract: Expected `int` >= 1 - at `$.data.items[0].quantity`"
    assert shown[-2] == "  and 1 more"
    assert shown[-1] == "Nothing was sent. Add --yes to send them."
    said = run("import", file, "--to", "orders", "--json")[1]
    assert json.loads(said[said.index("{") :])["hopeless"] == 6
    assert "By the contract" not in run("import", file, "--to", "orders-dlq", "--as-dead-letters")[1]
    file.write_bytes(b"".join(line_of(Entry(message_id="m", body=text)) for text in good))
    assert "By the contract" not in run("import", file, "--to", "orders")[1]


def test_an_import_that_sqs_refuses_says_why(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = SendError(code="AccessDenied", message=f"Access to the resource {URL} is denied.", whole_call=True)
    monkeypatch.setattr(
        Producer, "stream", lambda _, events: [SendResult(index=0, error=denied) for _ in [*events][:1]]
    )
    file = tmp_path / "f.jsonl"
    file.write_bytes(line_of(Entry(message_id="m", body="b")) * 2)
    status, said = run("import", file, "--to", "orders", "--yes")
    assert status == 3
    assert "Sent 0 of 2 messages" in said
    assert f"1 failed: AWS denied SendMessageBatch on {URL}: these credentials lack sqs:SendMessage." in said
    assert "Run the same command again. Nothing takes effect twice." in said
    assert runs() == [("import", "done", {"letters": 2, "sent": 0, "failed": 1})]


def test_what_sqs_would_not_take_is_found_before() -> None:
    entries = [
        Entry(message_id="m", body="a\ufffe"),
        Entry(message_id="m", base64=b"\xed\xa0\x80"),
        Entry(message_id="m", body="b", attributes={"a": Attribute("String", "\x1b")}),
        Entry(message_id="m", body="b", attributes={f"a{n}": Attribute("String", "v") for n in range(11)}),
        Entry(message_id="m", body="\t\r\n\U0001f600"),
    ]
    checked = importing.check(io.BytesIO(b"".join(map(line_of, entries))), Destination("q", as_dead_letters=False))
    assert [bad.why for bad in checked.first_bad] == [
        *(f"SQS does not take the character U+{one}" for one in ("FFFE", "D800", "001B")),
        "expected at most 10 attributes, got 11",
    ]
    assert checked.letters == 1


def test_discard_deletes_what_the_file_has_and_nothing_else(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.poison(["a", "b", "c"])
    stack.poison(["{"], why=Poison(Reason.UNDECODABLE, "malformed"))
    file = tmp_path / "gone.jsonl"

    # Refused: nobody to ask, another number, a file that is there.
    assert run("discard", "orders", "--export", file)[0] == 2
    assert run("discard", "orders", "--export", file, "--json")[0] == 2
    assert not file.exists()
    status, said = run("discard", "orders", "--export", file, "--reason", "contract", "--count", 4)
    assert status == 1
    assert "3 letters match, not 4." in said
    assert len(lines(file)) == 5
    status, said = run("discard", "orders", "--export", file, "--reason", "contract", "--count", 3)
    assert (status, "is there already" in said) == (1, True)
    assert len(stack.visible(stack.dead["orders"])) == 4
    file.unlink()

    # A letter that comes while the question is open is not touched, though it matches.
    read_back = transfer.read_back

    def late(path: Path, exported: Any) -> list[str]:
        stack.poison(["late"])
        return read_back(path, exported)

    monkeypatch.setattr(transfer, "read_back", late)
    status, said = run("discard", "orders", "--export", file, "--reason", "contract", "--count", 3, "--json")
    assert status == 0, said
    answer = json.loads(said)
    assert (answer["selected"], answer["deleted"], answer["kept"], answer["file"]) == (3, 3, 0, str(file))
    assert answer["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(entry["body"] for entry in lines(file)[1:-1]) == ["a", "b", "c"]
    assert bodies(stack.visible(stack.dead["orders"])) == ["late", "{"]
    assert runs() == [("discard", "done", {"selected": 3, "deleted": 3, "kept": 0})]
    with Journal.open() as journal:
        [record] = journal.runs()
    assert record.details == {"file": str(file), "sha256": answer["sha256"]}
    assert record.filter["reasons"] == ["contract"]

    # And back.
    monkeypatch.undo()
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "stack.json"))
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    assert run("import", file, "--to", "orders", "--as-dead-letters", "--yes")[0] == 0
    assert bodies(stack.visible(stack.dead["orders"])) == ["a", "b", "c", "late", "{"]
    status, said = run("discard", "orders", "--export", tmp_path / "none.jsonl", "--reason", "gap", "--count", 0)
    assert (status, said) == (
        0,
        f"No letter of {stack.name}-orders-dlq matches. All 5 were read: the numbers are exact.\n",
    )
    assert run("discard", "orders", "--export", tmp_path / "none.jsonl", "--reason", "gap", "--count", 1)[0] == 1
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(("typed", "status", "left"), [("3\n", 0, 0), ("2\n", 1, 3), ("\n", 1, 3), ("", 130, 3)])
def test_the_number_must_be_typed(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, typed: str, status: int, left: int
) -> None:
    stack.poison(["a", "b", "c"], why=Poison(Reason.DATA, "check \x1b]0;title\x07 failed", "23514"))

    class Terminal:
        stdin = type("Stdin", (), {"isatty": lambda _: True})()

    monkeypatch.setattr(discarding, "sys", Terminal)
    code, said = run("discard", "orders", "--export", tmp_path / "f.jsonl", input=typed)
    assert code == status, said
    assert "3 letters of" in said
    assert "data 23514" in said
    assert "\x1b" not in said
    assert ("Nothing was deleted" in said) == bool(left)
    assert len(stack.visible(stack.dead["orders"])) == left
    assert len(lines(tmp_path / "f.jsonl")) == 5


def test_what_is_held_is_renewed_while_a_person_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Semaphore(0)

    class Busy:
        def renew(self) -> None:
            renewed.release()
            raise OSError("the network")

    monkeypatch.setattr(transfer, "RENEW_S", 0.001)
    with transfer.kept_held(Busy()):  # type: ignore[arg-type]
        assert all(renewed.acquire(timeout=30) for _ in range(2))


def test_a_letter_that_sqs_does_not_delete_is_said(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.poison(["a", "b"])
    delete = Holder.delete
    monkeypatch.setattr(Holder, "delete", lambda self, ids: delete(self, list(ids)[:1]))
    status, said = run("discard", "orders", "--export", tmp_path / "f.jsonl", "--count", 2)
    assert status == 3
    assert "Deleted 1 letter" in said
    assert "1 letter stayed: SQS did not confirm them" in said
    assert runs() == [("discard", "done", {"selected": 2, "deleted": 1, "kept": 1})]
    assert len(stack.visible(stack.dead["orders"])) == 1


def test_a_file_that_the_disk_changed_stops_a_discard(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.poison(["abc"])
    publish = transfer.LetterFile.publish

    def bad_disk(self: transfer.LetterFile) -> None:
        publish(self)
        self.path.write_bytes(self.path.read_bytes().replace(b"abc", b"abd"))

    monkeypatch.setattr(transfer.LetterFile, "publish", bad_disk)
    status, said = run("discard", "orders", "--export", tmp_path / "f.jsonl", "--count", 1)
    assert status == 1
    assert "is not what was written into it" in said
    assert len(stack.visible(stack.dead["orders"])) == 1


def test_without_a_journal_nothing_is_deleted_or_sent(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.poison(["a"])
    assert run("export", "orders", tmp_path / "f.jsonl")[0] == 0
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path))  # a directory
    for arguments in (
        ("discard", "orders", "--export", tmp_path / "g.jsonl", "--count", 1),
        ("import", tmp_path / "f.jsonl", "--to", "orders", "--yes"),
    ):
        status, said = run(*arguments)
        assert status == 1
        assert "The journal" in said
    assert len(stack.visible(stack.dead["orders"])) == 1
    assert stack.visible(stack.queues["orders"]) == []


def test_ctrl_c_while_deleting_says_how_many_and_the_file_has_all(
    stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.poison([f"{number}" for number in range(25)])
    monkeypatch.setattr(transfer, "PIECE", 10)
    delete, calls = Holder.delete, itertools.count(1)

    def interrupted(self: Holder, ids: Any) -> set[str]:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return delete(self, ids)

    monkeypatch.setattr(Holder, "delete", interrupted)
    status, said = run("discard", "orders", "--export", tmp_path / "f.jsonl", "--count", 25)
    assert status == 130
    assert "Deleted 20 letters" in said
    assert "5 letters stayed: interrupted" in said
    assert len(stack.visible(stack.dead["orders"])) == 5
    assert lines(tmp_path / "f.jsonl")[-1] == {"end": {"letters": 25, "complete": True}}
    assert runs() == [("discard", "interrupted", {"selected": 25, "deleted": 20, "kept": 5})]


def test_ctrl_c_while_reading_gives_everything_back_and_leaves_no_file(stack: LocalStack, tmp_path: Path) -> None:
    stack.poison([f"{number}" for number in range(25)])
    receive, calls = Holder.receive, itertools.count(1)

    def interrupted(self: Holder, most: int = 10) -> list[Letter]:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return receive(self, most)

    for arguments in (
        ("export", "orders", tmp_path / "f.jsonl"),
        ("discard", "orders", "--export", tmp_path / "f.jsonl", "--count", 25),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Holder, "receive", interrupted)
            calls = itertools.count(1)
            status, said = run(*arguments)
        assert status == 130, said
        assert "Interrupted" in said
        assert [path for path in tmp_path.iterdir() if "f.jsonl" in path.name] == []
        assert len(stack.visible(stack.dead["orders"])) == 25
