"""CloudFormation's protocol for custom resources: one answer per request, put to an address that S3 has signed.

User guide, "Custom resource response objects": status, reason, and the ids of the request; at most 4,096 bytes. The
signature covers an empty content type, so there must be none (cfn-response, AWS's own module, sends it empty, too).
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from workers.runtime.failures import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_BODY_BYTES = 4096
MAX_REASON_BYTES = 1000
MAX_DATA_BYTES = 600
#: With pauses of 0.25, 0.5, 1 and 2 s between them they end within 19 s (handler.RESERVE_S).
ATTEMPTS = 5
_FIRST_PAUSE_S = 0.25
_PUT_TIMEOUT_S = 3.0


class AnswerError(WorkerError):
    """CloudFormation could not be told. The message never holds the address: whoever has it can answer."""


class Request:
    """A request of CloudFormation's, to be answered once; a second answer, from whichever thread, is not sent."""

    def __init__(self, event: Mapping[str, Any], name: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._event = event
        self._sleep = sleep
        self._turn = threading.Lock()
        # CloudFormation deletes the resource of another id after an update, so it never changes.
        self._id = str(event.get("PhysicalResourceId") or name)

    @property
    def kind(self) -> str:
        """Create, Update or Delete."""
        return str(self._event.get("RequestType", ""))

    def succeeded(self, data: Mapping[str, str]) -> bool:
        """Answer SUCCESS; `data` is for Fn::GetAtt, its values cut where they are too long. False: answered already."""
        return self._answer("SUCCESS", "", {name: cut(value, MAX_DATA_BYTES) for name, value in data.items()})

    def failed(self, reason: str) -> bool:
        """Answer FAILED; `reason` is what the stack's events show, cut where it is too long."""
        return self._answer("FAILED", cut(reason, MAX_REASON_BYTES) or "no reason was given", {})

    def _answer(self, status: str, reason: str, data: Mapping[str, str]) -> bool:
        if not self._turn.acquire(blocking=False):
            return False
        answer: dict[str, Any] = {
            "Status": status,
            "PhysicalResourceId": self._id,
            **{name: self._event.get(name, "") for name in ("StackId", "RequestId", "LogicalResourceId")},
        }
        answer |= {"Reason": reason} if reason else {}
        answer |= {"Data": data} if data else {}
        # As UTF-8, because escapes would take up to six bytes for one of what the limits count.
        body = json.dumps(answer, ensure_ascii=False).encode()
        try:
            self._put(body)
        except AnswerError:
            self._turn.release()  # whoever answers next may have more luck
            raise
        return True

    def _put(self, body: bytes) -> None:
        pause = _FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            # The scheme is CloudFormation's choice.
            request = urllib.request.Request(  # noqa: S310
                str(self._event["ResponseURL"]), data=body, method="PUT", headers={"Content-Type": ""}
            )
            try:
                with urllib.request.urlopen(request, timeout=_PUT_TIMEOUT_S):  # noqa: S310
                    return
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()  # it is the response, too, and holds its connection
                if attempt == ATTEMPTS:
                    raise AnswerError(f"the answer was refused {ATTEMPTS} times: {error}") from None
            self._sleep(pause)
            pause *= 2


def cut(text: str, most: int) -> str:
    """One line of at most `most` bytes of UTF-8, without control characters, which JSON would blow up."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    encoded = line.encode()
    return line if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
