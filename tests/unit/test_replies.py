"""Replies of an RPC server, with plain callables in place of a broker."""

import time
from collections.abc import Callable, Iterator

import pytest
from pika.exceptions import ChannelClosedByBroker

from mqtool.amqp import replies
from mqtool.amqp.replies import Replies
from mqtool.errors import NotConfirmed
from mqtool.message import Message, Receipt
from tests.unit.test_publisher import ROUTE, Wire

DROPPED = "dropped a reply to queue 'hostile': publishing it makes the broker close the connection"


class Server:
    """An RPC server whose broker closes the connection once replies to `hostile` are written.

    Attributes:
        flushes: how often it has written its acknowledgements before a reply, instead of together with it.
    """

    def __init__(self) -> None:
        self.wire = Wire()
        self.unconfirmed = self.wire.publisher
        self.closes = False
        self.notices: list[str] = []
        self.flushes = 0
        self.on_flush: Callable[[], object] = lambda: None
        self.replies = Replies(self, self.flush, self.notices.append)  # type: ignore[arg-type]

    def flush(self) -> None:
        """Write the pending acknowledgements."""
        self.flushes += 1
        self.on_flush()

    def add(self, message: Message, *, mandatory: bool, waits: bool = True) -> None:  # noqa: ARG002
        self.unconfirmed.add([message], ROUTE)
        if not waits and self.closes and message.routing_key == "hostile":
            self.close()

    def receipts(self, *_: object) -> Iterator[Receipt]:
        yield from self.unconfirmed.collect()

    def close(self) -> bool:
        has_dropped = self.replies.drop()
        self.wire.open(connection_is_new=True)
        return has_dropped

    def reply(self, queue: str, *, is_current: bool = True) -> None:
        self.replies.publish(Message(queue.encode(), queue), is_current=is_current)


def test_replies_that_may_have_made_the_broker_close_the_connection_are_not_published_again() -> None:
    """If an RPC server's unconfirmed replies may have made the broker close the connection with an internal error, the
    server publishes none of them again. The broker redelivers their requests.
    """
    server = Server()
    for queue in ("theirs", "hostile", "theirs"):
        server.reply(queue)
    server.unconfirmed.on_ack(1, multiple=False)
    server.close()
    assert server.wire.sent == []
    assert server.unconfirmed.messages == []
    server.reply("hostile", is_current=False)
    assert server.wire.sent == []


def test_a_reply_is_dropped_only_if_no_other_reply_can_have_caused_the_internal_error() -> None:
    """If the broker has closed the connection with an internal error, an RPC server drops later replies to a queue,
    with a notice, only if a reply to this queue was the only unconfirmed one at that time. If replies to two queues
    were unconfirmed, the server drops later replies to neither.
    """
    server = Server()
    server.reply("theirs")
    server.reply("hostile")
    server.close()
    server.closes = True
    server.reply("hostile")
    assert server.notices == []
    for _ in range(2):
        server.reply("hostile")
    assert server.notices == [DROPPED] * 2
    server.reply("theirs")
    assert server.wire.sent == [b"theirs"]


def test_replies_to_a_queue_are_dropped_for_a_minute_after_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a reply to a queue has caused an internal error of the broker, an RPC server drops replies to this queue for a
    minute, even if a reply to another queue also causes an internal error during this time. After the minute, the
    server publishes a reply to this queue again.
    """
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    server = Server()
    server.closes = True
    server.reply("hostile")
    server.close()
    server.reply("hostile")
    server.reply("theirs")
    server.close()
    server.reply("hostile")
    assert (server.wire.sent, server.notices) == ([], [DROPPED])
    server.closes = False
    monkeypatch.setattr("time.monotonic", lambda: now + 60)
    monkeypatch.setattr(replies, "_PATIENCE", 0)
    server.reply("hostile")
    assert (server.wire.sent, server.notices) == ([b"hostile"], [DROPPED])


def test_the_first_reply_to_a_queue_after_an_internal_error_is_published_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a reply to a queue may have caused an internal error of the broker, an RPC server publishes the next reply to
    this queue alone: it first sends its pending acknowledgements, and then waits up to a second for the confirm of the
    reply. For later replies to the queue, it does neither.
    """
    monkeypatch.setattr(replies, "_PATIENCE", 0.05)
    server = Server()
    server.reply("theirs")
    server.close()
    began = time.monotonic()
    server.reply("theirs")
    assert time.monotonic() - began >= 0.05
    assert server.flushes == 1
    server.reply("theirs")
    assert server.flushes == 1
    assert server.wire.sent == [b"theirs"] * 2


