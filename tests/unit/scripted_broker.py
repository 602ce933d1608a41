"""A broker whose replies a test determines, at the other end of a real pika connection without a socket.

Everything runs on the caller's thread: a reply is received as soon as the method that asks for it is sent.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pika
from pika import frame, spec
from pika.adapters.select_connection import IOLoop

from mqtool.amqp import io_thread
from mqtool.amqp.channel import Channel
from mqtool.amqp.io_thread import Answer
from mqtool.amqp.pika_private import FastConnection
from mqtool.message import Message
from mqtool.silence import Silence

#: The methods that the broker answers, and the types of the answers.
_ANSWERS = {
    spec.Basic.Qos: spec.Basic.QosOk,
    spec.Channel.Close: spec.Channel.CloseOk,
    spec.Channel.Open: spec.Channel.OpenOk,
    spec.Exchange.Bind: spec.Exchange.BindOk,
    spec.Exchange.Declare: spec.Exchange.DeclareOk,
    spec.Queue.Bind: spec.Queue.BindOk,
}
_CAPABILITIES = {"basic.nack": True, "publisher_confirms": True, "consumer_cancel_notify": True}


class InlineIo:
    """Runs callbacks of the I/O thread immediately, one after another. Keeps those with a delay in `later`."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._running = threading.Lock()

    def run(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)
        while self._soon and self._running.acquire(blocking=False):
            try:
                while self._soon:
                    self._soon.popleft()()
            finally:
                self._running.release()

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))

    def has_given(self, answer: Answer[Any]) -> bool:
        return bool(io_thread.wait([answer], io_thread.CHECK_INTERVAL).done)

    def run_due(self) -> None:
        """Run the callbacks in `later` now."""
        due, self.later = self.later, []
        for _, callback in due:
            self.run(callback)


