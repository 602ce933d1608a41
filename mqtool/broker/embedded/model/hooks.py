"""Where a test looks at what a broker does, and gets in its way. A broker that nobody tests with has no hooks."""

from collections.abc import Callable
from typing import Protocol

from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Publication, Routing, VirtualHost


class Hooks(Protocol):
    """What is asked at each step, while a recording or a fault wants that."""

    def connected(self, client: object) -> None:
        """A client has connected its socket."""

    def enqueue(self, vhost: VirtualHost, routing: Routing) -> Publication:
        """Put a published message in its queues."""

    def acknowledge(self, queue: Queue, entry: Entry) -> bool:
        """Whether a client's acknowledgement, or an automatic one, gets here."""

    def rejected(self, queue: Queue, entry: Entry, *, requeue: bool) -> None:
        """A client has rejected a message."""

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Send a publisher its confirms."""
