"""Edits a dead letter's body on its way back, and refuses what its worker would refuse again."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from spillway.errors import SpillwayError
from spillway.packing import MAX_MESSAGE_BYTES
from workers.runtime.envelope import CloudEvent, EventDecoder, identify, unwrap
from workers.runtime.failures import Poison

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that one body may take the command of --edit-with.
TIMEOUT_S = 30.0
#: Characters of a command's complaint that are kept.
MAX_COMPLAINT = 200


class EditRefused(Exception):
    """This letter is not sent: its `args[0]` says why, in a form that letters with the same trouble share."""


class BadEdit(SpillwayError):
    """An edit that can be meant for no letter."""

    exit_code = 2


class Edit(Protocol):
    """Makes a new body out of an old one."""

    def apply(self, body: str) -> str:
        """The new body. Raises EditRefused."""
        ...


class MergePatch:
    """A JSON merge patch (RFC 7396). What it does not mention keeps its text, numbers to the last digit included."""

    def __init__(self, text: str) -> None:
        try:
            self._patch = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise BadEdit(
                f"--edit is no JSON: {_pointed(text, str(error))}",
                """Expected a JSON merge patch such as '{"data": {"currency": "EUR"}}'.""",
            ) from None
        if not isinstance(self._patch, dict):
            # By RFC 7396 any other value replaces the whole body, and so every event by the same one.
            raise BadEdit("--edit is no JSON object.", "A patch that is none would replace the whole event.")
        if "id" in self._patch:
            raise BadEdit("--edit changes the event's id.", "The id is what keeps an event from taking effect twice.")

    def apply(self, body: str) -> str:
        """The patched body, compact where the patch reaches. Raises EditRefused for what is no event by itself."""
        try:
            event = msgspec.json.decode(body, type=msgspec.Raw)
            if not isinstance(msgspec.json.decode(event), dict):
                raise EditRefused("no JSON object: repair it with --edit-with")
            if unwrap(body) is not None:
                raise EditRefused("wrapped by SNS or EventBridge: edit it with --edit-with")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise EditRefused("no JSON: repair it with --edit-with") from None
        return _merged(bytes(event), self._patch).decode()


class Command:
    """A program that reads a body and writes the new one, run once for each; never through a shell."""

    def __init__(self, line: str, timeout_s: float = TIMEOUT_S) -> None:
        try:
            self._arguments = shlex.split(line)
        except ValueError as error:
            raise BadEdit(f"--edit-with cannot be read: {error}.", "It is split into words as a shell does.") from None
        if not self._arguments or shutil.which(self._arguments[0]) is None:
            raise BadEdit(f"--edit-with: there is no program {line!r}.", "Name one in PATH, or its path.")
        self._timeout_s = timeout_s

    def apply(self, body: str) -> str:
        """What the program makes of it, without a line feed at its end. Raises EditRefused."""
        try:
            done = subprocess.run(
                self._arguments,
                input=body.encode(errors="surrogatepass"),
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                # Ctrl-C is for this process: one that were to die of it would seem to refuse the letter.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise EditRefused(f"the command took longer than {self._timeout_s:.0f} s") from None
        except OSError as error:
            raise EditRefused(f"the command does not run: {error.strerror}") from None
        if done.returncode:
            raise EditRefused(f"the command refused it: {_complaint(done.stderr) or f'exit {done.returncode}'}")
        try:
            return done.stdout.decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise EditRefused("the command did not write UTF-8") from None


class Editor:
    """Edits bodies and holds the results against the worker's contract: what it would dead-letter again is refused."""

    def __init__(self, edit: Edit, contract: Any) -> None:
        self._edit = edit
        self._decoder: EventDecoder[CloudEvent] = EventDecoder(contract)

    def edited(self, body: str) -> str:
        """The new body. Raises EditRefused."""
        after = self._edit.apply(body)
        try:
            event = self._decoder.decode(after)
        except Poison as poison:
            raise EditRefused(f"{poison.reason.value}: {poison.detail}") from None
        before_id = identify(body)[0]
        # An event that had no id never took effect, so its new one is any.
        if before_id and str(event.id) != before_id:
            raise EditRefused("the event's id was changed: it keeps an event from taking effect twice")
        if len(after.encode()) > MAX_MESSAGE_BYTES:
            raise EditRefused(f"larger than {MAX_MESSAGE_BYTES} bytes")
        return after


def edit_of(patch: str | None, command: str | None) -> Edit | None:
    """What --edit or --edit-with asks for; None if neither does. Raises BadEdit."""
    if patch is not None and command is not None:
        raise BadEdit("--edit and --edit-with were both given.", "Give one of them.")
    if patch is not None:
        return MergePatch(patch)
    return Command(command) if command is not None else None


def _merged(target: bytes, patch: Any) -> bytes:
    """RFC 7396, section 2, on text: members that the patch does not name are carried over as they are written."""
    if not isinstance(patch, dict):
        return msgspec.json.encode(patch)
    try:
        members = msgspec.json.decode(target, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        members = {}  # something else stood there
    for name, value in patch.items():
        if value is None:
            members.pop(name, None)
        else:
            members[name] = msgspec.Raw(_merged(bytes(members.get(name, msgspec.Raw(b"{}"))), value))
    return msgspec.json.encode(members)


def _complaint(stderr: bytes) -> str:
    """The first line, without what a terminal would act on."""
    lines: Sequence[str] = stderr.decode(errors="replace").strip().splitlines() or [""]
    return "".join(one if one.isprintable() else " " for one in lines[0])[:MAX_COMPLAINT].strip()


def _pointed(text: str, error: str) -> str:
    """`error`, and a caret under the character where msgspec stopped."""
    byte = re.search(r"\(byte (\d+)\)", error)
    place = len(text.encode(errors="replace")[: int(byte[1])].decode(errors="ignore")) if byte else len(text)
    return f"{error}\n  {text}\n  {' ' * place}^"
