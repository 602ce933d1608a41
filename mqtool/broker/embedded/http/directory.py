"""Finding what a path of the management API names."""

from http import HTTPStatus
from typing import Any

from mqtool.broker.embedded.broker import Broker
from mqtool.broker.embedded.exchange import Exchange
from mqtool.broker.embedded.http.server import HttpError
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.users import User
from mqtool.broker.embedded.virtual_host import VirtualHost


def not_found() -> HttpError:
    """404, in RabbitMQ's words."""
    return HttpError(HTTPStatus.NOT_FOUND, "Object Not Found", "Not Found")


def bad_request(reason: str) -> HttpError:
    """400, and why."""
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", reason)


def missing() -> Any:
    """Raises: HttpError 404."""
    raise not_found()


class Directory:
    """What there is in a broker, by name."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def vhost(self, name: str) -> VirtualHost:
        """The virtual host of this name.

        Raises:
            HttpError: 404.
        """
        return self.broker.vhosts.get(name) or missing()

    def user(self, name: str) -> User:
        """The user of this name.

        Raises:
            HttpError: 404.
        """
        return self.broker.users.get(name) or missing()

    def queue(self, vhost: str, name: str) -> Queue:
        """The queue of this name.

        Raises:
            HttpError: 404.
        """
        return self.vhost(vhost).queues.get(name) or missing()

    def exchange(self, vhost: str, name: str) -> Exchange:
        """The exchange of this name; `amq.default` is the one without.

        Raises:
            HttpError: 404.
        """
        # A path cannot hold an empty segment, so the default exchange has a name here.
        name = "" if name == "amq.default" else name
        return self.vhost(vhost).exchanges.get(name) or missing()
