"""What a fault is: something goes wrong, at once or for as long as it is in force."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Routing
from mqtool.broker.embedded.wire.connection import Connection


class Door(Protocol):
    """Where clients connect."""

    def shut(self) -> None:
        """Refuse connections, and keep the port."""

    def open(self) -> None:
        """Accept connections again."""


@dataclass(frozen=True)
class Scene:
    """Where faults happen.

    Attributes:
        call_later: calls something after this many seconds.
    """

    broker: Broker
    connections: Collection[Connection]
    door: Door
    call_later: Callable[[float, Callable[[], object]], object]


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

    def connected(self, connection: Connection) -> None:
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
