"""Room on the disk: publishers wait while there is too little of it, as with RabbitMQ's disk alarm."""

import asyncio

from mqtool.broker.embedded.model.broker import LOW_ON_DISK, Broker

# How often to look: the more often, the sooner what is left can be used up.
_SOONEST, _LATEST = 0.1, 10.0
_BYTES_PER_SECOND = 250_000_000
_WHILE_ALARMED = 0.5


class DiskSpace:
    """Looks after the room in the data directory.

    Args:
        broker: knows how much must be free, and blocks publishers if it is not.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._next: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Look now, and from now on."""
        broker = self._broker
        room = broker.ledger.disk_free() - broker.disk_free_limit
        if room < 0:
            broker.raise_alarm("disk space", LOW_ON_DISK, f"only {broker.ledger.disk_free()} bytes are free")
            seconds = _WHILE_ALARMED
        else:
            broker.clear_alarm("disk space")
            seconds = min(max(room / _BYTES_PER_SECOND, _SOONEST), _LATEST)
        self._next = asyncio.get_running_loop().call_later(seconds, self.look)

    def stop(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()
