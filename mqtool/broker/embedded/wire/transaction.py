"""What a channel in tx mode has done since the last commit or rollback."""

from dataclasses import dataclass, field

from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.message import Message
from mqtool.broker.embedded.wire.deliveries import Delivery


@dataclass
class Pending:
    """A publish that waits for the commit."""

    exchange: Exchange
    message: Message
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
