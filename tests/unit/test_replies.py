"""Replies of an RPC server, with plain callables in place of a broker."""

from mqtool.amqp.replies import Replies
from mqtool.message import Message
from tests.unit.test_publisher import ROUTE, Wire


class Server:
    """An RPC server whose broker closes the connection once replies to `hostile` are written."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.unconfirmed = self.wire.publisher
        self.closes = False
        self.notices: list[str] = []
        self.replies = Replies(self, lambda: None, self.notices.append)  # type: ignore[arg-type]

    def add(self, message: Message, *, waits: bool = True) -> None:
        self.unconfirmed.add([message], ROUTE)
        if not waits and self.closes and message.routing_key == "hostile":
            self.close()

    def close(self) -> None:
        self.replies.drop()
        self.wire.open(connection_is_new=True)

    def reply(self, queue: str, *, is_current: bool = True) -> None:
        self.replies.publish(Message(queue.encode(), queue), is_current=is_current)


def test_replies_that_the_broker_may_have_closed_the_connection_for_are_not_published_again() -> None:
    """After an internal error of the broker, an RPC server publishes no unconfirmed reply again: the broker redelivers
    the requests.
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
    """An RPC server drops a reply only if the broker has closed the connection when it was the only unconfirmed one."""
    server = Server()
    server.reply("theirs")
    server.reply("hostile")
    server.close()
    server.closes = True
    server.reply("hostile")
    assert server.notices == []
    server.reply("hostile")
    assert server.notices == ["dropped a reply to queue 'hostile': publishing it makes the broker close the connection"]
    server.reply("theirs")
    assert server.wire.sent == [b"theirs"]
