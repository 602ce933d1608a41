"""What the page calls clients: by the name of their connection, else by their program, else by their address."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

from mqtool import management
from mqtool.errors import AccessRefused, NotFound
from mqtool.inspection.wiring import WiredConsumer
from mqtool.management import Management, path
from mqtool.management.api_client import Json

#: The maximum number of AMQP 1.0 connections whose links are looked up. Each takes one request.
_ASKED = 40


class ClientNames:
    """Names clients, and finds the connections of AMQP 1.0 consumers.

    Attributes:
        names: what to call clients, by the broker's names for their connections. Those of the read before are included:
            a consumer may be listed after its connection was closed.

    Args:
        sees_all: True if the broker lists each open connection at once, as the embedded broker does.
    """

    def __init__(self, api: Management, vhost: str, *, sees_all: bool) -> None:
        self.names: Mapping[str, str] = {}
        self._sees_all = sees_all
        self._api = api
        self._vhost = vhost
        self._before: dict[str, str] = {}
        self._amqp10: list[str] = []
        #: The connections of links, by queue and consumer tag, which is the link's handle.
        self._links: dict[tuple[str, str], list[str]] = {}

    def read(self, consumers: Mapping[str, list[WiredConsumer]]) -> None:
        """Read the clients' names; `consumers` are the consumers of each queue, which are to be named."""
        columns = ("name", "user_provided_name", "client_properties", "protocol")
        found = [*management.connections(self._api, self._vhost, columns)]
        now = {each["name"]: _called(each) for each in found}
        self.names, self._before = self._before | now, now
        self._amqp10 = [each["name"] for each in found if "1-0" in str(each.get("protocol"))]
        self._links = {}
        if any(_is_link(each) for queue in consumers.values() for each in queue):
            self._read_links()

    def _read_links(self) -> None:
        for name in islice(self._amqp10, _ASKED):
            with suppress(NotFound, AccessRefused):  # it has been closed, or the broker is older
                for session in self._api.items(path("connections", name, "sessions")):
                    for link in session.get("outgoing_links", ()):
                        self._links.setdefault((str(link.get("queue_name")), str(link.get("handle"))), []).append(name)

    def of(self, queue: str, consumer: WiredConsumer) -> tuple[str, str] | None:
        """Return a name for a consumer that no other one has, and what to call it; None if it has gone meanwhile.

        The management API does not report the connections of links: of several with the same handle on a queue, each
        call returns the next one.
        """
        if _is_link(consumer):
            connections = self._links.get((queue, consumer.tag))
            connection = connections.pop(0) if connections else ""
        else:
            connection = consumer.connection or consumer.channel.rpartition(" (")[0]
        if self._sees_all and connection not in self.names:
            return None
        unique = f"{consumer.channel or connection or queue}/{consumer.tag}"
        return unique, self.names.get(connection) or _address(connection) or "consumer"


def _is_link(consumer: WiredConsumer) -> bool:
    """Return True for a consumer of AMQP 1.0, which has no channel."""
    return not consumer.channel and not consumer.tag.startswith("stream.subid-")


def _called(connection: Json) -> str:
    properties = connection.get("client_properties") or {}
    return str(connection.get("user_provided_name") or properties.get("product") or _address(connection["name"]))


def _address(connection: str) -> str:
    """Return the client's address from the name of its connection, "CLIENT -> BROKER"."""
    return connection.partition(" -> ")[0]
