"""Translate AMQP 1.0 errors, which have a condition and a description, into mqtool's errors."""

import re
from typing import Any

from mqtool.amqp import Address, pika_errors
from mqtool.errors import AccessRefused, BadData, MqtoolError, Unavailable

#: Conditions, and the reply codes of AMQP 0-9-1 that mean the same. RabbitMQ's descriptions are the same in both.
_CODES = {
    "amqp:not-found": pika_errors.NOT_FOUND,
    "amqp:unauthorized-access": pika_errors.ACCESS_REFUSED,
    "amqp:resource-locked": pika_errors.RESOURCE_LOCKED,
    "amqp:precondition-failed": pika_errors.PRECONDITION_FAILED,
    "amqp:resource-limit-exceeded": pika_errors.PRECONDITION_FAILED,
}
#: Status codes of management responses, and the equivalent reply codes of AMQP 0-9-1.
_STATUS = {400: pika_errors.PRECONDITION_FAILED, 401: 403, 403: 403, 404: 404, 409: pika_errors.PRECONDITION_FAILED}
#: The beginning of the response, with status 400, to a request for a queue that is exclusive to another connection.
_LOCKED = "cannot obtain exclusive access to locked queue "
#: Conditions with which connections are closed by an operator, or by a broker that is shutting down.
_FORCED = ("amqp:connection:forced", "amqp:internal-error")
#: The beginning of the reason, with amqp:internal-error, for closing a connection whose session has crashed.
_CRASH = "Session error: "
_INTERNAL = "amqp:internal-error"
#: The beginning of the reason, with the same condition, if an operator closes the connection.
_BY_OPERATOR = "Connection forced"
#: The reason, with amqp:resource-limit-exceeded, for closing the connection of a client that has missed heartbeats.
_SILENT = "no frame received from client within idle timeout threshold"


class Lost(Exception):
    """The connection was lost before the broker replied."""


class ClosedByBroker(Exception):
    """The broker has closed the connection, the session or a link, or has refused a request.

    Attributes:
        condition: such as "amqp:not-found"; empty for a management response.
        reply_code, reply_text: as in AMQP 0-9-1, for pika_errors.
    """

    def __init__(self, condition: str, reply_text: str, reply_code: int = 0) -> None:
        super().__init__(reply_text or condition)
        self.condition = condition
        self.reply_text = reply_text or condition
        self.reply_code = reply_code or _CODES.get(condition, 0)

    @classmethod
    def from_error(cls, error: Any) -> "ClosedByBroker":
        """Convert the error of a Close, End or Detach, which may be None."""
        if error is None:
            return cls("", "the broker gave no reason")
        return cls(str(error.condition), str(error.description or ""))

    @classmethod
    def from_response(cls, status: int, body: object) -> "ClosedByBroker":
        """Convert the response to a management request that the broker refused."""
        text = str(body or f"status {status}")
        return cls("", text, pika_errors.RESOURCE_LOCKED if text.startswith(_LOCKED) else _STATUS.get(status, 0))

    @property
    def is_temporary(self) -> bool:
        """True if a new connection might succeed."""
        return self.condition in _FORCED or self.reply_text == _SILENT or not (self.condition or self.reply_code)

    @property
    def has_crashed(self) -> bool:
        """True if the broker's session has ended because of a fault in the broker."""
        is_ended = self.condition == _INTERNAL and not self.reply_text.startswith(_BY_OPERATOR)
        return is_ended or self.reply_text.startswith(_CRASH)

    @property
    def is_of_deleted_vhost(self) -> bool:
        """True if the virtual host was deleted. RabbitMQ then closes new connections to it without a reason."""
        return bool(re.search("vhost '.*' is deleted", self.reply_text, re.DOTALL))

    @property
    def is_harmless_difference(self) -> bool:
        """True if a declaration failed because the queue or exchange has other settings, but the same type."""
        return pika_errors.is_harmless_difference(self)

    def translated(self) -> MqtoolError:
        """Return the error to raise."""
        if self.condition == "amqp:link:message-size-exceeded":
            return BadData(f"the broker refused the message: {self}", pika_errors.SETS_LIMIT)
        if self.condition == "amqp:resource-deleted":
            return Unavailable(f"the queue or exchange is gone: {self}")
        if self.reply_code:
            return pika_errors.closed_by_broker(self)
        return Unavailable(f"the broker closed the connection: {self}" if self.condition else str(self))


#: What to say of a crashed session. RabbitMQ's own description is an Erlang term.
CRASHED = "the broker ended the session because of an internal error"


def crashed() -> MqtoolError:
    """The error for a session that has crashed several times in a row, because of a fault in the broker."""
    return Unavailable(
        f"{CRASHED}, several times in a row",
        "a message that it cannot convert to AMQP 1.0 would do this: try --protocol amqp0.9.1, "
        "or for a stream, mqtool receive-stream",
    )


def not_amqp10(address: Address) -> MqtoolError:
    """The error for a server that does not speak AMQP 1.0."""
    return Unavailable(
        f"{address.host}:{address.port} does not speak AMQP 1.0",
        "RabbitMQ does from 4.0 on; for AMQP 0-9-1, use --protocol amqp0.9.1",
    )


def too_old(version: str) -> MqtoolError:
    """The error for a broker that supports AMQP 1.0 with a plugin, which has other addresses and no management."""
    return Unavailable(
        f"AMQP 1.0 needs RabbitMQ 4.0, but the broker is RabbitMQ {version}", "for AMQP 0-9-1, use --protocol amqp0.9.1"
    )


def vhost_refused(address: Address) -> MqtoolError:
    """The error for a connection that RabbitMQ closes after the login, without a reason, to refuse the vhost."""
    vhost = address.virtual_host
    return AccessRefused(
        f"cannot open vhost {vhost!r}: it does not exist, or user {address.user!r} may not use it",
        "check the URL's path; leave it out, or write /%2F, for vhost '/'",
    )
