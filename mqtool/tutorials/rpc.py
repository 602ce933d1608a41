"""RPC: a request goes through one queue, and its reply through another.

    rpc-client ─── reply_to, correlation_id=42 ───> [rpc_queue] ──> rpc-server
        ^                                                               │
        └─── [amq.gen-1] <── correlation_id=42 ─────────────────────────┘

The client names its own queue for replies in each request. Replies may arrive in any order, so each one carries the
correlation id of its request. The server acknowledges a request after it has replied. If it dies before that, another
server replies. A client that loses its connection sends its requests again, with the name of its new queue.

https://www.rabbitmq.com/tutorials/tutorial-six-python
"""

from collections.abc import Callable, Iterable, Iterator

from mqtool.amqp import Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Confirmation, Delivery, Message, expiring, new_message_id
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials.refused_requests import refused_request

Function = Callable[[Delivery], Message]  # returns the reply to a request
ONE_AT_A_TIME = Receiving(prefetch=1)  # other servers get the rest
DIRECT_REPLY_TO = Queue("amq.rabbitmq.reply-to")  # https://www.rabbitmq.com/docs/direct-reply-to


def serve(
    channel: AmqpChannel, queue: Queue, function: Function, receiving: Receiving = ONE_AT_A_TIME
) -> Iterator[tuple[Delivery, Message]]:
    """Reply to requests; yield each request with its reply."""
    queue = channel.declare(queue)
    return _served(channel, channel.consume(queue, receiving), function)


def _served(channel: AmqpChannel, asked: Iterable[Delivery], function: Function) -> Iterator[tuple[Delivery, Message]]:
    for request in asked:
        answer = function(request)
        properties = {"correlation_id": request.properties.get("correlation_id"), **answer.properties}
        reply = Message(answer.body, request.properties.get("reply_to"), "", properties, new_message_id())
        if reply.routing_key:
            channel.answer(request, reply)  # the reply first, then the acknowledgement
        yield request, reply
    channel.wait_for_confirms()


def call(
    channel: AmqpChannel, queue: Queue, requests: list[Message], receiving: Receiving, reply_to: Queue = PRIVATE_QUEUE
) -> Iterator[tuple[int, Delivery]]:
    """Send all requests; yield each reply with the index of its request."""
    reply_to = reply_to if reply_to == DIRECT_REPLY_TO else channel.declare(reply_to)
    waiting = {new_message_id(): number for number, _ in enumerate(requests)}

    def send(to: str) -> None:
        own = {"reply_to": to, **expiring(receiving.timeout)}  # nobody waits for later replies
        named = {i: {**requests[n].properties, **own, "correlation_id": i} for i, n in waiting.items()}
        asked = [Message(requests[n].body, queue.name, "", named[i], i) for i, n in waiting.items()]
        for receipt in channel.publish(asked, mandatory=True):
            if receipt.confirmation is not Confirmation.CONFIRMED:
                raise refused_request(queue.name, receipt)

    # Nobody else can use the replies, so they need no acknowledgements.
    replies = channel.consume(reply_to, receiving._replace(auto_ack=True, after_reopening=send))
    send(reply_to.name)
    for reply in replies:
        number = waiting.pop(str(reply.properties.get("correlation_id")), None)
        if number is not None:
            yield number, reply
        if not waiting:
            return
