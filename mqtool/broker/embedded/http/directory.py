"""What the path of a request names."""

from collections.abc import Collection
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from mqtool.broker.embedded.http.server import HttpError
from mqtool.broker.embedded.model.applied_policies import check_pattern
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.amqp_connection import Connection

if TYPE_CHECKING:
    # Most brokers have no streams, and need not import their protocol.
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection

AnyConnection: TypeAlias = "Connection | StreamConnection"


def not_found() -> HttpError:
    """404, in RabbitMQ's words."""
    return HttpError(HTTPStatus.NOT_FOUND, "Object Not Found", "Not Found")


def bad_request(reason: str) -> HttpError:
    """400, with the reason."""
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", reason)


def check_regular_expression(pattern: str) -> None:
    """Check a regular expression that a user has sent.

    Raises:
        HttpError: 400.
    """
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise bad_request(f"invalid regular expression {pattern}: {error}") from error


def missing() -> Any:
    """Raises: HttpError 404."""
    raise not_found()


class Directory:
    """Looks up the parts of a broker by name.

    Args:
        broker: the broker.
        connections: its connections by protocol, kept up to date by the server.
    """

    def __init__(self, broker: Broker, *connections: Collection[AnyConnection]) -> None:
        self.broker = broker
        self._by_protocol = connections

    @property
    def connections(self) -> list[AnyConnection]:
        """The connections of all protocols."""
        return [connection for connections in self._by_protocol for connection in connections]

    def opened(self) -> list[AnyConnection]:
        """Return the connections whose handshake is done: only these have a user and a virtual host."""
        return [connection for connection in self.connections if connection.is_open]

    def vhost(self, name: str) -> VirtualHost:
        """Return the virtual host of this name.

        Raises:
            HttpError: 404.
        """
        return self.broker.vhosts.get(name) or missing()

    def user(self, name: str) -> User:
        """Return the user of this name.

        Raises:
            HttpError: 404.
        """
        return self.broker.users.get(name) or missing()

    def queue(self, vhost: str, name: str) -> Queue:
        """Return the queue of this name.

        Raises:
            HttpError: 404.
        """
        return self.vhost(vhost).queues.get(name) or missing()

    def exchange(self, vhost: str, name: str) -> Exchange:
        """Return the exchange of this name; `amq.default` is the one without a name.

        Raises:
            HttpError: 404.
        """
        # A path cannot hold an empty segment, so the default exchange has a name here.
        name = "" if name == "amq.default" else name
        return self.vhost(vhost).exchanges.get(name) or missing()
