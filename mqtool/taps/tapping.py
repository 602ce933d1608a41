"""A private queue bound beside the others, and its deliveries.

    publisher ──> (exchange)─┬─> [jobs] ──────> worker
                             └─> [amq.gen-1] ─> tap

A tap burdens its broker as little as can be. It acknowledges nothing, so the broker keeps nothing for it: what is
delivered is forgotten. It takes all that comes at once, and itself drops what its reader is too slow for, which is how
it knows how much that was. Messages pile up at the broker only while the tap does not read at all; then the broker
drops the oldest.
"""

import re
from collections.abc import Iterable, Iterator

from mqtool.amqp import Channel, Receiving
from mqtool.errors import AccessRefused, MqtoolError
from mqtool.message import Delivery
from mqtool.topology import Binding, Exchange, Queue

#: Messages that may pile up at the broker, and octets of bodies.
_MAX_LENGTH, _MAX_SIZE = 20_000, 128 << 20
#: Of the messages, from where on some may have been dropped before anybody looked.
_NEARLY_FULL = 0.8


class Tap:
    """Copies of what bindings match, from now on.

    Args:
        bindings: whose destination is left open.
        receiving: with a buffer.

    Raises:
        NotFound: an exchange does not exist.
        AccessRefused: the user may not have a queue, or not read from an exchange.
    """

    def __init__(self, channel: Channel, bindings: Iterable[Binding], receiving: Receiving) -> None:
        assert receiving.buffer is not None
        self._channel = channel
        self._beside = channel.connection.channel()
        limits = {"x-max-length": _MAX_LENGTH, "x-max-length-bytes": _MAX_SIZE, "x-overflow": "drop-head"}
        try:
            self._queue = channel.declare(Queue(exclusive=True, auto_delete=True, arguments=limits))
            for binding in bindings:
                channel.bind(self._queue, Exchange(binding.source), binding.routing_key, binding.arguments)
            self.deliveries: Iterator[Delivery] = channel.consume(self._queue, receiving)
        except AccessRefused as error:
            raise AccessRefused(str(error), _permissions_for(str(error))) from error

    def has_backlog(self) -> bool:
        """Whether so much has piled up at the broker that it may have dropped messages. From another thread."""
        try:
            name = self._channel.reopening.journal.current_name(self._queue.name)
            return self._beside.depth_of(name) > _MAX_LENGTH * _NEARLY_FULL
        except MqtoolError:
            return False  # the connection was lost, and the queue with it


def _permissions_for(refusal: str) -> str:
    exchange = re.search(r"exchange '(.*?)'", refusal)
    if exchange:
        return f"the user needs the permission to read from exchange {exchange[1]!r}; a tap changes nothing there"
    return "the user needs all three permissions on queues named amq.gen-…: a tap has such a queue of its own"
