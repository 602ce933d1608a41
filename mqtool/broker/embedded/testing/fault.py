"""What a fault is: something goes wrong, at once or for as long as it is in force."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Routing
from mqtool.broker.embedded.sockets.listener import Listener
from mqtool.broker.embedded.wire.amqp_connection import Connection

if TYPE_CHECKING:
    # Most brokers have no streams, and need not import their protocol.
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection

Client: TypeAlias = "Connection | StreamConnection"


@dataclass(frozen=True)
class Scene:
    """Where faults happen.

    Attributes:
        by_protocol: the connections of each protocol.
        doors: where they come in.
        call_later: calls something after this many seconds.
    """

    broker: Broker
    by_protocol: Sequence[Collection[Client]]
    doors: Sequence[Listener]
    call_later: Callable[[float, Callable[[], object]], object]

    @property
    def connections(self) -> list[Client]:
        """The connections of all protocols."""
        return [connection for connections in self.by_protocol for connection in connections]

    def shut(self) -> None:
        """Refuse connections."""
        for door in self.doors:
            door.shut()

    def open(self) -> None:
        """Accept connections again."""
        for door in self.doors:
            door.open()


class Fault:
    """A fault. Its arguments are the fields of a dataclass, so they can also come in a request.

    Attributes:
        lasts: whether it is in force until it is undone, or used up; else it happens at once.
        used_up: whether nothing is left of it.
    """

    lasts: ClassVar[bool] = True
    used_up: bool = False

    def begin(self, scene: Scene) -> int:  # noqa: ARG002
        """Let it happen; returns how many connections, channels or consumers it meets."""
        return 0

    def end(self, scene: Scene) -> None:
        """Undo it."""

    def duration(self) -> float | None:
        """How long it lasts, in seconds; None until it is undone."""
        return None

    # What happens while it lasts.

    def connected(self, connection: Client) -> None:
        """A client connects."""

    def publishing(self, routing: Routing) -> bool:  # noqa: ARG002
        """A message is published; may change where it goes. Returns whether it is refused."""
        return False

    def acknowledging(self, queue: Queue) -> bool:  # noqa: ARG002
        """A message is acknowledged; returns whether that is lost."""
        return False

    def confirming(self, data: bytes, send: Callable[[bytes], None]) -> bool:  # noqa: ARG002
        """Confirms are due; returns whether it keeps them, to send them later."""
        return False
