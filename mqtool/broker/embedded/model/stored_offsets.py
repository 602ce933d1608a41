"""The numbers that a stream keeps by name: stored offsets and publishing ids. Their names count as memory."""

from mqtool.broker.embedded.model.ledger import Ledger

# What a number takes in memory besides the name, in bytes.
_OVERHEAD = 200


class _Named(dict[str, int]):
    """Numbers by name.

    Args:
        ledger: counts the memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._hold = ledger.hold_bytes

    def forget(self, name: str) -> None:
        """Forget a number."""
        del self[name]
        self._hold(-len(name) - _OVERHEAD)

    def forget_all(self) -> None:
        """Forget all numbers."""
        self._hold(-sum(len(name) + _OVERHEAD for name in self))
        self.clear()


class StoredOffsets(_Named):
    """The stored offset of each consumer, by name. Change it only with its methods."""

    def store(self, consumer: str, offset: int) -> None:
        """Store the offset of a consumer."""
        if consumer not in self:
            self._hold(len(consumer) + _OVERHEAD)
        self[consumer] = offset

    def forget_before(self, first: int) -> None:
        """Forget the offsets before `first`: their messages have been deleted. RabbitMQ does this, too."""
        for consumer in [each for each, offset in self.items() if offset < first]:
            self.forget(consumer)


class PublishingIds(_Named):
    """The last publishing id of each producer, in order of the last publish. Change it only with its methods."""

    def publish(self, producer: str, publishing_id: int) -> None:
        """Keep the id of a producer's last message."""
        if self.pop(producer, None) is None:
            self._hold(len(producer) + _OVERHEAD)
        self[producer] = publishing_id

    def keep_last(self, count: int) -> None:
        """Forget all but the last `count` producers."""
        for producer in [*self][:-count]:
            self.forget(producer)
