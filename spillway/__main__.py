"""`python -m spillway`."""

import sys

# Before any other import, and in the words of an old interpreter: the rest would greet it with a SyntaxError.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Spillway needs Python 3.11 or newer, and this is %d.%d. `make` finds one." % sys.version_info[:2])  # noqa: UP031

from spillway.entry import main

main()
