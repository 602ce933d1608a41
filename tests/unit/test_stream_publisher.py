"""The stream publisher and the broker's confirms and errors, with plain callables in place of a broker."""

import queue as queues
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from mqtool.errors import NotFound
from mqtool.message import Message, Receipt
from mqtool.streams.rstream_private import CONFIRM, ERROR, METADATA_UPDATE
from mqtool.streams.session import Inbox
from mqtool.streams.stream_publisher import StreamPublisher


def confirm(*numbers: int) -> bytes:
    return struct.pack(f">HHBI{len(numbers)}Q", CONFIRM, 1, 0, len(numbers), *numbers)


def error(number: int) -> bytes:
    return struct.pack(">HHBIQH", ERROR, 1, 0, 1, number, 18)


DELETED = struct.pack(">HHHH", METADATA_UPDATE, 1, 6, 0)


class DeletedStream:
    """A channel to a broker on which a stream has been deleted: reopening the channel raises NotFound."""

    is_lost = False

    def __init__(self) -> None:
        self.inbox: Inbox = queues.SimpleQueue()
        self.client = self
        self.frame_max = 1 << 20

    def sessions_for(self, streams: Sequence[str], **_: bool) -> list[Any]:
        return [self for _ in streams]

    def declare_publisher(self, *_: object) -> None: ...

    def ask(self, *_: object) -> None: ...

    def send(self, _: bytes) -> None: ...

    def reopen(self, _: Callable[[], None]) -> bool:
        self.inbox = queues.SimpleQueue()
        raise NotFound("stream 's' does not exist")


@pytest.mark.parametrize(
    ("streams", "frames", "confirmed"),
    [
        (["s"], [confirm(1, 2), DELETED], ["1", "2"]),
        (["s-0", "s-1"], [confirm(2, 4), DELETED], ["2", "4"]),
        (["s-0", "s-1"], [DELETED, error(1), confirm(2)], ["2"]),
    ],
    ids=["stream", "super stream", "confirm after the deletion"],
)
def test_confirmed_messages_are_reported_before_the_error_if_a_stream_is_deleted(
    streams: list[str], frames: list[bytes], confirmed: list[str]
) -> None:
    """If a stream or a partition of a super stream is deleted while messages are unconfirmed, the publisher first
    reports each message that has been confirmed, and then raises NotFound. The other messages still count as
    unconfirmed.
    """
    channel, received = DeletedStream(), list[Receipt]()
    publisher = StreamPublisher(cast(Any, channel), streams, 60.0, lambda message: message.body, None)
    for frame in frames:
        channel.inbox.put(frame)
    with pytest.raises(NotFound):
        received.extend(publisher.publish(Message(str(number).encode()) for number in range(1, 5)))
    assert [receipt.message.body.decode() for receipt in received if receipt.confirmation == "confirmed"] == confirmed
    unconfirmed = [message.body.decode() for message in publisher.unconfirmed]
    assert unconfirmed == [body for body in ("1", "2", "3", "4") if body not in confirmed]
