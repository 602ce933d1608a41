"""What lessons and commands need from a channel, whatever its protocol.

                       PublishingChannel, ConsumingChannel    AmqpChannel
    amqp.Channel                       yes                        yes
    amqp10.LinkSession                 yes                        yes
    streams.StreamChannel              yes          no: streams have offsets, not acknowledgements

Code that needs more asks for the class: senders and receivers are a LinkSession's, offsets a StreamChannel's.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from mqtool.field_values import FieldValue
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue

if TYPE_CHECKING:
    from mqtool.amqp import Receiving

Thing = TypeVar("Thing", bound=Exchange | Queue)


class PublishingChannel(Protocol):
    """What happened to the messages that a lesson has published."""

    @property
    def refused(self) -> bool:
        """True if the broker closed the channel because of an error, while the connection stayed open."""

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages that are published but not confirmed, oldest first."""

    def addressed(self, message: Message) -> Message:
        """Copy a message; if it has no exchange or no routing key, use that of the latest publish()."""


class ConsumingChannel(Protocol):
    """A channel whose consumers a signal can stop."""

    @property
    def stopping(self) -> bool:
        """True once stop() has been called."""

    def stop(self) -> None:
        """End all consumers after their current delivery. Safe from any thread or signal handler."""


class AmqpChannel(PublishingChannel, ConsumingChannel, Protocol):
    """Declare, bind, publish, consume and acknowledge, over AMQP 0-9-1 or AMQP 1.0. See amqp.Channel."""

    @property
    def cluster(self) -> str:
        """An identifier of the broker and the virtual host."""

    def declare(self, thing: Thing, *, remember: bool = True, exactly: bool = False) -> Thing:
        """Declare an exchange or a queue; return it with the name that it has on the broker."""

    def bind(
        self,
        to: Queue | Exchange,
        exchange: Exchange,
        routing_key: str = "",
        arguments: Mapping[str, FieldValue] | None = None,
        *,
        remember: bool = True,
    ) -> None:
        """Bind a queue or an exchange to an exchange."""

    def publish(
        self,
        messages: Iterable[Message | None],
        *,
        exchange: Exchange | None = None,
        routing_key: str = "",
        persistent: bool = False,
        mandatory: bool | None = None,
        window: int = ...,
    ) -> Iterator[Receipt]:
        """Publish messages; yield their receipts in order, once the broker has confirmed or rejected each message."""

    def consume(self, queue: Queue, receiving: "Receiving" = ...) -> Iterator[Delivery]:
        """Start consuming; return the deliveries. Asking for the next one acknowledges the previous one."""

    def acknowledge(self, *deliveries: Delivery) -> None:
        """Acknowledge deliveries. Safe to repeat, and to call from any thread."""

    def is_current(self, delivery: Delivery) -> bool:
        """True if a delivery can still be acknowledged. If not, the broker redelivers it."""

    def timed_out(self, delivery: Delivery) -> bool:
        """True if the broker has taken an unacknowledged delivery back, which it does after its consumer timeout."""

    def answer(self, delivery: Delivery, reply: Message) -> None:
        """Publish the reply to a delivery, then acknowledge the delivery."""

    def wait_for_confirms(self) -> None:
        """Wait until the broker has confirmed or rejected all replies."""
