"""The offsets that the consumers of a stream have stored. Their names count as memory."""

from mqtool.broker.embedded.model.ledger import Ledger

# What a stored offset takes in memory besides the name, in bytes.
_OVERHEAD = 200


class StoredOffsets(dict[str, int]):
    """The stored offset of each consumer, by name. Change it only with the methods below.

    Args:
        ledger: counts the memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._hold = ledger.hold_bytes

    def store(self, consumer: str, offset: int) -> None:
        """Store the offset of a consumer."""
        if consumer not in self:
            self._hold(len(consumer) + _OVERHEAD)
        self[consumer] = offset

    def forget_before(self, first: int) -> None:
        """Forget the offsets before `first`: their messages have been deleted. RabbitMQ does this, too."""
        for consumer in [each for each, offset in self.items() if offset < first]:
            del self[consumer]
            self._hold(-len(consumer) - _OVERHEAD)

    def forget_all(self) -> None:
        """Forget all offsets."""
        self._hold(-sum(len(consumer) + _OVERHEAD for consumer in self))
        self.clear()
