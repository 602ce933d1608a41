"""RPC: a request over one queue, its reply over another.

    rpc-client ─── reply_to, correlation_id=42 ───> [rpc_queue] ──> rpc-server
        ^                                                               │
        └─── [amq.gen-1] <── correlation_id=42 ─────────────────────────┘

The client has a queue of its own for replies and tells each request its name. Replies may come in any order, so each
carries the correlation id of its request; one with an unknown id is not ours, and is ignored. The server acknowledges a
request after it has replied: if it dies before, another server answers, and the client may see two replies.

https://www.rabbitmq.com/tutorials/tutorial-six-python
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from mqtool.amqp import Channel, Receiving
from mqtool.errors import BadData, TimedOut, Unavailable
from mqtool.message import Confirmation, Delivery, Message, Outcome, new_message_id
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials.work_queues import FAIR_DISPATCH

#: The type property of a reply that says why there is no result.
ERROR = "error"
#: RabbitMQ's pseudo-queue for replies without a queue. https://www.rabbitmq.com/docs/direct-reply-to
DIRECT_REPLY_TO = Queue("amq.rabbitmq.reply-to")

Function = Callable[[Delivery], bytes | Message]


def serve(
    channel: Channel, queue: Queue, function: Function, receiving: Receiving = FAIR_DISPATCH
) -> Iterator[tuple[Delivery, Message]]:
    """Answer requests one at a time; yield each with the reply once that is confirmed.

    Args:
        function: gives the reply's body, or a message with that and properties; BadData is replied as an error.

    Raises:
        Unavailable: the queue has vanished.
    """
    queue = channel.declare(queue)
    requests = channel.consume(queue, receiving)

    def answer_each() -> Iterator[tuple[Delivery, Message]]:
        for request in requests:
            reply = _reply(request, function)
            if reply.routing_key:
                for _ in channel.publish([reply]):
                    pass
            channel.settle(request, Outcome.ACK)
            yield request, reply

    return answer_each()


def _reply(request: Delivery, function: Function) -> Message:
    properties = {"correlation_id": request.properties.get("correlation_id")}
    try:
        answer = function(request)
        body = answer.body if isinstance(answer, Message) else answer
        properties |= answer.properties if isinstance(answer, Message) else {}
    except BadData as error:
        body = str(error).encode()
        properties["type"] = ERROR
    return Message(body, request.properties.get("reply_to") or "", "", properties, new_message_id())


def call(
    channel: Channel, queue: Queue, requests: Iterable[bytes], timeout: float, direct_reply_to: bool = False
) -> Iterator[tuple[bytes, Delivery]]:
    """Send all requests at once; yield each with its reply, in the order of the requests.

    Args:
        timeout: seconds for all the replies together.
        direct_reply_to: use RabbitMQ's pseudo-queue for the replies.

    Raises:
        Unavailable: there is no queue for requests, or nobody consumes from it.
        TimedOut: a server is there, but not all replies came in time.
    """
    reply_queue = DIRECT_REPLY_TO if direct_reply_to else channel.declare(PRIVATE_QUEUE)
    replies = channel.consume(reply_queue, Receiving(auto_ack=direct_reply_to, timeout=timeout))
    waiting = {new_message_id(): request for request in requests}
    messages = [
        Message(
            request, queue.name, "", {"reply_to": reply_queue.name, "correlation_id": correlation_id}, new_message_id()
        )
        for correlation_id, request in waiting.items()
    ]
    for receipt in channel.publish(messages, mandatory=True):
        if receipt.confirmation is not Confirmation.CONFIRMED:
            raise Unavailable(f"no RPC server: there is no queue {queue.name!r}", _start_a_server(queue))
    answered: dict[str, Delivery] = {}
    try:
        for reply in replies:
            correlation_id = reply.properties.get("correlation_id")
            if correlation_id in waiting:
                answered.setdefault(correlation_id, reply)
            for earliest in list(waiting):
                if earliest not in answered:
                    break
                yield waiting.pop(earliest), answered.pop(earliest)
            if not waiting:
                return
    except TimedOut as error:
        missing = len(waiting) - len(answered)
        if not channel.consumers_of(queue):
            raise Unavailable(f"no RPC server consumes from queue {queue.name!r}", _start_a_server(queue)) from error
        raise TimedOut(
            f"{missing} of the replies did not come within {timeout:g} s", "--timeout waits longer"
        ) from error


def _start_a_server(queue: Queue) -> str:
    return f"start one with 'mqtool rpc-server{'' if queue.name == 'rpc_queue' else f' -q {queue.name}'}'"


def _integer(body: bytes) -> int:
    try:
        return int(body)
    except ValueError as error:
        shown = body[:40].decode("utf-8", "backslashreplace")
        raise BadData(f"the request {shown!r} is not an integer") from error


_fibonacci = [0, 1]
#: Fibonacci numbers grow by a digit every five: beyond this they would be more digits than anybody reads.
_FIB_MAX = 20_000


def fib(request: bytes) -> bytes:
    """The n-th Fibonacci number, each computed only once.

    Raises:
        BadData: the request is not an integer from 0 to 20,000.
    """
    n = _integer(request)
    if not 0 <= n <= _FIB_MAX:
        raise BadData(f"fib({n}): n must be from 0 to {_FIB_MAX}")
    while len(_fibonacci) <= n:
        _fibonacci.append(_fibonacci[-1] + _fibonacci[-2])
    return str(_fibonacci[n]).encode()


def add100(request: bytes) -> bytes:
    """n + 100, after two seconds of hard thinking.

    Raises:
        BadData: the request is not an integer.
    """
    n = _integer(request)
    time.sleep(2)
    return str(n + 100).encode()


FUNCTIONS: Mapping[str, Callable[[bytes], bytes]] = {"fib": fib, "add100": add100}
