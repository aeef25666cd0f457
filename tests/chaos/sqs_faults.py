"""A server in front of an SQS endpoint that forwards every call and, when a test says so, breaks some of them.

    with SqsFaults(ministack.endpoint_url, seed=7) as faults:
        stack = LocalStack(processes, StackOptions(sqs_endpoint=faults.endpoint_url))
        faults.duplicate(0.5, queue="*-orders")
        lost = faults.lose("DeleteMessageBatch", share=0.3)
        ...
        faults.clear()
        assert lost.injected > 0

It speaks SQS's JSON protocol (AWS JSON 1.0); anything else passes through untouched. What clients see is what the SQS
Developer Guide says may happen: "at-least-once delivery" (a copy of a message comes again, in flight or deleted),
best-effort ordering, calls that fail as a whole or entry by entry, and answers that are lost after the call took
effect.

Actions and queue names are glob patterns. Every fault draws from a generator of its own, seeded by the server's seed
and the fault's number, so that what befalls the n-th matching call or message does not depend on other traffic.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import msgspec
import uvloop

from spillway.stack import ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

_START_TIMEOUT_S = _STOP_TIMEOUT_S = 10.0
#: An idle connection to the endpoint is used again for so long; ministack closes it after 75 s.
_IDLE_S = 30.0
#: Long polls are forwarded in slices, so that a copy or a stop does not wait for the end of one.
_SLICE_S = 1
_PAUSE_S = 0.05
#: SQS's longest visibility timeout. What is held back must not become visible to another receive meanwhile.
_HOLD_S = 43_200
_MAX_MESSAGES = 10
_STREAM_LIMIT = 2**20
_COPY = "spillway-copy-"

#: Those that name a queue, so that a fault can be aimed at one.
ACTIONS = (
    "SendMessage",
    "SendMessageBatch",
    "ReceiveMessage",
    "DeleteMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibility",
    "ChangeMessageVisibilityBatch",
    "GetQueueAttributes",
    "SetQueueAttributes",
    "PurgeQueue",
    "DeleteQueue",
)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_TARGET = re.compile(rb"\r\nx-amz-target:[ \t]*AmazonSQS\.(\w+)", re.IGNORECASE)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Error:
    """What SQS answers, for a whole call (with `status`) or as the code of one entry of a batch."""

    status: int
    code: str
    message: str

    @property
    def sender_fault(self) -> bool:
        return self.status < HTTPStatus.INTERNAL_SERVER_ERROR


# SQS API Reference, "Common Errors", and the errors of its single actions.
INTERNAL_ERROR = Error(500, "InternalError", "We encountered an internal error. Please try again.")
UNAVAILABLE = Error(503, "ServiceUnavailable", "The request has failed due to a temporary failure of the server.")
THROTTLED = Error(400, "RequestThrottled", "The request was denied due to request throttling.")
ACCESS_DENIED = Error(403, "AccessDenied", "Access to the resource is denied.")


class Fault:
    """One fault that is being injected; `injected` says how often it was (calls, entries or messages)."""

    def __init__(
        self,
        owner: SqsFaults,
        kind: str,
        action: str,
        *,
        queue: str = "*",
        share: float = 1.0,
        times: int | None = None,
        error: Error = INTERNAL_ERROR,
        seconds: float = 0.0,
        window: int = 0,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"expected a share above 0 and up to 1, got {share}")
        if not any(fnmatchcase(known, action) for known in ACTIONS):
            raise ValueError(f"expected a pattern of one of {', '.join(ACTIONS)}, got {action}")
        self.kind, self.action, self.queue, self.share = kind, action, queue, share
        self.error, self.seconds, self.window = error, seconds, window
        self.injected = 0
        self._owner = owner
        self._left = times
        self.random = random.Random()

    def remove(self) -> None:
        """Inject it no more. What it already holds back is still delivered."""
        self._owner._remove(self)

    def matches(self, call: Call) -> bool:
        return fnmatchcase(call.action, self.action) and fnmatchcase(call.queue, self.queue)

    def draw(self) -> bool:
        """Whether it befalls this one."""
        if self._left == 0 or (self.share < 1 and self.random.random() >= self.share):
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def strikes(self, call: Call) -> bool:
        """Draw, and count what it befalls."""
        drawn = self.draw()
        if drawn:
            self.count(call.action)
        return drawn

    def count(self, what: str) -> None:
        self.injected += 1
        self._owner._counts[f"{self.kind} {what}"] += 1


@dataclass(slots=True)
class Request:
    """One HTTP request as it came: everything up to the empty line, and the body."""

    head: bytes
    body: bytes


@dataclass(slots=True)
class Call:
    """A request of SQS's JSON protocol, read."""

    request: Request
    action: str
    queue: str
    data: Json

    @property
    def fifo(self) -> bool:
        return self.queue.endswith(".fifo")


