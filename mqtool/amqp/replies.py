"""Replies publishes replies, and finds the reply queue for which the broker closes the connection.

A requester chooses the queue for the reply. RabbitMQ before 4.1 closes the connection with 541 INTERNAL_ERROR if the
queue has a name such as "amq.rabbitmq.reply-to.x.y", and 3.10 also if it is a quorum queue that is being deleted. It
has then not processed the acknowledgement that follows the reply, so it redelivers the request. The reply itself need
not be published again.
"""

import math
import time
from collections.abc import Callable

from mqtool.amqp import pika_errors
from mqtool.amqp.publisher import Publisher
from mqtool.amqp.unconfirmed import WINDOW, Route
from mqtool.errors import NotConfirmed
from mqtool.message import DIRECT_REPLY_TO, LostReplies, Message, error_reply
from mqtool.spelling import counted

#: Seconds to wait for the confirm of a reply that is published alone. An internal error would come at once.
_PATIENCE = 1.0
#: Seconds for which replies to a queue are dropped. Each attempt to publish one may cost a reconnection.
_DROP_SECONDS = 60.0


class Replies:
    """Publishes the replies of one channel.

    After an internal error, all queues whose replies were unconfirmed are suspects: mqtool waits for the confirm of the
    next reply to a suspect. If the connection is closed again, with no other reply unconfirmed, this queue is the
    cause, and replies to it are dropped for a minute.

    Args:
        send_acks: sends pending acknowledgements, and returns once they are written.
    """

    def __init__(self, publisher: Publisher, send_acks: Callable[[], None], notice: Callable[[str], None]) -> None:
        self._publisher = publisher
        self._send_acks = send_acks
        self._notice = notice
        self._suspects: dict[str | None, float] = {}  # until when to drop replies; 0 publishes the next one alone
        self._alone: str | None = None
        self._largest = math.inf  # bytes of a body; the broker tells it only when it closes the channel
        self._too_large = 0
        publisher.unconfirmed.on_refused = LostReplies(notice).add

    def publish(self, reply: Message, *, is_current: bool) -> None:
        """Publish a reply before the next acknowledgement; in the same write, unless its queue is a suspect.

        Args:
            is_current: its request can be acknowledged. Otherwise, the broker redelivers the request.
        """
        queue = reply.routing_key
        if (size := len(reply.body)) > self._largest:
            why = f"the reply is {size:,} bytes long; the broker takes up to {self._largest:,}"
            self._notice(f"answered with an error: {why}")
            reply = error_reply(reply, why)
        if is_current:
            self._publisher.unconfirmed.dropped = 0  # the channel is open: the broker redelivers their requests
        until = self._suspects.get(queue)
        # RabbitMQ before 4.2 returns each mandatory message for a client that consumes direct replies, which gets it.
        mandatory = not (queue or "").startswith(DIRECT_REPLY_TO)
        if until is None:
            self._publisher.add(reply, mandatory=mandatory)
        elif not is_current:
            return
        elif time.monotonic() < until:
            self._notice(f"dropped a reply to queue {queue!r}: publishing it makes the broker close the connection")
        else:
            self._send_acks()  # the broker does not process those that follow an internal error
            self._suspects.pop(queue, None)
            self._alone = queue
            self._publisher.add(reply, mandatory=mandatory, waits=False)
            self._publisher.unconfirmed.wait(1, math.inf, at_most=_PATIENCE)
            self._alone = None

    def check(self) -> None:
        """Raise NotConfirmed if drop() has dropped replies, and no request has been answered since."""
        if dropped := self._publisher.unconfirmed.dropped:
            raise NotConfirmed(
                f"the broker closed the connection with {counted(dropped)} unconfirmed", "it redelivers the requests"
            )

    def learn_limit(self, error: BaseException) -> bool:
        """Drop unconfirmed replies if the broker has closed the channel because one was too large; return True if so.

        When the broker redelivers the request, its reply is an error. Called on the I/O thread, before the channel is
        told that it is lost.
        """
        if (limit := pika_errors.largest_message(error)) is None:
            return False
        self._largest = limit
        unconfirmed = self._publisher.unconfirmed
        # Before drop(), after which take_redelivered() may stop waiting.
        self._too_large += sum(len(reply.body) > limit for reply in unconfirmed.messages)
        unconfirmed.drop()
        return True

    def take_redelivered(self) -> int:
        """Wait for all confirms; return how many requests are redelivered because their replies were too large."""
        for _ in self._publisher.receipts([], Route(), WINDOW):
            pass
        count, self._too_large = self._too_large, 0
        return count

    def drop(self) -> bool:
        """Drop unconfirmed replies after an internal error. Return False if none can have caused it.

        Called on the I/O thread, before the channel is told that the connection is lost.
        """
        queues = {reply.routing_key for reply in self._publisher.unconfirmed.drop()}
        now = time.monotonic()
        causes = {queue: until for queue, until in self._suspects.copy().items() if until > now}
        if queues == {self._alone}:
            causes[self._alone] = now + _DROP_SECONDS
        self._suspects = dict.fromkeys(queues, 0.0) | causes
        return bool(queues)
