"""Leaving no traces on a broker that is not ours."""

from collections.abc import Collection, Sequence

from mqtool.amqp import Address, Connection, administration
from mqtool.errors import MqtoolError


def remove(addresses: Sequence[Address], queues: Collection[str], exchanges: Collection[str]) -> None:
    """Delete queues and exchanges, with the messages in them; those that are not there are none to delete.

    Raises:
        MqtoolError: there is no way to the broker, or it refuses.
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
