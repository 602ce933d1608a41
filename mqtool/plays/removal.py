"""Removing a play's queues and exchanges from a broker that others use."""

from collections.abc import Collection, Sequence

from mqtool.amqp import Address, Connection, administration
from mqtool.errors import MqtoolError


def remove(addresses: Sequence[Address], queues: Collection[str], exchanges: Collection[str]) -> None:
    """Delete queues and exchanges, with their messages, where they exist.

    Raises:
        MqtoolError: the broker cannot be used, or refuses.
    """
    if not queues and not exchanges:
        return
    try:
        with Connection(addresses, name="mqtool tutorial") as connection:
            channel = connection.channel()
            for queue in queues:
                administration.delete_queue(channel, queue)
            for exchange in exchanges:
                administration.delete_exchange(channel, exchange)
    except MqtoolError as error:
        names = ", ".join([*queues, *exchanges])
        raise MqtoolError(f"cannot remove {names} from the broker: {error}") from error
