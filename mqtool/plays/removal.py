"""Leaving no traces on a broker that is not ours."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Any

from mqtool.amqp import Address, Connection
from mqtool.errors import MqtoolError

_PATIENCE = 30.0


def remove(addresses: Sequence[Address], queues: Collection[str], exchanges: Collection[str]) -> None:
    """Delete queues and exchanges, with the messages in them; those that are not there are none to delete.

    Raises:
        MqtoolError: there is no way to the broker, or it refuses, or does not answer.
    """
    unanswered = len(queues) + len(exchanges)
    if not unanswered:
        return
    done: Future[None] = Future()

    def answered(_frame: Any) -> None:
        nonlocal unanswered
        unanswered -= 1
        if not unanswered:
            done.set_result(None)

    def closed(_channel: Any, reason: Exception) -> None:
        if not done.done():
            done.set_exception(reason)

    def delete(channel: Any) -> None:
        channel.add_on_close_callback(closed)
        for queue in queues:
            channel.queue_delete(queue, callback=answered)
        for exchange in exchanges:
            channel.exchange_delete(exchange, callback=answered)

    with Connection(addresses, name="mqtool tutorial") as connection:
        # On the I/O thread, where alone pika may be called.
        connection.run(lambda: (connection.open_pika_channel(delete), None)[1])
        try:
            done.result(_PATIENCE)
        except Exception as error:
            names = ", ".join([*queues, *exchanges])
            raise MqtoolError(f"cannot remove {names} from the broker: {error or type(error).__name__}") from error
