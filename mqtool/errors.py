"""The errors that users see: one exception per case, with its exit code and a hint."""

import errno
import re
from enum import IntEnum
from typing import NamedTuple


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
    """An error that a user can understand and act on.

    Attributes:
        exit_code: the exit code of a command that fails with this error.
        hint: what the user can do about the error, if known.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint


def reason_of(error: Exception) -> str:
    """Return the text of an exception; that of an OSError without its number and its file, which the caller names."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def is_full(error: Exception) -> bool:
    """True if a file cannot be written because a disk, a quota or the largest size of a file is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "disk is full" in str(error) or str(error) == "disk I/O error"  # of SQLite


class UsageError(MqtoolError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class BadExpression(UsageError):
    """A condition that cannot be parsed. `column` is the position of the error in `text`, from 1."""

    def __init__(self, what: str, text: str, column: int, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.text = text
        self.column = column


class BadData(MqtoolError):
    """A received message, or the input that was to be published, is not valid."""

    exit_code = ExitCode.BAD_DATA


class HeadersTooLarge(BadData):
    """The headers and properties of a message do not fit into one frame, so no client can publish it."""


class SomeFailed(MqtoolError):
    """Part of the work was done and part was not."""

    exit_code = ExitCode.SOME_FAILED


class Unavailable(MqtoolError):
    """The broker cannot be reached, no consumer replies, or a queue or exchange does not exist."""

    exit_code = ExitCode.UNAVAILABLE


class NothingAnswers(Unavailable):
    """No broker listens at the address."""


class StoppedWaiting(Unavailable):
    """A signal stopped the command while it waited for a broker that cannot reply."""


class BadAnswer(Unavailable):
    """Something answers at the address of the management API, but not as the API of a broker does."""


class NotFound(Unavailable):
    """The broker has no queue, exchange or other object with this name."""


class InternalError(Unavailable):
    """The broker closed the connection with an internal error, as RabbitMQ does at a message that it cannot convert.

    Over AMQP 0-9-1, RabbitMQ 4.3 cannot deliver messages of AMQP 1.0 with properties of certain types.
    """


class GetRefused(Unavailable):
    """A quorum queue with a single active consumer refuses basic.get (405 RESOURCE_LOCKED)."""


class NotConfirmed(MqtoolError):
    """The broker refused a message, or did not confirm it in time."""

    exit_code = ExitCode.NOT_CONFIRMED


class AccessRefused(MqtoolError):
    """The broker refuses the login, or the user lacks a permission."""

    exit_code = ExitCode.ACCESS_REFUSED


class NoVirtualHost(AccessRefused):
    """The broker has no virtual host with this name. As with other refused logins, connecting again is of no use."""

    exit_code = ExitCode.UNAVAILABLE


class DeclaredDifferently(MqtoolError):
    """A queue or exchange with this name exists with different settings (406 PRECONDITION_FAILED)."""

    exit_code = ExitCode.DECLARED_DIFFERENTLY


#: RabbitMQ's error message for a queue or exchange that exists with different settings. It quotes some types twice.
_DIFFERS = (
    r"inequivalent arg '(.*?)' for (queue|exchange) '(.*?)' in vhost .*: "
    r"received (?:the value )?'{0,2}([^']*?)'{0,2}(?: of type '\w+')? "
    r"but current is (?:the value )?'{0,2}([^']*?)'{0,2}(?: of type '(\w+)')?$"
)


class Difference(NamedTuple):
    """The first difference between a declaration and the existing queue or exchange.

    Attributes:
        setting: such as "durable" or "x-queue-type".
        thing: "queue" or "exchange".
        ours, theirs: the values in the declaration and on the broker; "none" if there is none.
        kind: RabbitMQ's name for the type of the value on the broker, such as "longstr"; None if it names none.
    """

    setting: str
    thing: str
    name: str
    ours: str
    theirs: str
    kind: str | None

    @classmethod
    def reported_in(cls, text: str) -> "Difference | None":
        """Return what a text with RabbitMQ's error message reports; None if there is no such message in it."""
        found = re.search(_DIFFERS, text)
        return cls(*found.groups()) if found else None


class UnknownExchangeType(DeclaredDifferently):
    """The broker does not know this exchange type; a plugin may be missing."""


class TimedOut(MqtoolError):
    """A time limit that the user set has passed."""

    exit_code = ExitCode.TIMED_OUT
