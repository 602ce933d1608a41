"""Publishing with confirms on a channel."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

from pika import exceptions, frame, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_private
from mqtool.amqp.basic_frames import PublishEncoder
from mqtool.amqp.reopening import ChannelConnection, ChannelListener, ReopeningChannel
from mqtool.amqp.unconfirmed import WINDOW, Publisher, Route
from mqtool.errors import MqtoolError
from mqtool.message import InLots, Message, Receipt

#: Messages of a list that go on together: for the broker to be busy with some while the next ones are encoded.
_AT_ONCE = 256


class Publishing(ChannelListener):
    """Puts a channel into confirm mode, and publishes on it.

    Attributes:
        publisher: has what is not confirmed.
        route: of the latest publish().
    """

    def __init__(self, channel: ReopeningChannel, connection: ChannelConnection, confirm_timeout: float) -> None:
        self.publisher = Publisher(
            connection.io.run, connection.io.run_later, channel.open_another, lambda: connection.hopeless
        )
        self.route = Route()
        self._channel = channel
        self._connection = connection
        self._confirm_timeout = confirm_timeout
        self._confirming: PikaChannel | None = None

    def publish(self, messages: Iterable[Message | None], route: Route, window: int) -> Generator[Receipt]:
        """Publish messages; yield their receipts, as Channel.publish() does."""
        self.route = route
        self._start()
        try:
            yield from self._publish(_lots(messages, window), route, window)
        except MqtoolError:
            yield from self.publisher.collect()  # what was answered for before
            raise

    def add(self, message: Message) -> None:
        """Publish a message when the next acknowledgement is sent, as Channel.answer() does."""
        self._start()
        self.publisher.collect()
        if self.publisher.is_full(WINDOW):  # of those that have left
            self.publisher.wait(WINDOW // 2, self._confirm_timeout)
        self.publisher.add([message], Route(), waits=True)

    def _start(self) -> None:
        if self._confirming is None:
            self._channel.listen(self)
            self._channel.retrying(lambda: self._confirm(connection_is_new=False))

    def _publish(self, source: Iterator[list[Message]], route: Route, window: int) -> Generator[Receipt]:
        publisher, bad_input, sequence = self.publisher, None, 1
        while True:
            try:
                if (lot := next(source, None)) is None:
                    break
                count = self._add(lot, route, sequence)
                sequence += count
            except MqtoolError as error:
                bad_input = error  # what was read before it is still to be confirmed
                break
            if not count:
                publisher.wait(1, self._confirm_timeout, at_most=0.05)
            elif publisher.is_full(window):
                publisher.wait(max(1, window // 2), self._confirm_timeout)
            if publisher.has_answers:
                yield from publisher.collect()
        while publisher.is_waiting:
            publisher.wait(1, self._confirm_timeout, at_most=0.25)
            yield from publisher.collect()
        if bad_input:
            raise bad_input

    def _add(self, lot: list[Message], route: Route, sequence: int) -> int:
        """Publish a lot, and return how many messages it had. The one that cannot be encoded stays, with the rest."""
        count = len(lot)
        try:
            if lot:
                self.publisher.add(lot, route, sequence)
        except MqtoolError:
            while len(lot) > 1:
                self.publisher.add(lot[:1], route, sequence + count - len(lot))
                del lot[0]
            raise
        lot.clear()
        return count

    def send(self, acks: Iterable[tuple[int, bool]]) -> None:
        """Send what waits, and behind it acknowledgements, in one write. On the I/O thread."""
        pika = self._channel.requests.pika
        frames = pika_private.acknowledgements(pika, acks) if pika is not None and pika.is_open else []
        if pika is self._confirming:
            self.publisher.drain(frames)
            return
        self.publisher.drain()
        if pika is not None and frames:
            pika_private.write(pika.connection, frames)

    # The link's side.

    def opened(self, *, connection_is_new: bool) -> None:
        self._confirm(connection_is_new=connection_is_new)

    def paused(self) -> None:
        self.publisher.pause()

    def resumed(self) -> None:
        self.publisher.resume()

    def failed(self, failure: MqtoolError) -> None:
        self.publisher.fail(failure)

    def _confirm(self, *, connection_is_new: bool) -> None:
        """Put the channel into confirm mode, and publish again what the one before did not confirm."""
        pika = self._channel.requests.pika
        if pika is None:
            raise exceptions.ConnectionWrongStateError
        if pika is self._confirming:
            return

        def heard(answer: Callable[..., None], tag: int, *, multiple: bool) -> None:
            if self._channel.requests.pika is pika:  # else it was left, but may still have something to say
                self._channel.progress()
                answer(tag, multiple=multiple)

        on_ack, on_nack = (partial(heard, answer) for answer in (self.publisher.on_ack, self.publisher.on_nack))

        def on_answer(answer: frame.Method[spec.Basic.Ack | spec.Basic.Nack]) -> None:
            on = on_ack if isinstance(answer.method, spec.Basic.Ack) else on_nack
            on(answer.method.delivery_tag, multiple=answer.method.multiple)

        self._channel.checked(lambda pika, done: pika.confirm_delivery(on_answer, callback=done))
        pika.add_on_return_callback(self._on_return)
        encode = PublishEncoder(pika.channel_number, self._connection.frame_max).encode

        def write(frames: list[bytes]) -> None:
            if pika.is_open:
                pika_private.write(pika.connection, frames)

        restarted = threading.Event()

        def restart() -> None:
            pika.connection.cutter.confirmed[pika.channel_number] = on_ack
            self.publisher.restart(encode, write, connection_is_new=connection_is_new)
            restarted.set()

        self._connection.io.run(restart)
        restarted.wait()
        self._confirming = pika

    def _on_return(
        self, _channel: PikaChannel, method: spec.Basic.Return, properties: spec.BasicProperties, body: bytes
    ) -> None:
        reason = f"{method.reply_text} ({method.reply_code})"
        self.publisher.on_return(properties.message_id, method.routing_key, body, reason)


def _lots(messages: Iterable[Message | None], window: int) -> Iterator[list[Message]]:
    """Messages in lots, if they are at hand, and if the window is large enough for that."""
    if isinstance(messages, InLots) and window == WINDOW:
        return messages.lots()
    if isinstance(messages, list) and window == WINDOW:
        lots = (messages[start : start + _AT_ONCE] for start in range(0, len(messages), _AT_ONCE))
        return ([message for message in lot if message is not None] for lot in lots)
    return ([] if message is None else [message] for message in messages)
