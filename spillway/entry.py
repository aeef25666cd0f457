"""Where the `spillway` command and `python -m spillway` begin, before anything large is imported."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line. Ctrl-C ends it without a word also in the half second that the imports take."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else a shell had us ignore it
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from spillway.cli import main as run  # noqa: PLC0415

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