def test_a_reply_is_published_even_if_the_connection_is_lost_just_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """If publishing to a reply queue has caused an internal error of the broker, an RPC server sends its pending
    acknowledgements before it publishes the next reply to this queue. If the connection is lost while it is sending
    them, the server publishes the reply on the next connection.
    """
    monkeypatch.setattr(replies, "_PATIENCE", 0)
    server = Server()
    server.reply("theirs")
    server.close()
    sent_before = list[list[bytes]]()

    def lose_connection() -> None:
        sent_before.append(server.wire.sent)
        server.close()

    server.on_flush = lose_connection
    server.reply("theirs")
    assert (sent_before, server.wire.sent) == ([[]], [b"theirs"])


def test_only_replies_that_are_still_unconfirmed_can_have_caused_an_internal_error() -> None:
    """If the broker closes the connection with an internal error, an RPC server assumes that one of its replies may
    have caused the error only if a reply was neither confirmed nor nacked.
    """
    server = Server()
    assert not server.close()
    server.reply("theirs")
    server.unconfirmed.on_ack(1, multiple=False)
    server.reply("leaderless")
    server.unconfirmed.on_nack(2, multiple=False)
    assert not server.close()
    server.reply("theirs")
    assert server.close()


def test_an_rpc_server_that_ends_after_an_internal_error_says_that_its_last_replies_were_dropped() -> None:
    """If the broker closes the connection with an internal error, the RPC server drops its unconfirmed replies and
    reconnects. If the server ends before it has answered a request on the new connection, it raises NotConfirmed. The
    error says how many replies were unconfirmed, and the hint says that the broker redelivers their requests. Once
    the server has answered a request on the new connection, it ends without an error.
    """
    server = Server()
    server.replies.check()
    server.reply("hostile")
    server.reply("theirs")
    server.close()
    server.reply("theirs", is_current=False)
    with pytest.raises(NotConfirmed) as failed:
        server.replies.check()
    assert str(failed.value) == "the broker closed the connection with 2 messages unconfirmed"
    assert failed.value.hint == "it redelivers the requests"
    server.reply("others")
    server.replies.check()


def test_after_a_reply_that_is_too_large_the_rpc_server_publishes_an_error_instead() -> None:
    """If the broker closes the channel because a reply is larger than the broker allows, the RPC server drops its
    unconfirmed replies, since the broker redelivers their requests. After that, the server publishes an error instead
    of a reply that is too large. With `--count N`, the redelivered requests whose replies were too large do not count
    towards N.
    """
    server = Server()
    assert not server.replies.learn_limit(ChannelClosedByBroker(404, "NOT_FOUND"))
    for queue in ("theirs", "theirs2"):
        server.reply(queue)
    assert server.replies.learn_limit(ChannelClosedByBroker(406, "message size 7 is larger than max size 6"))
    assert server.unconfirmed.messages == []
    assert (server.replies.take_redelivered(), server.replies.take_redelivered()) == (1, 0)
    server.wire.open(connection_is_new=False)
    for queue in ("theirs", "theirs2"):
        server.reply(queue)
    assert server.wire.sent == [b"theirs", b"the reply is 7 bytes long; the broker takes up to 6"]
