"""Fails while Lambda initialises it."""

import os

if "HOW" in os.environ:
    os._exit(int(os.environ["HOW"]))
raise RuntimeError("missing setting")
