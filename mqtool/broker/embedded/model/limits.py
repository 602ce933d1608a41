"""Limits on how much of something a virtual host or a user may have at once; a negative number is none."""

from mqtool.broker.embedded.model.broker import Broker, Client
from mqtool.broker.embedded.model.errors import NOT_ALLOWED, ConnectionException, precondition_failed
from mqtool.broker.embedded.model.virtual_host import VirtualHost

OF_VHOSTS = ("max-connections", "max-queues")
OF_USERS = ("max-connections", "max-channels")
"""What can be limited."""


def _limit(limits: dict[str, int], name: str) -> int | None:
    limit = limits.get(name, -1)
    return None if limit < 0 else limit


def check_connections(broker: Broker, vhost: VirtualHost, user: str) -> None:
    """Check that a user may open one more connection to a virtual host.

    Raises:
        ConnectionException: 530.
    """
    limit = _limit(vhost.limits, "max-connections")
    if limit is not None and sum(each.is_open and each.vhost is vhost for each in broker.clients()) >= limit:
        refused = f"access to vhost '{vhost.name}' refused for user '{user}'"
        raise ConnectionException(NOT_ALLOWED, f"{refused}: connection limit ({limit}) is reached")
    limit = _limit(broker.limits_of(user), "max-connections")
    if limit is not None and len(_clients_of(broker, user)) >= limit:
        refused = f"connection refused for user '{user}'"
        raise ConnectionException(NOT_ALLOWED, f"{refused}: user connection limit ({limit}) is reached")


def check_channels(broker: Broker, user: str) -> None:
    """Check that a user may open one more channel.

    Raises:
        ConnectionException: 530.
    """
    limit = _limit(broker.limits_of(user), "max-channels")
    if limit is not None and sum(len(client.channels) for client in _clients_of(broker, user)) >= limit:
        raise ConnectionException(
            NOT_ALLOWED,
            f"number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})",
        )


def _clients_of(broker: Broker, user: str) -> list[Client]:
    return [client for client in broker.clients() if client.is_open and client.user.name == user]


def check_queues(vhost: VirtualHost, name: str) -> None:
    """Check that a virtual host may have one more queue.

    Raises:
        ChannelException: 406.
    """
    limit = _limit(vhost.limits, "max-queues")
    if limit is not None and len(vhost.queues) >= limit:
        raise precondition_failed(
            f"cannot declare queue '{name}': queue limit in vhost '{vhost.name}' ({limit}) is reached"
        )
