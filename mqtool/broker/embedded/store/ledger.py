"""What queues hold, added up; and, in this simplest form, nothing written down (`--in-memory`)."""

from collections.abc import Callable

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.exchange import Binding, Exchange
from mqtool.broker.embedded.queue import Queue
from mqtool.routing.field_table import Table


class MemoryLedger:
    """Keeps the account of the memory that messages take; everything is gone when the process is.

    Attributes:
        held_bytes: what the messages in all queues take.
        when_grown: called with held_bytes after each change.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.when_grown: Callable[[int], None] = lambda _: None

    def grew(self, size: int) -> None:
        """This many bytes more (or less) are held in queues."""
        self.held_bytes += size
        self.when_grown(self.held_bytes)

    def after_commit(self, what: Callable[[], None]) -> None:
        """Do something once all that has been added so far is on disk."""
        what()

    def close(self) -> None:
        """Finish what is being written."""

    # Nothing of what follows outlives the process, so there is nothing to do.

    def added(self, queue: Queue, entry: Entry) -> None:
        """A persistent message came into a durable queue."""

    def removed(self, entry: Entry) -> None:
        """A stored message left its queue."""

    def delivering(self, queue: Queue) -> None:
        """A client is about to see a message of a durable queue."""

    def held(self, vhost: str, exchange: Exchange, entry: Entry) -> None:
        """A delayed exchange holds a persistent message."""

    def exchange_declared(self, vhost: str, exchange: Exchange) -> None:
        """There is a new durable exchange."""

    def exchange_deleted(self, vhost: str, exchange: Exchange) -> None:
        """A durable exchange is gone."""

    def queue_declared(self, queue: Queue) -> None:
        """There is a new durable queue."""

    def queue_deleted(self, queue: Queue) -> None:
        """A durable queue is gone."""

    def bound(self, vhost: str, binding: Binding) -> None:
        """There is a new durable binding."""

    def unbound(self, vhost: str, binding: Binding) -> None:
        """A durable binding is gone."""

    def save(self, kind: str, key: str, value: Table) -> None:
        """Remember a virtual host, a user or a permission."""

    def forget(self, kind: str, key: str) -> None:
        """Forget a virtual host, a user or a permission."""
