"""AMQP errors, each of which closes a channel or a connection. The messages are the same as in RabbitMQ 3.10."""

import logging

log = logging.getLogger("mqtool.broker.embedded")

REPLY_NAMES = {
    311: "CONTENT_TOO_LARGE",
    312: "NO_ROUTE",
    320: "CONNECTION_FORCED",
    402: "INVALID_PATH",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    506: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}

ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
CONNECTION_FORCED = 320
FRAME_ERROR = 501
SYNTAX_ERROR = 502
COMMAND_INVALID = 503
CHANNEL_ERROR = 504
UNEXPECTED_FRAME = 505
NOT_ALLOWED = 530
NOT_IMPLEMENTED = 540
INTERNAL_ERROR = 541
RESOURCE_ERROR = 506


class AmqpException(Exception):
    """An error that closes a channel or a connection.

    Attributes:
        code: the AMQP reply code.
        text: the reply text, starting with the name of the code.
        what: the reply text without the name of the code; "" if there is nothing else.
    """

    def __init__(self, code: int, what: str = "") -> None:
        name = REPLY_NAMES[code]
        self.code, self.what = code, what
        self.text = f"{name} - {what}" if what else name
        super().__init__(self.text)

    @property
    def reply_text(self) -> str:
        """The reply text as it is sent: at most 255 bytes."""
        encoded = self.text.encode(errors="surrogateescape")
        if len(encoded) > 255:
            encoded = encoded[:252] + b"..."
        return encoded.decode(errors="ignore")


class ChannelException(AmqpException):
    """An error that closes the channel but not the connection."""


class ConnectionException(AmqpException):
    """An error that closes the whole connection."""


def no_such_queue(name: str, vhost: str) -> ChannelException:
    """Return error 404: the queue does not exist."""
    return ChannelException(NOT_FOUND, f"no queue '{name}' in vhost '{vhost}'")


def no_such_exchange(name: str, vhost: str) -> ChannelException:
    """Return error 404: the exchange does not exist."""
    return ChannelException(NOT_FOUND, f"no exchange '{name}' in vhost '{vhost}'")


def locked_queue(name: str, vhost: str) -> ChannelException:
    """Return error 405: the queue is exclusive to another connection."""
    return ChannelException(
        RESOURCE_LOCKED,
        f"cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be originally "
        "declared on another connection or the exclusive property value does not match that of the original "
        "declaration.",
    )


def precondition_failed(what: str) -> ChannelException:
    """Return error 406, for example for a declaration that differs from the existing queue."""
    return ChannelException(PRECONDITION_FAILED, what)


def access_refused(what: str) -> ChannelException:
    """Return error 403: the user lacks the required permission."""
    return ChannelException(ACCESS_REFUSED, what)


def storage_failed(error: Exception) -> ConnectionException:
    """Return error 506: writing to the data directory failed."""
    return ConnectionException(RESOURCE_ERROR, f"cannot write to the data directory: {error}")


#: How many kinds of failure a FailureLog logs.
_MOST_LOGGED = 100


class FailureLog:
    """Logs failures to process messages: each kind of failure only once, with its traceback."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, type[Exception]]] = set()

    def report(self, what: str, error: Exception) -> None:
        """Log that a message could not be processed, unless the same failure was logged before."""
        # The names in `what` are chosen by clients: without a limit, they could fill the memory and the log.
        if (what, type(error)) not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add((what, type(error)))
            # `what` contains names chosen by clients: escaped as ASCII, they cannot forge log lines.
            what = ascii(what)[1:-1]
            log.error(
                "%s: the message is set aside; further failures of this kind are not logged", what, exc_info=error
            )
