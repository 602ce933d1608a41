"""AMQP exceptions: what a broker says when it closes a channel or a connection (section 1.2 of the 0-9-1 reference).

The reply texts are RabbitMQ 3.10's, because clients and their tests match on them.
"""

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


class AmqpException(Exception):
    """A reason to close something.

    Attributes:
        code: the AMQP reply code.
        text: the whole reply text, with the name of the code in front.
    """

    def __init__(self, code: int, what: str = "") -> None:
        name = REPLY_NAMES[code]
        self.code = code
        self.text = f"{name} - {what}" if what else name
        super().__init__(self.text)

    @property
    def reply_text(self) -> str:
        """The text, cut to fit a short string: at most 255 octets."""
        return self.text.encode(errors="surrogateescape")[:255].decode(errors="ignore")


class ChannelException(AmqpException):
    """Closes the channel it happened on; the connection goes on."""


class ConnectionException(AmqpException):
    """Closes the whole connection."""


def no_such_queue(name: str, vhost: str) -> ChannelException:
    """404: there is no queue of this name."""
    return ChannelException(NOT_FOUND, f"no queue '{name}' in vhost '{vhost}'")


def no_such_exchange(name: str, vhost: str) -> ChannelException:
    """404: there is no exchange of this name."""
    return ChannelException(NOT_FOUND, f"no exchange '{name}' in vhost '{vhost}'")


def locked_queue(name: str, vhost: str) -> ChannelException:
    """405: the queue is exclusive to another connection."""
    return ChannelException(
        RESOURCE_LOCKED,
        f"cannot obtain exclusive access to locked queue '{name}' in vhost '{vhost}'. It could be originally "
        "declared on another connection or the exclusive property value does not match that of the original "
        "declaration.",
    )


def precondition_failed(what: str) -> ChannelException:
    """406: something is not as the client believes."""
    return ChannelException(PRECONDITION_FAILED, what)


def access_refused(what: str) -> ChannelException:
    """403: the client may not do this."""
    return ChannelException(ACCESS_REFUSED, what)


def frame_error(what: str) -> ConnectionException:
    """501: bytes that do not make a frame, or a frame that does not make a method."""
    return ConnectionException(FRAME_ERROR, what)


def malformed(code: int, kind: int, payload: bytes, what: str = "") -> ConnectionException:
    """A frame that cannot be taken, in RabbitMQ's words, which are Erlang's."""
    shown = "all octets" if len(payload) <= 16 else "first 16 octets"
    text = f"type {kind}, {shown} = {_erlang(payload[:16])}"
    return ConnectionException(code, f"{text}: {what}" if what else text)


def _erlang(octets: bytes) -> str:
    """Octets as Erlang prints a binary: as text where all of it can be printed."""
    text = octets.decode("latin-1")
    if octets and all(letter.isprintable() for letter in text) and '"' not in text:
        return f'<<"{text}">>'
    return f"<<{','.join(map(str, octets))}>>"