class _RefusedError(Exception):
    """The endpoint answered a call of ours with an error; it is passed on as it is."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.answer = answer


@dataclass(slots=True)
class Copy:
    """A message that is delivered once more, whatever becomes of the one it was copied from.

    It has a visibility timeout and receipt handles of its own, as a copy on a server that missed the delete would.
    """

    number: int
    message: Json
    fault: Fault
    visible_at: float
    deliveries: int = 0
    of_deleted: bool = False

    @property
    def handle(self) -> str:
        return f"{_COPY}{self.number}-{self.deliveries}"

    def deliver(self, visible_at: float) -> Json:
        if self.deliveries == 0:
            self.fault.count("of deleted" if self.of_deleted else "in flight")
        self.deliveries += 1
        self.visible_at = visible_at
        attributes = dict(self.message.get("Attributes", {}))
        count = int(attributes.get("ApproximateReceiveCount", 1))
        attributes["ApproximateReceiveCount"] = str(count + self.deliveries)
        return self.message | {"ReceiptHandle": self.handle, "Attributes": attributes}


@dataclass(slots=True)
class Held:
    """A message that the endpoint has delivered to this server and no client has got yet."""

    number: int
    message: Json
    ready_at: float


@dataclass(slots=True)
class Shelf:
    """What this server keeps of one standard queue.

    Copies are found by number and, until the original's delete, by the original's receipt handle.
    """

    visibility_s: int
    wait_s: int
    held: list[Held] = field(default_factory=list)
    copies: dict[int, Copy] = field(default_factory=dict)
    originals: dict[str, Copy] = field(default_factory=dict)
    numbers: int = 0

    @property
    def empty(self) -> bool:
        return not self.held and not self.copies

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def empty_out(self) -> None:
        self.held.clear()
        self.copies.clear()
        self.originals.clear()

    def current(self, handle: str) -> Copy | None:
        """The copy that was last delivered with this handle."""
        number, _, _ = handle.removeprefix(_COPY).partition("-")
        copy = self.copies.get(int(number)) if number.isdigit() else None
        return copy if copy is not None and copy.handle == handle else None


class SqsFaults:
    """The server, from `start` to `stop` or as a context manager; its methods may be called from any thread.

    `upstream` is the endpoint that calls are forwarded to. Without faults every byte passes through as it is, so queue
    URLs carry this server's address (ministack takes it from the Host header). Copies and messages held back are part
    of what GetQueueAttributes counts. Copies know no redrive policy: one that nobody deletes comes again for ever.
    """

    def __init__(self, upstream: str, seed: int | str) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or ports.HOST, address.port or 80)
        self._seed = seed
        self._faults: tuple[Fault, ...] = ()
        self._made = 0
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._shelves: dict[str, Shelf] = {}
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sqs-faults", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self._failure is not None:
            raise RuntimeError("the server failed; a client saw that as a lost connection") from self._failure

    @property
    def endpoint_url(self) -> str:
        """What an AWS SDK takes as `endpoint_url`."""
        return f"http://{ports.HOST}:{self.port}"

    @property
    def counts(self) -> Counter[str]:
        """What was injected so far, by kind and action: `fail X`, `fail entry of X`, `lose X`, `hang X`, `delay X`.

        Copies that came count as `duplicate in flight` or `duplicate of deleted`, by what their original was then;
        messages that overtook another as `reorder message`.
        """
        return Counter(self._counts)

    @property
    def pending(self) -> int:
        """Messages that are held back, and copies that were not deleted yet."""
        return sum(len(shelf.held) + len(shelf.copies) for shelf in list(self._shelves.values()))

    def start(self) -> None:
        """Listen on a free port of this machine."""
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT_S) or self._failure is not None:
            raise RuntimeError("the server did not start") from self._failure

    def stop(self) -> None:
        """End every connection at once, answered or not. What was held back is gone. Safe to repeat."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_TIMEOUT_S)
            if self._thread.is_alive():
                raise RuntimeError(f"the server did not stop within {_STOP_TIMEOUT_S:.0f} s")

    # What a test injects. `share` is a probability, `times` ends a fault by itself after so many.

    def fail(
        self,
        action: str,
        error: Error = INTERNAL_ERROR,
        *,
        share: float = 1.0,
        queue: str = "*",
        times: int | None = None,
    ) -> Fault:
        """Answer whole calls with `error`; they have no effect."""
        return self._add(Fault(self, "fail", action, queue=queue, share=share, times=times, error=error))

    def fail_entries(
        self,
        action: str,
        error: Error = INTERNAL_ERROR,
        *,
        share: float = 1.0,
        queue: str = "*",
        times: int | None = None,
    ) -> Fault:
        """List single entries of a batch action as failed, without effect; the others take theirs."""
        if not action.endswith(("Batch", "*")):
            raise ValueError(f"expected a batch action, got {action}")
        return self._add(Fault(self, "fail entry of", action, queue=queue, share=share, times=times, error=error))

    def lose(self, action: str, *, share: float = 1.0, queue: str = "*", times: int | None = None) -> Fault:
        """Let calls take effect, then close the connection without an answer.

        Of ReceiveMessage only those that brought messages: these are invisible now, and nobody has them.
        """
        return self._add(Fault(self, "lose", action, queue=queue, share=share, times=times))

    def hang(
        self, action: str, seconds: float, *, share: float = 1.0, queue: str = "*", times: int | None = None
    ) -> Fault:
        """Keep silent for `seconds`, then close the connection; calls have no effect."""
        return self._add(Fault(self, "hang", action, queue=queue, share=share, times=times, seconds=seconds))

    def delay(
        self, action: str, seconds: float, *, share: float = 1.0, queue: str = "*", times: int | None = None
    ) -> Fault:
        """Let calls take effect at once and answer `seconds` later, so that a client that gave up cannot know."""
        return self._add(Fault(self, "delay", action, queue=queue, share=share, times=times, seconds=seconds))

    def duplicate(
        self, share: float = 1.0, *, within_s: float = 3.0, queue: str = "*", times: int | None = None
    ) -> Fault:
        """Deliver `share` of what standard queues deliver once more, up to `within_s` seconds later.

        A copy has the message's id and body, and a receipt handle of its own; it comes whether the message is in flight
        or deleted by then, and again until it is deleted itself. Copies are not copied.
        """
        return self._add(
            Fault(self, "duplicate", "ReceiveMessage", queue=queue, share=share, times=times, seconds=within_s)
        )

    def reorder(self, *, window: int = 50, within_s: float = 0.5, queue: str = "*") -> Fault:
        """Deliver what standard queues hold in another order: `window` messages are fetched ahead and drawn from.

        A message is held back for a random time of up to `within_s` seconds, or until the window is full. Its
        visibility timeout starts when a client gets it, and its receive count does not see the difference. Counted are
        messages that overtook another.
        """
        if window < 2:
            raise ValueError(f"expected a window of at least 2 messages, got {window}")
        return self._add(Fault(self, "reorder", "ReceiveMessage", queue=queue, seconds=within_s, window=window))

    def clear(self) -> None:
        """Inject nothing from now on. What is held back and copies already made are still delivered; none is lost."""
        with self._lock:
            self._faults = ()

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._made += 1
            fault.random.seed(f"{self._seed}/{self._made}")
            self._faults = (*self._faults, fault)
        return fault

    def _remove(self, fault: Fault) -> None:
        with self._lock:
            self._faults = tuple(one for one in self._faults if one is not fault)

    # The server

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # (handed to the thread that starts or stops it)
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, ports.HOST, 0, limit=_STREAM_LIMIT, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        tasks = [*self._tasks, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, _, writer in self._idle:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not self._stopping.is_set():
                request = Request(*await _read(reader))
                # A client that waits for an answer sends nothing, so the end of its data is the end of the client.
                answer = await self._answer(request, reader.at_eof)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client or the endpoint has gone, which the other one sees as a lost connection
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, request: Request, gone: Callable[[], bool]) -> bytes | None:
        """The bytes to answer with; None: none, and the connection is closed."""
        faults = self._faults
        call = _call(request) if faults or self._shelves else None
        if call is None:
            return await self._forward(request)
        striking = [fault for fault in faults if fault.matches(call)]
        for fault in striking:
            if fault.kind == "fail" and fault.strikes(call):
                return _http(fault.error.status, _error_body(fault.error), fault.error)
            if fault.kind == "hang" and fault.strikes(call):
                await asyncio.sleep(fault.seconds)
                return None
        try:
            answer = await self._apply(call, striking, gone)
        except _RefusedError as refused:
            answer = refused.answer
        if call.action == "ReceiveMessage" and b'"Messages"' not in answer:
            striking = [fault for fault in striking if fault.kind != "lose"]
        for fault in striking:
            if fault.kind == "delay" and fault.strikes(call):
                await asyncio.sleep(fault.seconds)
        if any(fault.kind == "lose" and fault.strikes(call) for fault in striking):
            return None
        return answer

    async def _apply(self, call: Call, striking: Iterable[Fault], gone: Callable[[], bool]) -> bytes:
        """Let a call take effect, as far as entries are not refused, and on what is kept here too."""
        shelf = self._shelves.get(call.queue)
        match call.action:
            case "ReceiveMessage":
                return await self._receive(call, shelf, striking, gone)
            case "SendMessageBatch" | "DeleteMessageBatch" | "ChangeMessageVisibilityBatch":
                return await self._batch(call, shelf, striking)
            case "DeleteMessage" | "ChangeMessageVisibility" if shelf is not None:
                if (result := self._on_copy(call.action, shelf, call.data)) is not None:
                    return _http(200, {}) if result is True else _http(result.status, _error_body(result), result)
            case "GetQueueAttributes" if shelf is not None and not shelf.empty:
                return _http(200, self._counted(shelf, await self._ask(call, call.action, call.data)))
            case "PurgeQueue" if shelf is not None:
                shelf.empty_out()
            case "DeleteQueue":
                self._shelves.pop(call.queue, None)
            case "SetQueueAttributes" if shelf is not None:
                answer = await self._forward(call.request)
                shelf.visibility_s, shelf.wait_s = await self._defaults(call)
                return answer
        return await self._forward(call.request)

    # Batches

    async def _batch(self, call: Call, shelf: Shelf | None, striking: Iterable[Fault]) -> bytes:
        results: dict[str, list[Json]] = {"Successful": [], "Failed": []}
        faults = [fault for fault in striking if fault.kind == "fail entry of"]
        left: list[Json] = []
        entries: list[Json] = call.data.get("Entries") or []
        for entry in entries:
            result: Error | Literal[True] | None = next((fault.error for fault in faults if fault.strikes(call)), None)
            if result is None and shelf is not None:
                result = self._on_copy(call.action, shelf, entry)
            if result is None:
                left.append(entry)
            elif isinstance(result, Error):
                failed = {"Id": entry.get("Id"), "Code": result.code, "Message": result.message}
                results["Failed"].append(failed | {"SenderFault": result.sender_fault})
            else:
                results["Successful"].append({"Id": entry.get("Id")})
        if len(left) == len(entries):
            return await self._forward(call.request)
        if left:
            answer = await self._ask(call, call.action, call.data | {"Entries": left})
            for name in results:
                results[name] += answer.get(name, ())
        return _http(200, results)

    def _on_copy(self, action: str, shelf: Shelf, data: Json) -> Error | Literal[True] | None:
        """What to answer about a copy; None if it is none of ours, so that the endpoint answers."""
        handle = data.get("ReceiptHandle")
        if not isinstance(handle, str):
            return None
        deletes = action.startswith("DeleteMessage")
        if not handle.startswith(_COPY):
            if deletes and (original := shelf.originals.pop(handle, None)) is not None:
                original.of_deleted = True
            return None
        copy = shelf.current(handle)
        if deletes:
            if copy is not None:
                self._drop(shelf, copy)
            return True  # SQS says so for an old handle too, though the message then stays
        if copy is None:
            return Error(400, "ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
        copy.visible_at = self._loop.time() + int(data.get("VisibilityTimeout", 0))
        return True

    def _drop(self, shelf: Shelf, copy: Copy) -> None:
        del shelf.copies[copy.number]
        shelf.originals.pop(copy.message["ReceiptHandle"], None)

    # Receiving

    async def _receive(
        self, call: Call, shelf: Shelf | None, striking: Iterable[Fault], gone: Callable[[], bool]
    ) -> bytes:
        duplicating = [fault for fault in striking if fault.kind == "duplicate" and not call.fifo]
        reordering = next((fault for fault in striking if fault.kind == "reorder" and not call.fifo), None)
        count = call.data.get("MaxNumberOfMessages") or 1
        if (
            not (duplicating or reordering or (shelf is not None and not shelf.empty))
            or not 1 <= count <= _MAX_MESSAGES
        ):
            return await self._forward(call.request)
        if shelf is None:
            shelf = self._shelves.setdefault(call.queue, Shelf(*await self._defaults(call)))
        visibility_s, wait_s = call.data.get("VisibilityTimeout"), call.data.get("WaitTimeSeconds")
        visibility_s = shelf.visibility_s if visibility_s is None else visibility_s
        deadline = self._loop.time() + (shelf.wait_s if wait_s is None else wait_s)
        messages: list[Json] = []
        while not gone():
            messages = self._take_copies(shelf, count, visibility_s)
            left_s = deadline - self._loop.time()
            quick = bool(messages) or left_s < _SLICE_S / 2
            # Somebody may be waiting for what is kept here: then no long poll of the endpoint's.
            slice_s = 0 if quick or not shelf.empty else _SLICE_S
            if room := count - len(messages):
                fresh = (
                    await self._reordered(call, shelf, reordering, (room, visibility_s, slice_s))
                    if reordering or shelf.held
                    else await self._take(call, room, visibility_s, slice_s)
                )
                self._copy(shelf, duplicating, fresh)
                messages += fresh
            if messages or left_s < _PAUSE_S:
                break
            if slice_s == 0:
                await asyncio.sleep(_PAUSE_S)
        return _http(200, {"Messages": [_asked_for(message, call.data) for message in messages]} if messages else {})

    def _take_copies(self, shelf: Shelf, count: int, visibility_s: int) -> list[Json]:
        now = self._loop.time()
        ready = [copy for copy in shelf.copies.values() if copy.visible_at <= now][:count]
        return [copy.deliver(now + visibility_s) for copy in ready]

    def _copy(self, shelf: Shelf, duplicating: list[Fault], fresh: list[Json]) -> None:
        for message in fresh:
            fault = next((fault for fault in duplicating if fault.draw()), None)
            if fault is not None:
                due = self._loop.time() + fault.random.uniform(0, fault.seconds)
                copy = Copy(shelf.number(), message, fault, due)
                shelf.copies[copy.number] = shelf.originals[message["ReceiptHandle"]] = copy

    async def _reordered(
        self, call: Call, shelf: Shelf, reordering: Fault | None, limits: tuple[int, int, int]
    ) -> list[Json]:
        """Messages that were held back here, at most `limits`' count; see `_take`."""
        count, visibility_s, wait_s = limits
        if reordering is None:
            chosen = shelf.held[:count]  # the fault is over, its messages are not
        else:
            # In a task of its own: a client that hangs up must not take along what was fetched for all.
            fetching = self._loop.create_task(self._fetch(call, shelf, reordering, wait_s))
            self._background.add(fetching)
            fetching.add_done_callback(self._background.discard)
            await asyncio.shield(fetching)
            chosen = self._draw(shelf, reordering, count)
        numbers = {one.number for one in chosen}
        shelf.held = [one for one in shelf.held if one.number not in numbers]
        if not chosen:
            return []
        if reordering is not None:
            for one in chosen:
                if any(other.number < one.number for other in shelf.held):
                    reordering.count("message")
        # Its visibility timeout starts now; what the endpoint does not know any more was purged or has expired.
        entries = [
            {"Id": str(index), "ReceiptHandle": one.message["ReceiptHandle"], "VisibilityTimeout": visibility_s}
            for index, one in enumerate(chosen)
        ]
        data = {"QueueUrl": call.data["QueueUrl"], "Entries": entries}
        answer = await self._ask(call, "ChangeMessageVisibilityBatch", data)
        known = {result["Id"] for result in answer.get("Successful", ())}
        return [one.message for index, one in enumerate(chosen) if str(index) in known]

    async def _fetch(self, call: Call, shelf: Shelf, reordering: Fault, wait_s: int) -> None:
        while len(shelf.held) < reordering.window:
            got = await self._take(call, _MAX_MESSAGES, _HOLD_S, 0 if shelf.held else wait_s)
            now = self._loop.time()
            shelf.held += [
                Held(shelf.number(), message, now + reordering.random.uniform(0, reordering.seconds)) for message in got
            ]
            if len(got) < _MAX_MESSAGES:
                break

    def _draw(self, shelf: Shelf, reordering: Fault, count: int) -> list[Held]:
        now = self._loop.time()
        full = len(shelf.held) >= reordering.window
        ready = shelf.held if full else [one for one in shelf.held if one.ready_at <= now]
        return reordering.random.sample(ready, min(count, len(ready)))

    async def _take(self, call: Call, count: int, visibility_s: int, wait_s: int) -> list[Json]:
        data = {
            "QueueUrl": call.data["QueueUrl"],
            "MaxNumberOfMessages": count,
            "VisibilityTimeout": visibility_s,
            "WaitTimeSeconds": wait_s,
            # Whoever gets it may ask for more than who made us fetch it.
            "AttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        }
        messages: list[Json] = (await self._ask(call, "ReceiveMessage", data)).get("Messages", [])
        return messages

    def _counted(self, shelf: Shelf, answer: Json) -> Json:
        """The endpoint's queue attributes with what is kept here: waiting, or in flight at a client."""
        now = self._loop.time()
        waiting = sum(copy.deliveries == 0 or copy.visible_at <= now for copy in shelf.copies.values())
        more = {
            "ApproximateNumberOfMessages": waiting + len(shelf.held),
            "ApproximateNumberOfMessagesNotVisible": len(shelf.copies) - waiting - len(shelf.held),
        }
        attributes = answer.get("Attributes", {})
        for name, number in more.items():
            if name in attributes:
                attributes[name] = str(max(0, int(attributes[name]) + number))
        return answer

    async def _defaults(self, call: Call) -> tuple[int, int]:
        """The queue's visibility timeout and its wait time, in seconds."""
        data = {"QueueUrl": call.data["QueueUrl"], "AttributeNames": ["All"]}
        attributes = (await self._ask(call, "GetQueueAttributes", data))["Attributes"]
        return int(attributes["VisibilityTimeout"]), int(attributes.get("ReceiveMessageWaitTimeSeconds", 0))

    # The endpoint

    async def _ask(self, call: Call, action: str, data: Json) -> Json:
        """Make a call of our own in the name of the client. Raises _RefusedError with the endpoint's answer."""
        body = msgspec.json.encode(data)
        head = _LENGTH.sub(b"\r\nContent-Length: %d" % len(body), call.request.head)
        head = _TARGET.sub(b"\r\nX-Amz-Target: AmazonSQS.%s" % action.encode(), head)
        answer = await self._forward(Request(head, body))
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != b"200":
            raise _RefusedError(answer)
        decoded: Json = msgspec.json.decode(body)
        return decoded

    async def _forward(self, request: Request) -> bytes:
        reader, writer = await self._connection()
        try:
            writer.write(request.head + request.body)
            head, body = await _read(reader)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((self._loop.time(), reader, writer))
        return head + body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if self._loop.time() - since < _IDLE_S and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._upstream, limit=_STREAM_LIMIT)


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one HTTP message."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"\r\ntransfer-encoding:" in head.lower():
        raise ValueError("expected an HTTP message with a Content-Length, got a Transfer-Encoding")
    length = _LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""


def _call(request: Request) -> Call | None:
    """The call that a request makes; None if it is not one of the JSON protocol about a queue."""
    target = _TARGET.search(request.head)
    if target is None:
        return None
    try:
        data = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # the endpoint will say what is wrong with it
    if not isinstance(data, dict) or not isinstance(data.get("QueueUrl"), str):
        return None
    return Call(request, target[1].decode(), data["QueueUrl"].rpartition("/")[2], data)


def _asked_for(message: Json, data: Json) -> Json:
    """A message with the attributes that the receive names; everything was fetched."""
    system = [*(data.get("AttributeNames") or ()), *(data.get("MessageSystemAttributeNames") or ())]
    own = data.get("MessageAttributeNames") or []
    result = dict(message)
    if "All" not in system:
        result["Attributes"] = {name: value for name, value in message.get("Attributes", {}).items() if name in system}
    if "All" not in own and ".*" not in own and "MessageAttributes" in message:
        prefixes = tuple(name.removesuffix("*") for name in own if name.endswith(".*"))
        result["MessageAttributes"] = {
            name: value
            for name, value in message["MessageAttributes"].items()
            if name in own or (prefixes and name.startswith(prefixes))
        }
        if result["MessageAttributes"] != message["MessageAttributes"]:
            result.pop("MD5OfMessageAttributes", None)  # it is one of all of them
    return {name: value for name, value in result.items() if value != {}}


def _error_body(error: Error) -> Json:
    return {"__type": f"com.amazonaws.sqs#{error.code}", "message": error.message}


def _http(status: int, data: Json, error: Error | None = None) -> bytes:
    body = msgspec.json.encode(data)
    headers = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/x-amz-json-1.0",
        f"Content-Length: {len(body)}",
        "x-amzn-RequestId: injected",
    ]
    if error is not None:
        # What SDKs take the code from since SQS changed to the JSON protocol.
        headers.append(f"x-amzn-query-error: {error.code};{'Sender' if error.sender_fault else 'Receiver'}")
    return "\r\n".join([*headers, "", ""]).encode() + body
