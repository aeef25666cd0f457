"""What Spillway's commands raise on purpose.

SpillwayError                 the command line prints it and exits with ``exit_code``
└── StackError                the local stack: ``spillway.stack.errors``
"""


class SpillwayError(Exception):
    """A failure a person can act on: ``message`` says what happened, ``hint`` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message
