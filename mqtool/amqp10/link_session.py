"""LinkSession: declare, send and receive over AMQP 1.0 with blocking calls that resume after a reconnection.

To send:      LinkSession.sender ─ link_sender ─ link_connection ─ transport ─> socket
To receive:   socket ─> transport ─ link_connection ─ link_receiver ─ LinkSession.receiver

It also has the methods of channels.AmqpChannel, which commands use with both protocols.
"""

import re
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Self, TypeVar

from mqtool.amqp import CONFIRM_TIMEOUT, STREAMING, Address, Backoff, Receiving, TlsFiles
from mqtool.amqp10.link_connection import LinkConnection, new_name
from mqtool.amqp10.link_receiver import Receiver, stream_filters
from mqtool.amqp10.link_sender import WINDOW, Sender
from mqtool.amqp10.management_node import ManagedTopology
from mqtool.codecs.amqp10_frames import Accepted
from mqtool.codecs.sections import exchange_address, exchange_and_key, queue_address
from mqtool.errors import BadData, UsageError
from mqtool.message import Delivery, LostReplies, Message, Receipt, error_reply
from mqtool.offsets import StreamPosition
from mqtool.topology import Exchange, Queue

Thing = TypeVar("Thing", bound=Exchange | Queue)


#: The first version of RabbitMQ with SQL filters. Earlier versions silently ignore them.
_SQL_SINCE = [4, 2]


