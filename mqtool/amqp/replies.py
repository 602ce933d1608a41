"""Replies publishes replies, and finds the reply queue for which the broker closes the connection.

A requester chooses the queue for the reply. RabbitMQ 3.10 closes the connection with 541 INTERNAL_ERROR if the queue is
a quorum queue that is being deleted, or has a name such as "amq.rabbitmq.reply-to.x.y". It has then not processed the
acknowledgement that follows the reply, so it redelivers the request. The reply itself need not be published again.
"""

import math
from collections.abc import Callable

from mqtool.amqp.publisher import Publisher
from mqtool.message import Message

#: Seconds to wait for the confirm of a reply that is published alone. An internal error would come at once.
_PATIENCE = 1.0


class Replies:
    """Publishes the replies of one channel.

    After an internal error, all queues whose replies were unconfirmed are suspects: mqtool waits for the confirm of the
    next reply to a suspect. If the connection is closed again, with no other reply unconfirmed, this queue is the
    cause, and the next reply to it is dropped.

    Args:
        send_acks: sends pending acknowledgements, and returns once they are written.
    """

    def __init__(self, publisher: Publisher, send_acks: Callable[[], None], notice: Callable[[str], None]) -> None:
        self._publisher = publisher
        self._send_acks = send_acks
        self._notice = notice
        self._suspects: set[str | None] = set()
        self._alone: str | None = None
        self._cause: str | None = None

    def publish(self, reply: Message, *, is_current: bool) -> None:
        """Publish a reply before the next acknowledgement; in the same write, unless its queue is a suspect.

        Args:
            is_current: its request can be acknowledged. Otherwise, the broker redelivers the request.
        """
        queue = reply.routing_key
        if queue not in self._suspects:
            self._publisher.add(reply)
        elif not is_current:
            return
        elif queue == self._cause:
            self._cause = None
            self._notice(f"dropped a reply to queue {queue!r}: publishing it makes the broker close the connection")
        else:
            self._send_acks()  # the broker does not process those that follow an internal error
            self._suspects.discard(queue)
            self._alone = queue
            self._publisher.add(reply, waits=False)
            self._publisher.unconfirmed.wait(1, math.inf, at_most=_PATIENCE)
            self._alone = None

    def drop(self) -> None:
        """Drop unconfirmed replies after an internal error. Called on the I/O thread."""
        queues = {reply.routing_key for reply in self._publisher.unconfirmed.messages}
        self._suspects |= queues
        if queues == {self._alone}:
            self._cause = self._alone
        self._publisher.unconfirmed.drop()  # last, since publish() goes on then
