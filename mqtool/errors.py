"""What can go wrong for a user: one exception per case; each knows its exit code and carries its hint."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes that mqtool documents; 65-78 are those of BSD's sysexits.h, 124 is that of timeout(1)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOME_FAILED = 3
    BAD_DATA = 65
    UNAVAILABLE = 69
    NOT_CONFIRMED = 75
    ACCESS_REFUSED = 77
    DECLARED_DIFFERENTLY = 78
    TIMED_OUT = 124
    READER_GONE = 141


class MqtoolError(Exception):
    """Something a user can understand and act on.

    Attributes:
        exit_code: what the process exits with.
        hint: what to do about it, or None where there is nothing to add.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


class UsageError(MqtoolError):
    """The command line itself is wrong."""

    exit_code = ExitCode.USAGE


class BadExpression(UsageError):
    """A condition that cannot be read.

    Attributes:
        text: all of it.
        column: the character that is wrong, from 1.
    """

    def __init__(self, what: str, text: str, column: int, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.text = text
        self.column = column


class BadData(MqtoolError):
    """The input to publish, or a message received, is not what it should be."""

    exit_code = ExitCode.BAD_DATA


class SomeFailed(MqtoolError):
    """Part of the work was done and part was not."""

    exit_code = ExitCode.SOME_FAILED


class Unavailable(MqtoolError):
    """There is no broker, or no consumer answers, or what was consumed from is gone."""

    exit_code = ExitCode.UNAVAILABLE


class NotFound(Unavailable):
    """The broker is there, and has no such thing."""


class NotConfirmed(MqtoolError):
    """The broker refused a message, or did not confirm it in time."""

    exit_code = ExitCode.NOT_CONFIRMED


class AccessRefused(MqtoolError):
    """The broker knows us, or does not, and will not let us do this."""

    exit_code = ExitCode.ACCESS_REFUSED


class DeclaredDifferently(MqtoolError):
    """The broker has something of this name that differs from what was asked for (406 PRECONDITION_FAILED)."""

    exit_code = ExitCode.DECLARED_DIFFERENTLY


class UnknownExchangeType(DeclaredDifferently):
    """The broker has no exchanges of this type: a plugin would bring it."""


class TimedOut(MqtoolError):
    """A time limit that the user set has passed."""

    exit_code = ExitCode.TIMED_OUT
