"""Attempts at the goals of the stream tutorials."""

import time

from tests.goals.attempts import Attempts, Plain, Wrong


def _stream(plain: Plain, name: str) -> str:
    return plain.queue(name, **{"x-queue-type": "stream"})


def _read(plain: Plain, stream: str, offset: object, count: int = 1) -> None:
    consumer = plain.consume(stream, prefetch=10, **{"x-stream-offset": offset})
    consumer.wait(count)
    consumer.ack()
    consumer.close()


def _twice(plain: Plain) -> None:
    stream = _stream(plain, "hello-python-stream")
    plain.send(stream, "hi")
    _read(plain, stream, "first")
    _read(plain, stream, "first")


def _from_the_next(plain: Plain) -> None:
    channel = plain.channel()
    channel.confirm_delivery()
    channel.basic_publish("", _stream(plain, "hello-python-stream"), b"hi")
    plain.consume("hello-python-stream", prefetch=10)


def _one_each(plain: Plain) -> None:
    stream = _stream(plain, "hello-python-stream")
    for number in range(2):
        plain.send(stream, str(number))
        _read(plain, stream, number)


def _resume(plain: Plain, *offsets: object, count: int = 1) -> None:
    stream = _stream(plain, "stream-offset-tracking-python")
    plain.send(stream, "a")
    plain.send(stream, "b")
    _read(plain, stream, offsets[0], 2)
    for body in ("c", "d"):
        plain.send(stream, body)
    time.sleep(0.3)
    _read(plain, stream, offsets[1], count)


_SEND = "mqtool send-stream -q stream-offset-tracking-python"
_RECEIVE = "mqtool receive-stream -q stream-offset-tracking-python -c 1"

READING = {
    "read-twice": Attempts(
        "mqtool send-stream hi; mqtool receive-stream -c 1; mqtool receive-stream -c 1",
        _twice,
        (
            Wrong("Now let another reader read it", "mqtool send-stream hi; mqtool receive-stream -c 1"),
            Wrong("Each message was read by only one reader", _one_each),
            Wrong(
                "is a classic queue, not a stream",
                "mqtool send -q hello-python-stream --queue-type classic hi; mqtool receive -q hello-python-stream "
                "-c 1",
            ),
            Wrong("which has no consumer", "mqtool send-stream hi"),
            Wrong("Begin at the offset 'first'", _from_the_next),
        ),
    )
}
TRACKING = {
    "resumed": Attempts(
        f"{_SEND} a; {_RECEIVE} --track me; {_SEND} b; pause; {_RECEIVE} --track me",
        lambda plain: _resume(plain, "first", 2),
        (
            Wrong("began with 'a' again", lambda plain: _resume(plain, "first", "first")),
            Wrong("did not continue where", lambda plain: _resume(plain, "first", 3)),
            Wrong("Stop the reader, send more messages", f"{_SEND} a; {_RECEIVE} --track me"),
            Wrong("not to 'stream-offset-tracking-python'", "mqtool send-stream hi"),
        ),
    )
}
