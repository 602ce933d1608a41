"""A requester cannot stop an RPC server with a reply queue for which the broker closes the connection (error 541)."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from mqtool.amqp import Backoff, Connection, Receiving, administration, parse_addresses
from mqtool.errors import NotConfirmed
from mqtool.message import Message
from mqtool.topology import Queue
from mqtool.tutorials import rpc
from tests.brokers import TestBroker
from tests.cli.shell import wait_until

#: Looks like a queue for direct replies. RabbitMQ 3.10 cannot decode it, and closes the connection with 541.
HOSTILE = "amq.rabbitmq.reply-to.x.y"


def closes_for_it(broker: TestBroker) -> bool:
    """True if a reply to HOSTILE makes the broker close the connection."""
    return broker.kind == "rabbitmq" and not broker.differs_since("4.1", "it drops the reply")


@pytest.mark.parametrize("prefetch", [1, 100])
def test_an_rpc_server_drops_replies_for_which_the_broker_closes_the_connection(
    broker: TestBroker, prefetch: int
) -> None:
    """RabbitMQ closes the connection with error 541 (INTERNAL_ERROR) when a reply is published to certain queue
    names. If the reply_to of a request is one of these names, the RPC server reconnects and tries again. If RabbitMQ
    closes the connection again, the server drops the replies to this name, reports each in a notice, and acknowledges
    the requests. Other clients still get all their replies.
    """
    bodies = [b"%d" % number for number in range(150)]
    notices: list[str] = []
    with (
        Connection(parse_addresses(broker.url)) as connection,
        Connection(parse_addresses(broker.url), backoff=Backoff(first=0.01), notice=notices.append) as of_server,
        ThreadPoolExecutor() as pool,
    ):
        channel, serving = connection.channel(), of_server.channel()
        queue = channel.declare(Queue("requests", durable=True))
        hostile = [Message(b"x", queue.name, properties={"reply_to": HOSTILE})] * 5
        assert [receipt.confirmation for receipt in channel.publish(hostile)] == ["confirmed"] * 5
        served = rpc.serve(serving, queue, lambda request: Message(request.body), Receiving(prefetch=prefetch))
        server = pool.submit(lambda: sum(1 for _ in served))
        try:
            replies = dict(rpc.call(channel, queue, [*map(Message, bodies)], Receiving(timeout=60)))
            wait_until(lambda: administration.depth(channel, queue.name).ready == 0, "no request left")
        finally:
            serving.stop()
        assert server.result(30) >= 155

    assert [replies[number].body for number in range(150)] == bodies
    times_closed = sum("INTERNAL_ERROR" in notice for notice in notices)
    is_closed = times_closed > 0
    assert is_closed == closes_for_it(broker)
    assert times_closed < 5
    dropped = f"dropped a reply to queue {HOSTILE!r}: publishing it makes the broker close the connection"
    assert notices.count(dropped) == (5 if is_closed else 0)
    with Connection(parse_addresses(broker.url)) as connection:
        assert administration.depth(connection.channel(), "requests").ready == 0


def test_an_rpc_server_fails_if_its_last_reply_makes_the_broker_close_the_connection(broker: TestBroker) -> None:
    """If an RPC server that is to stop after one request publishes a reply for which RabbitMQ closes the connection
    with error 541, the server raises NotConfirmed, and the request is requeued.
    """
    with (
        Connection(parse_addresses(broker.url)) as connection,
        Connection(parse_addresses(broker.url), backoff=Backoff(first=0.01)) as of_server,
    ):
        channel = connection.channel()
        queue = channel.declare(Queue("requests", durable=True))
        [*channel.publish([Message(b"x", queue.name, properties={"reply_to": HOSTILE})])]
        served = rpc.serve(of_server.channel(), queue, lambda request: Message(request.body), Receiving(count=1))
        is_closed = closes_for_it(broker)
        unconfirmed = pytest.raises(NotConfirmed, match="closed the connection with 1 message unconfirmed")
        with unconfirmed if is_closed else nullcontext():
            assert len([*served]) == 1
        wait_until(lambda: administration.depth(channel, queue.name).ready == is_closed, "the request is requeued")
