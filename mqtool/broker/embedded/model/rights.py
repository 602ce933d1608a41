"""The permissions of a user in a virtual host, for all protocols."""

from mqtool.broker.embedded.model.amqp_errors import ChannelException, access_refused
from mqtool.broker.embedded.model.amqp_message import carbon_copies
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.codecs.field_tables import Table, Value

#: The maximum number of cached results: otherwise, a client could fill the memory by using ever new names.
_MOST_KNOWN = 1000


class Rights:
    """Checks the permissions of a user in a virtual host. Results are cached until the broker's users change.

    All check methods raise ChannelException 403 if the user lacks a permission.

    Attributes:
        has_topics: True if the user had topic permissions at the last check().
    """

    def __init__(self, broker: Broker, user: str, vhost: str) -> None:
        self._broker = broker
        self._user = user
        self._vhost = vhost
        self._known: dict[tuple[str, str], bool] = {}
        self._version = -1
        self.has_topics = False

    def check(self, what: str, kind: str, name: str) -> None:
        """Check that the user may `configure`, `write` or `read` a `queue` or an `exchange`."""
        if self._version != self._broker.permissions_version:
            self._known.clear()
            self._version = self._broker.permissions_version
            user = self._broker.users.get(self._user)
            self.has_topics = user is not None and bool(user.topic_permissions)
        allowed = self._known.get((what, name))
        if allowed is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            allowed = self._known[what, name] = self._allowed(what, name)
        if not allowed:
            raise self._refused(what, f"{kind} '{name or 'amq.default'}'")

    def check_any(self, kind: str, name: str) -> None:
        """Check that the user has at least one of the permissions (read, write or configure)."""
        for what in ("read", "write"):
            try:
                self.check(what, kind, name)
            except ChannelException:
                continue
            return
        self.check("configure", kind, name)

    def check_topic(self, what: str, exchange: BrokerExchange | None, key: str) -> None:
        """Check that the user may publish to a topic exchange (`write`), or bind to it (`read`), with a routing key."""
        user = self._broker.users.get(self._user)
        if exchange is None or exchange.kind != "topic" or user is None or not user.topic_permissions:
            return
        permissions = user.topic_permissions.get((self._vhost, exchange.name))
        if permissions is not None and not permissions.allow(what, key, self._user, self._vhost):
            raise self._refused(what, f"topic '{key}' in exchange '{exchange.name}'")

    def check_copies(self, exchange: BrokerExchange, headers: Table) -> None:
        """Check the routing keys in CC and BCC like that of the message, if this version of RabbitMQ does so."""
        if self._broker.profile.checks_copies and ("CC" in headers or "BCC" in headers):
            for key in carbon_copies(headers):
                self.check_topic("write", exchange, key)

    def check_queue_declaration(self, name: str, arguments: Table, *, exists: bool) -> None:
        """Check that the user may declare a queue.

        If the queue is new and has a dead-letter exchange, the user must also be allowed to read the queue and to write
        to that exchange.
        """
        self._check_declaration("queue", name, None if exists else arguments.get("x-dead-letter-exchange"))

    def check_exchange_declaration(self, name: str, arguments: Table, *, exists: bool) -> None:
        """Check that the user may declare an exchange.

        If the exchange is new and has an alternate exchange, the user must also be allowed to read the new exchange and
        to write to the alternate one.
        """
        self._check_declaration("exchange", name, None if exists else arguments.get("alternate-exchange"))

    def _check_declaration(self, kind: str, name: str, leads_to: Value) -> None:
        """Check `configure` and, if `leads_to` names an exchange, `read` for `name` and `write` for `leads_to`."""
        self.check("configure", kind, name)
        if isinstance(leads_to, str):
            self.check("read", kind, name)
            self.check("write", "exchange", leads_to)

    def check_binding(self, kind: str, destination: str, source: str, key: str | None) -> None:
        """Check that the user may bind a `queue` or an `exchange` to an exchange, or unbind it.

        Args:
            kind: the type of the destination.
            destination: the name of the destination.
            source: the name of the source exchange.
            key: the routing key, for topic permissions; None if it is not known yet.
        """
        self.check("write", kind, destination)
        self.check("read", "exchange", source)
        if key is not None:
            self.check_topic("read", self._broker.vhosts[self._vhost].exchanges.get(source), key)

    def _refused(self, what: str, to: str) -> ChannelException:
        access = f"{what} access" if self._broker.profile.names_access else "access"
        return access_refused(f"{access} to {to} in vhost '{self._vhost}' refused for user '{self._user}'")

    def _allowed(self, what: str, name: str) -> bool:
        user = self._broker.users.get(self._user)
        permissions = None if user is None else user.permissions.get(self._vhost)
        return permissions is not None and permissions.allow(what, name)
