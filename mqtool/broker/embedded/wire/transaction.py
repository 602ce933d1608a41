"""What a channel in tx mode has done since the last commit or rollback."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mqtool.broker.embedded.model.message import Message
from mqtool.broker.embedded.model.virtual_host import Routing
from mqtool.broker.embedded.wire.deliveries import Delivery


class Pending(NamedTuple):
    """A publish that waits, in a transaction for the commit.

    Attributes:
        routing: where it goes; None for a direct reply.
    """

    message: Message
    routing: Routing | None
    mandatory: bool


@dataclass
class Transaction:
    """Publishes and acknowledgements that wait for the commit; deliveries by their tags."""

    publishes: list[Pending] = field(default_factory=list)
    acked: dict[int, Delivery] = field(default_factory=dict)
    rejected: dict[int, Delivery] = field(default_factory=dict)
    requeued: dict[int, Delivery] = field(default_factory=dict)

    def deliveries(self) -> dict[int, Delivery]:
        """Return the deliveries whose acknowledgement waits for the commit."""
        return {**self.acked, **self.rejected, **self.requeued}
