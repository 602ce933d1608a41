"""RPC, over AMQP 1.0: a request goes over one link, and its reply over another.

    rpc-client ── reply-to, correlation-id: 42 ──> [rpc_queue] ──> rpc-server
        ^                                                              │
        └──────────────────────── correlation-id: 42 ──────────────────┘

The client has its own queue for replies, and puts the queue's address into each request. A reply's correlation-id is
that of its request or, if the request has none, its message-id. The server has one link for all replies, without an
address: each reply contains one. Direct replies need no queue: the client gets an address with each new link.

https://www.rabbitmq.com/tutorials/tutorial-six-go-amqp10
"""

from collections.abc import Callable, Iterable, Iterator

from mqtool.amqp import Receiving
from mqtool.amqp10 import LinkSession, queue_address
from mqtool.errors import NotFound, Unavailable
from mqtool.message import Delivery, Message, expiring, new_message_id
from mqtool.spelling import starting_a_server
from mqtool.topology import PRIVATE_QUEUE, Queue

ONE_AT_A_TIME = Receiving(prefetch=1)  # other servers get the rest


def serve(
    session: LinkSession, queue: Queue, function: Callable[[Delivery], Message], receiving: Receiving = ONE_AT_A_TIME
) -> Iterator[tuple[Delivery, Message]]:
    """Reply to requests; yield each request with its reply."""
    queue = session.declare(queue)
    return _answered(session, session.receiver(queue_address(queue.name), receiving).deliveries(), function)


def _answered(
    session: LinkSession, requests: Iterable[Delivery], function: Callable[[Delivery], Message]
) -> Iterator[tuple[Delivery, Message]]:
    for request in requests:
        answer, asked = function(request), request.properties
        properties = {"correlation_id": asked.get("correlation_id") or request.message_id, **answer.properties}
        reply = Message(answer.body, asked.get("reply_to"), "", properties, new_message_id())
        if reply.routing_key:
            session.answer(request, reply)  # the reply first, then the acceptance
        yield request, reply
    session.wait_for_confirms()


def call(
    session: LinkSession, queue: Queue, requests: list[Message], receiving: Receiving, replies: Queue = PRIVATE_QUEUE
) -> Iterator[tuple[int, Delivery]]:
    """Send all requests; yield each reply with the index of its request. DIRECT_REPLY_TO gets them without a queue."""
    address = None if replies.name else queue_address(session.declare(replies).name)
    waiting = {new_message_id(): number for number, _ in enumerate(requests)}

    def send(to: str) -> None:
        own = {"reply_to": to, **expiring(receiving.timeout)}  # nobody waits for later replies
        named = {i: {**requests[n].properties, **own, "correlation_id": i} for i, n in waiting.items()}
        asked = (Message(requests[n].body, None, None, named[i], i) for i, n in waiting.items())
        try:
            list(session.sender(queue_address(queue.name)).send(asked))
        except NotFound as error:
            hint = f"start one: {starting_a_server(queue.name)}"
            raise Unavailable(f"no RPC server: queue {queue.name!r} does not exist", hint) from error

    receiver = session.receiver(address, receiving._replace(auto_ack=True, after_reopening=send))
    send(receiver.address or "")
    for reply in receiver.deliveries():
        if (number := waiting.pop(str(reply.properties.get("correlation_id")), None)) is not None:
            yield number, reply
        if not waiting:
            return
