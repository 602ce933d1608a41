"""The queues and exchanges that a run has declared, and how to delete them."""

from collections.abc import Iterable, Sequence

from mqtool.amqp import Address, Connection, TlsFiles, administration
from mqtool.broker.readiness import connect_within  # a fault may have stopped the broker
from mqtool.topology import Exchange, Queue

#: Seconds to wait for the broker.
_PATIENCE = 10.0


def delete_declared(addresses: Sequence[Address], tls: TlsFiles, declared: Iterable[Queue | Exchange]) -> None:
    """Delete queues and exchanges. Safe to repeat.

    Raises:
        MqtoolError: the broker cannot be reached, or refuses.
    """
    with connect_within(_PATIENCE, lambda: Connection(addresses, tls=tls)) as connection:
        channel = connection.channel()
        for thing in declared:
            if isinstance(thing, Queue):
                administration.delete_queue(channel, thing.name)
            else:
                administration.delete_exchange(channel, thing.name)
