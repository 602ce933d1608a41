"""What the parts of a connection need of it, so that they need not know the connection itself."""

from typing import Protocol

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost


class Confirming(Protocol):
    """What a connection needs of a channel that has confirms to send."""

    def write_confirms(self) -> None:
        """Send the confirms that are due."""


class Session(Protocol):
    """What a channel needs of its connection.

    Attributes:
        user, vhost, rights: who logged in, where, and what they may do.
        peer: host and port of the client.
        frame_max: the largest frame, in bytes, as negotiated.
        writable: whether consumers should be sent more now.
        starving: queues to pump when it is.
        exclusive_queues: the queues that go with the connection.
        turn: what has been decided about a message holds for others like it until this changes.
    """

    broker: Broker
    user: User
    vhost: VirtualHost
    rights: Rights
    peer: tuple[str, int]
    frame_max: int
    writable: bool
    starving: dict[Queue, None]
    exclusive_queues: set[Queue]
    turn: int

    @property
    def name(self) -> str:
        """The connection as RabbitMQ names it."""

    def capability(self, name: str) -> bool:
        """Whether the client said that it supports something."""

    def write(self, data: bytes) -> None:
        """Send octets."""

    def confirm_soon(self, channel: Confirming) -> None:
        """Send a channel's confirms at the end of this turn of the loop."""

    def block(self) -> None:
        """Read no more from a client that publishes, as long as there is an alarm."""

    def let_go(self, number: int) -> None:
        """Forget a channel."""