class _Transport:
    """The other end of pika's connection."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self.write = receive

    def get_write_buffer_size(self) -> int:
        return 0


class ScriptedBroker:
    """The broker, and the connection of a Channel.

    Attributes:
        methods: the methods received, but not basic.publish and basic.ack.
        published: the methods and the messages of basic.publish, in order.
        acks: the tag and the flag `multiple` of each basic.ack.
        acked_on: the channel number of each basic.ack.
        writes: the names of the methods in each write.
        refused: by type of method, the code and the text with which the broker closes the channel.
        silent: the types of methods that are not answered.
        before: by type of method, a function to call before it is answered.
        confirms: True if the broker confirms each message immediately.
        depth: the number of ready messages in each queue.
        shards: by declared name, the name in queue.declare-ok, if it is another one.
        got: what basic.get returns.
        notices: the notices to the user.
        largest_frame: the size of the largest frame received.
    """

    frame_max = 65_536
    comes_back = True
    cluster = "cluster"

    def __init__(self) -> None:
        self.has_progressed = self.lacks_a_node = self.must_stop = False
        self.hopeless: str | None = None
        self.silence = Silence()
        self.broker = self.broker_to_show = "RabbitMQ 4.0.5"
        self.methods: list[Any] = []
        self.published: list[tuple[spec.Basic.Publish, Message]] = []
        self.acks: list[tuple[int, bool]] = []
        self.acked_on: list[int] = []
        self.writes: list[list[str]] = []
        self.refused: dict[type, tuple[int, str]] = {}
        self.silent: set[type] = set()
        self.before: dict[type, Callable[[], None]] = {}
        self.confirms = True
        self.depth = 0
        self.shards: dict[str, str] = {}
        self.got: tuple[spec.Basic.GetOk, Message] | None = None
        self.notices: list[str] = []
        self.notice = self.notices.append
        self.io: Any = InlineIo()
        self._number = 0  # of the current channel
        self._tags: dict[int, int] = {}
        self._names = 0
        self.largest_frame = 0
        self._content: tuple[spec.Basic.Publish, spec.BasicProperties, bytes] | None = None
        self._size = 0  # of the body
        self._loop = IOLoop()
        self._pika = FastConnection(
            pika.ConnectionParameters(), custom_ioloop=self._loop, internal_connection_workflow=False
        )
        self._pika._proto_connection_made(_Transport(self._receive))
        for answer in (
            spec.Connection.Start(0, 9, {"capabilities": _CAPABILITIES}, b"PLAIN", b"en_US"),
            spec.Connection.Tune(2047, self.frame_max, 0),
            spec.Connection.OpenOk(),
        ):
            self.send(answer, 0)

    def channel(self, *, strict: bool = False, mandatory: bool = False, confirm_timeout: float = 5.0) -> Channel:
        """Open a channel."""
        owner: Any = self
        channel = Channel(owner, strict=strict, mandatory=mandatory, confirm_timeout=confirm_timeout)
        channel.reopening.open()
        return channel

    def open_pika_channel(self, on_open: Callable[[Any], None]) -> Any:
        return self._pika.channel(on_open_callback=on_open)

    def stop(self) -> None:
        self.must_stop = True

    def close(self) -> None:
        self._loop.close()

    # What the broker sends.

    def send(self, method: Any, number: int | None = None, content: Message | None = None) -> None:
        """Send a method on a channel; by default, on the channel that was opened last."""
        number = self._number if number is None else number
        frames: list[Any] = [frame.Method(number, method)]
        if content is not None:
            properties = spec.BasicProperties(**content.properties, message_id=content.message_id)
            frames += [frame.Header(number, len(content.body), properties), frame.Body(number, content.body)]
        data = b"".join(each.marshal() for each in frames)
        self.io.run(lambda: self._pika._on_data_available(data))

    def deliver(self, consumer_tag: str, tag: int, *messages: Message) -> None:
        """Deliver messages to a consumer, with delivery tags from `tag` on."""
        for number, message in enumerate(messages, tag):
            self.send(spec.Basic.Deliver(consumer_tag, number, False, "", "q"), content=message)

    # What the broker receives.

    def _receive(self, data: bytes) -> None:
        if data.startswith(b"AMQP"):
            return
        write: list[str] = []
        for each in _frames(bytes(data)):
            if isinstance(each, frame.Method):
                write.append(each.method.NAME)
            self._take(each)
        self.writes.append(write)

    def _take(self, received: Any) -> None:
        number = received.channel_number
        if isinstance(received, frame.Header) and self._content is not None:
            self._content, self._size = (self._content[0], received.properties, b""), received.body_size
            if not self._size:
                self._published(number)
        elif isinstance(received, frame.Body) and self._content is not None:
            method, properties, body = self._content
            self._content = method, properties, body + received.fragment
            self.largest_frame = max(self.largest_frame, len(received.fragment) + 8)
            if len(self._content[2]) == self._size:
                self._published(number)
        elif isinstance(received, frame.Method):
            method = received.method
            if isinstance(method, spec.Basic.Publish):
                self._content = method, spec.BasicProperties(), b""
            elif isinstance(method, spec.Basic.Ack):
                self.acks.append((method.delivery_tag, method.multiple))
                self.acked_on.append(number)
            elif number:
                self.methods.append(method)
                self.before.get(type(method), bool)()
                self._answer(method, number)

    def _published(self, number: int) -> None:
        assert self._content is not None
        method, properties, body = self._content
        given = {name: value for name, value in vars(properties).items() if value is not None and name != "message_id"}
        message = Message(body, method.routing_key, method.exchange, given, properties.message_id)
        self.published.append((method, message))
        self._tags[number] = self._tags.get(number, 0) + 1
        if self.confirms:
            self.send(spec.Basic.Ack(self._tags[number]), number)

    def _answer(self, method: Any, number: int) -> None:
        kind = type(method)
        if kind is spec.Channel.Open:
            self._number, self._tags[number] = number, 0
        if kind in self.silent or kind in (spec.Confirm.Select, spec.Channel.CloseOk):
            return
        if kind in self.refused:
            self.send(spec.Channel.Close(*self.refused[kind], *kind.INDEX.to_bytes(4, "big")[1::2]), number)
        elif kind is spec.Queue.Declare:
            self._names += not method.queue
            name = self.shards.get(method.queue, method.queue) or f"amq.gen-{self._names}"
            self.send(spec.Queue.DeclareOk(name, self.depth, 0), number)
        elif kind is spec.Basic.Consume:
            self.send(spec.Basic.ConsumeOk(method.consumer_tag), number)
        elif kind is spec.Basic.Cancel:
            self.send(spec.Basic.CancelOk(method.consumer_tag), number)
        elif kind is spec.Basic.Get:
            self.send(*((spec.Basic.GetEmpty(), number) if self.got is None else (self.got[0], number, self.got[1])))
        else:
            self.send(_ANSWERS[kind](), number)

    def of(self, kind: type) -> list[Any]:
        """Return the methods of a type that were received."""
        return [method for method in self.methods if isinstance(method, kind)]


def _frames(data: bytes) -> Iterator[Any]:
    while data:
        size, found = frame.decode_frame(data)
        yield found
        data = data[size:]


@contextlib.contextmanager
def scripted_broker() -> Iterator[ScriptedBroker]:
    """Run a broker until the end of the block."""
    broker = ScriptedBroker()
    try:
        yield broker
    finally:
        broker.close()