class LinkSession(ManagedTopology):
    """A session with RabbitMQ, for one thread at a time; any thread may call acknowledge() and publish().

    Attributes:
        connection: the session's connection.

    Args:
        addresses: the nodes of one broker, tried in turn.
        backoff: the delays between attempts to reconnect; None never reconnects.
        strict: fail if a queue or exchange exists with other settings.
        values: from a stream, read only chunks with one of these filter values; they may contain other messages, too.
        sql: from a stream, read only messages that match this condition. https://www.rabbitmq.com/docs/stream-filtering
        notice: called with a sentence for the user, such as about a lost connection.

    Raises:
        Unavailable: no node can be reached, or none speaks AMQP 1.0.
        AccessRefused: the broker rejects the user or the vhost.
        UsageError: the broker has no SQL filters.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        tls: TlsFiles | None = None,
        backoff: Backoff | None = None,
        strict: bool = False,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        values: Sequence[str] = (),
        sql: str | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        files = tls or TlsFiles()
        context = files.context() if any(address.tls for address in addresses) else None
        addresses = [address._replace(names_user=not files.logs_in(address)) for address in addresses]
        self.connection = self._links = LinkConnection(
            addresses, context, backoff=backoff, confirm_timeout=confirm_timeout, notice=notice
        )
        version = str(self._links.transport.properties.get("version", ""))
        if sql is not None and [int(number) for number in re.findall(r"\d+", version)[:2]] < _SQL_SINCE:
            self._links.close()
            raise UsageError(f"the broker (RabbitMQ {version}) has no SQL filters", "they need RabbitMQ 4.2")
        super().__init__(self._links, strict=strict, notice=notice)
        self._filters = stream_filters(values, sql)
        self._sender: Sender | None = None
        self._replies: Sender | None = None
        self._publishing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._links.release_all()
        self._links.close()

    @property
    def cluster(self) -> str:
        """An identifier of the broker and the virtual host."""
        return self._links.address.cluster(self._links.transport.properties.get("cluster_name"))

    @property
    def stopping(self) -> bool:
        """True once stop() has been called."""
        return self._links.stopping

    @property
    def refused(self) -> bool:
        """True if the broker ended the session because of an error, while the connection stayed open."""
        return self._links.refused

    # Links.

    def sender(self, address: str | None, *, persistent: bool = False) -> Sender:
        """Attach a link that sends to an address. `unconfirmed` refers to the latest sender.

        Args:
            address: from queue_address() or exchange_address(); None if each message names its exchange or queue.
            persistent: make messages without a delivery mode persistent.

        Raises:
            NotFound: the queue or exchange does not exist.
            AccessRefused: the user lacks the permission.
        """
        self._links.sending_link(address)
        self._sender = Sender(self._links, address, persistent=persistent)
        return self._sender

    def receiver(self, address: str | None, receiving: Receiving = STREAMING) -> Receiver:
        """Attach a link that receives from a queue. Deliveries start when the caller iterates over deliveries().

        Args:
            address: from queue_address(); None asks the broker for a reply address, stored in Receiver.address.

        Raises:
            NotFound: the queue does not exist.
            DeclaredDifferently: the queue is exclusive to another connection.
        """
        position = None
        if address is not None and receiving.offset is not None:
            position = StreamPosition(exchange_and_key(address)[1], receiving.offset, self._notice)
        receiver = Receiver(self._links, new_name(), address, receiving, self._filters, position)
        self._links.retrying(lambda: self._links.attach(receiver))
        self._links.give_credit(receiver)
        for name in receiver.ignored_filters:
            self._notice(f"the broker ignores the filter {name}: it is not valid, or not for this queue")
        return receiver

    def acknowledge(self, *deliveries: Delivery) -> None:
        """Accept deliveries. Safe to repeat, and to call from any thread."""
        self._links.settle(deliveries, Accepted())

    def is_current(self, delivery: Delivery) -> bool:
        """True if a delivery can still be accepted. If not, the broker redelivers it."""
        return self._links.is_current(delivery)

    def timed_out(self, delivery: Delivery) -> bool:
        """True if the broker has taken an unsettled delivery back, which it does after its consumer timeout."""
        return self._links.timed_out(delivery)

    # Methods of channels.AmqpChannel.

    def publish(
        self,
        messages: Iterable[Message | None],
        *,
        exchange: Exchange | None = None,
        routing_key: str = "",
        persistent: bool = False,
        mandatory: bool | None = None,  # noqa: ARG002  # over AMQP 1.0, the broker tells it in any case
        window: int = WINDOW,
    ) -> Generator[Receipt]:
        """Publish messages; yield their receipts in order. See amqp.Channel.publish()."""
        address = exchange_address(exchange.name if exchange else "", routing_key)
        is_fixed = bool(routing_key or (exchange and exchange.name))
        return self.sender(address if is_fixed else None, persistent=persistent).send(messages, window)

    def consume(self, queue: Queue, receiving: Receiving = STREAMING) -> Generator[Delivery]:
        """Start consuming; return a generator of the deliveries. See amqp.Channel.consume()."""
        return self.receiver(queue_address(queue.name), receiving).deliveries()

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages without an outcome, oldest first."""
        return [] if self._sender is None else self._sender.unconfirmed

    def addressed(self, message: Message) -> Message:
        """Copy a message; if it has no exchange and routing key of its own, use the latest sender's."""
        return message if self._sender is None else self._sender.addressed(message)

    def answer(self, delivery: Delivery, reply: Message) -> None:
        """Send the reply to a delivery, or an error if it is too large, then accept the delivery."""
        with self._publishing:
            if self._replies is None:
                self._links.sending_link(None)
                self._replies = Sender(self._links, None, persistent=False)
                self._replies.on_refused = LostReplies(self._notice).add
            if (reply.routing_key or "").startswith("/exchanges/"):  # the broker ends the session if it may not be used
                self._notice(f"dropped a reply to {reply.routing_key!r}: a reply goes only to a queue")
            else:
                try:
                    self._replies.add(reply)
                except BadData as error:
                    self._notice(f"answered with an error: {error}")
                    self._replies.add(error_reply(reply, str(error)))
                self._replies.flush()
        self.acknowledge(delivery)

    def wait_for_confirms(self) -> None:
        """Wait until the broker has reported the outcomes of all replies."""
        if self._replies is not None:
            self._replies.settle()

    def stop(self) -> None:
        """End all receivers after their current delivery. Safe to call from any thread or a signal handler."""
        self._links.stop()
