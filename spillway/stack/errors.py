"""The one exception of the local stack."""

from spillway.errors import SpillwayError


class StackError(SpillwayError):
    """A part of the local stack could not start, or died. Nothing of it is left running."""
