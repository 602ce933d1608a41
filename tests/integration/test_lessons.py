"""The functions of the tutorials: what programs that import them can rely on, beyond what the commands use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mqtool.amqp import Connection, Receiving, unconfirmed
from mqtool.delays.delay_plugin import has_plugin
from mqtool.errors import TimedOut, Unavailable
from mqtool.message import Confirmation, Delivery, Message
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials import delayed_messages, publisher_confirms, rpc
from mqtool.tutorials.dialects import DELAY_EXCHANGE
from mqtool.work.rpc_functions import in_order

QUEUE = Queue("lessons", durable=True)


def test_the_tutorials_delayed_exchange_delivers_in_the_order_of_the_delays(connection: Connection) -> None:
    """Messages to the x-delayed-message exchange of the tutorial on delayed messages arrive in the order of their
    delays. A message without a delay arrives first.
    """
    channel = connection.channel()
    if not has_plugin(channel, DELAY_EXCHANGE):
        pytest.skip("this broker has no delayed message plugin")
    messages = [Message(b"late", delay=2), Message(b"soon", delay=0.2), Message(b"now"), None]
    deliveries = delayed_messages.receive(
        connection.channel(), DELAY_EXCHANGE, "key", QUEUE, Receiving(count=3, timeout=30)
    )
    sent = list(delayed_messages.send(channel, DELAY_EXCHANGE, "key", messages))
    assert [receipt.confirmation for receipt in sent] == [Confirmation.CONFIRMED] * 3
    assert [delivery.body for delivery in deliveries] == [b"now", b"soon", b"late"]


def test_send_by_dead_lettering_delays_messages_without_the_plugin(connection: Connection) -> None:
    """The function send_by_dead_lettering(), from the tutorial on delayed messages, delays messages without the
    delayed message plugin. A message with a shorter delay arrives before one with a longer delay that was published
    first.
    """
    channel = connection.channel()
    queue = channel.declare(QUEUE)
    for body, delay in ((b"late", 6), (b"soon", 0.2)):  # on a busy machine, declaring a queue takes seconds
        list(delayed_messages.send_by_dead_lettering(channel, queue, [Message(body)], delay))
    deliveries = channel.consume(queue, Receiving(count=2, timeout=30))
    assert [delivery.body for delivery in deliveries] == [b"soon", b"late"]


def test_the_tutorials_asynchronous_publisher_collects_the_nacked_messages(connection: Connection) -> None:
    """For each message, the function asynchronously(), from the tutorial on publisher confirms, yields a receipt that
    contains the message's number, counted from 1, and whether the broker has confirmed or nacked the message. The
    function also appends each nacked message to the list that the caller passes. In this test, the broker nacks
    messages because the queue is full.
    """
    channel = connection.channel()
    full = channel.declare(Queue(exclusive=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"}))
    refused: list[Message] = []
    messages = [Message(str(number).encode()) for number in range(8)]
    receipts = list(publisher_confirms.asynchronously(channel, full, messages, refused))
    assert [receipt.sequence for receipt in receipts] == list(range(1, 9))
    assert len(refused) == sum(receipt.confirmation is Confirmation.NACKED for receipt in receipts) > 0
    assert refused == messages[-len(refused) :]


@pytest.mark.parametrize("reply_queue", [PRIVATE_QUEUE, rpc.DIRECT_REPLY_TO], ids=["queue", "direct"])
def test_replies_are_matched_to_their_requests(connection: Connection, reply_queue: Queue) -> None:
    """The RPC tutorial's client yields replies as they arrive, each with the number of its request. It ignores a reply
    with an unknown correlation ID. The function in_order() sorts the replies by request.
    """
    channel = connection.channel()
    queue = channel.declare(Queue("requests", durable=True))
    with ThreadPoolExecutor() as pool, connection.beside() as beside:
        client = beside.channel()
        replies = pool.submit(
            lambda: list(rpc.call(client, queue, [Message(b"a"), Message(b"b")], Receiving(timeout=30), reply_queue))
        )
        requests = list(channel.consume(queue, Receiving(count=2, timeout=30)))
        stranger = Message(b"?", requests[0].properties["reply_to"], "", {"correlation_id": "unknown"})
        answers = [
            Message(
                each.body.upper(),
                each.properties["reply_to"],
                "",
                {"correlation_id": each.properties["correlation_id"]},
            )
            for each in reversed(requests)
        ]
        list(channel.publish([stranger, *answers]))
        came = replies.result(30)
        assert [(number, reply.body) for number, reply in came] == [(1, b"B"), (0, b"A")]
        assert [reply.body for reply in in_order(came, channel, queue, 2)] == [b"A", b"B"]


def test_a_reply_larger_than_the_limit_of_unconfirmed_bytes_is_sent(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An RPC server limits the number of unconfirmed bytes of its replies. A reply that is larger than this limit is
    still sent, and so is another such reply after it.
    """
    monkeypatch.setattr(unconfirmed, "WINDOW_BYTES", 10)
    queue = connection.channel().declare(Queue("requests", durable=True))
    with ThreadPoolExecutor() as pool, connection.beside() as beside:
        client = beside.channel()
        replies = pool.submit(
            lambda: list(rpc.call(client, queue, [Message(b"a"), Message(b"b")], Receiving(timeout=30)))
        )
        server = rpc.serve(
            connection.channel(confirm_timeout=5), queue, lambda _: Message(b"x" * 100), Receiving(count=2)
        )
        assert len(list(server)) == 2
        assert [reply.body for _, reply in replies.result(30)] == [b"x" * 100] * 2


def test_an_rpc_server_acknowledges_each_request_once_if_some_need_no_reply(connection: Connection) -> None:
    """If some of the requests in a queue have no reply_to, the RPC server replies only to those that have one, and
    acknowledges every request exactly once. (Acknowledging a request twice would close the channel.)
    """
    client, server = connection.channel(), connection.channel()
    queue, replies = client.declare(QUEUE), client.declare(PRIVATE_QUEUE)
    properties = ({"reply_to": replies.name}, {})
    list(client.publish([Message(b"", QUEUE.name, "", properties[number % 2]) for number in range(40)]))

    served = rpc.serve(server, queue, lambda _: Message(b""), Receiving(prefetch=40, count=40, timeout=60))

    assert len([*served]) == 40
    assert (client.depth_of(QUEUE.name), client.depth_of(replies.name)) == (0, 20)


def test_the_error_about_missing_replies_says_that_no_server_consumes(connection: Connection) -> None:
    """If an RPC client gets no reply, and the queue has no consumer, the error says that no server consumes
    from the queue. Otherwise, the error says how many replies are missing.
    """

    def no_replies() -> Iterator[tuple[int, Delivery]]:
        raise TimedOut("no message within 1 s")
        yield

    channel = connection.channel()
    queue = channel.declare(Queue("requests", durable=True))
    with pytest.raises(Unavailable, match="no RPC server consumes from queue 'requests'"):
        list(in_order(no_replies(), channel, queue, 2))
    server = connection.channel().consume(queue)
    with pytest.raises(TimedOut, match="2 of 2 replies did not come"):
        list(in_order(no_replies(), channel, queue, 2))
    server.close()
