"""Translates the errors of rstream, and of a connection, into what they mean to a user."""

import asyncio
import ssl

from rstream import exceptions

from mqtool.amqp import Address
from mqtool.amqp import pika_errors as of_amqp
from mqtool.errors import AccessRefused, MqtoolError, NotConfirmed, NotFound, Unavailable
from mqtool.streams.wire import ClosedByBroker, NotStreams

_ENABLE = (
    "on the broker, 'rabbitmq-plugins enable rabbitmq_stream', or start one: 'mqtool broker up --stream-port 5552'; "
    "--stream-port names another port"
)
#: What a connection may die of.
LOST = (OSError, EOFError, ValueError, NotStreams, ClosedByBroker, asyncio.TimeoutError)
#: Why the broker refuses a message, by its code.
_REFUSALS = {
    2: "the stream does not exist",
    6: "the stream is not available",
    14: "frame too large",
    16: "access refused",
}


def connecting(error: BaseException, address: Address) -> MqtoolError:
    """Translate a failed attempt to open a connection; the port of the address is that of streams."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"nothing answers at {where}, the port for streams: connection refused", _ENABLE)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Unavailable(f"{where} does not answer as a broker for streams", _ENABLE)
    if isinstance(error, OSError | ssl.SSLError | UnicodeError):
        return of_amqp.connecting(error, address)
    if isinstance(error, EOFError | NotStreams | ValueError | KeyError):
        return Unavailable(f"what answers at {where} does not speak RabbitMQ's stream protocol", _ENABLE)
    if isinstance(error, exceptions.VirtualHostAccessFailure):
        return AccessRefused(f"{where} has no vhost {address.virtual_host!r} that user {address.user!r} may use")
    if isinstance(error, exceptions.AuthenticationFailure | exceptions.SASLAuthenticationFailureLoopback):
        return AccessRefused(f"{where} refused the login of user {address.user!r}", "check the user and the password")
    return answered(error, "connecting")


def unreachable(leader: str, address: Address, error: MqtoolError) -> MqtoolError:
    """The error if a stream is on a node that cannot be reached by the name that the broker gives for it."""
    return Unavailable(
        f"the stream is on {leader}, as {address.host}:{address.port} says, which cannot be reached from here: {error}",
        "on the broker, set stream.advertised_host and stream.advertised_port to what works from here "
        "(in Docker, usually localhost)",
    )


def answered(error: BaseException, stream: str) -> MqtoolError:
    """Translate a refusal of the broker."""
    if isinstance(error, MqtoolError):
        return error
    if isinstance(error, exceptions.StreamDoesNotExist):
        return NotFound(f"there is no stream {stream!r}", "'mqtool list queues' lists what there is")
    if isinstance(error, exceptions.AccessRefused):
        return AccessRefused(f"the user may not use stream {stream!r}", "see 'mqtool list permissions'")
    if isinstance(error, exceptions.StreamNotAvailable | exceptions.LeaderNotAvailable):
        return Unavailable(f"stream {stream!r} has no leader right now")
    if isinstance(error, LOST):
        return Unavailable(f"the connection was lost: {in_words(error)}")
    name = type(error).__name__
    return MqtoolError(f"stream {stream!r}: the broker refused: {name}")


def in_words(error: BaseException) -> str:
    """What a connection died of."""
    if isinstance(error, ClosedByBroker):
        return f"closed by the broker: {error}"
    if isinstance(error, EOFError):
        return "closed by the other end"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def refusal(code: int) -> str:
    """Why the broker did not take a message."""
    return _REFUSALS.get(code, f"the broker refused it (code {code})")


def not_confirmed(count: int, seconds: float) -> NotConfirmed:
    """The error if confirms do not come."""
    return NotConfirmed(
        f"the broker did not confirm {count:,} message{'s' * (count != 1)} within {seconds:g} s",
        "they may or may not be in the stream; --confirm-timeout waits longer",
    )
