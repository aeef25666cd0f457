"""TCP ports on 127.0.0.1 for servers that bind them themselves."""

import itertools
import random
import socket
import threading
from pathlib import Path

from spillway.stack import reaper
from spillway.stack.errors import StackError

HOST = "127.0.0.1"
ATTEMPTS = 5
"""How often to start a server anew on another port: a free port can be taken before the server binds it."""

# Below Linux's ephemeral ports (32768-60999): a port from there may become the near end of anybody's outgoing
# connection in the moment before the server binds it. Each port is handed out once, so that environments that
# start at the same time do not get the same one.
_RANGE = range(20_000, 32_000)
_LISTEN = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
_lock = threading.Lock()
_candidates = itertools.cycle(random.sample(_RANGE, len(_RANGE)))


def free_port() -> int:
    """A port that nobody listens on right now, and that this process has not been given lately."""
    with _lock:
        for port in itertools.islice(_candidates, len(_RANGE)):
            if _why_not(port) is None:
                return port
    raise StackError(f"No port is free on {HOST} between {_RANGE.start} and {_RANGE.stop}.", "Stop what uses them.")


def check_port(port: int, name: str) -> None:
    """Raise `StackError` naming the port unless `name` can listen on it."""
    if reason := _why_not(port):
        raise StackError(
            f"{name} cannot listen on {HOST}:{port}: {reason}.", "Stop what uses that port, or choose another one."
        )


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on the port; a connection would prove only that somebody does.

    For processes of this user (or any, as root). Where there is no /proc the answer is always yes.
    """
    if not reaper.HAS_PROC:
        return True
    here = f"{socket.inet_aton(HOST)[::-1].hex().upper()}:{port:04X}"
    try:
        rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines())
        inodes = {f"socket:[{row[9]}]" for row in rows if row[1] == here and row[3] == _LISTEN}
        return bool(inodes) and any(str(fd.readlink()) in inodes for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # the process, or one of its descriptors, has just gone


def _why_not(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: without it a port would seem taken for a minute after its last user left.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OverflowError:
            return "ports go from 1 to 65535"
        except OSError as error:
            return error.strerror or str(error)
    return None
