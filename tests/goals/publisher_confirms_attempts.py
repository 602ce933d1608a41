"""Attempts at the goals of publisher-confirms."""

import contextlib

import pika

from tests.goals.attempts import Attempts, Plain, Wrong


def _mandatory(plain: Plain) -> None:
    channel = plain.channel()
    channel.confirm_delivery()
    try:
        channel.basic_publish("", "helo", b"Hello?", mandatory=True)
    except pika.exceptions.UnroutableError:
        return
    raise AssertionError("the message was not returned")


def _unconfirmed(plain: Plain) -> None:
    channel = plain.channel()
    channel.basic_publish("", "helo", b"Hello?", mandatory=True)
    channel.connection.process_data_events(0.2)


def _full(plain: Plain) -> None:
    plain.queue("full", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    plain.send("full", "x")


def _twice_unconfirmed(plain: Plain) -> None:
    channel = plain.channel()
    for body in (b"one", b"two"):
        channel.basic_publish("", "orders", body)
    channel.queue_declare("orders", passive=True)  # the broker has them now
    plain.receive("orders")
    channel.basic_publish("", "orders", b"two")
    channel.queue_declare("orders", passive=True)


def _twice(plain: Plain) -> None:
    channel = plain.channel()
    channel.confirm_delivery()
    channel.basic_publish("", "orders", b"one")
    with contextlib.suppress(pika.exceptions.NackError):
        channel.basic_publish("", "orders", b"two")
    plain.receive("orders")
    channel.basic_publish("", "orders", b"two")


ATTEMPTS = {
    "returned": Attempts(
        "mqtool send -e '' -r helo 'Hello?'",
        _mandatory,
        (
            Wrong("without publisher confirms", _unconfirmed),
            Wrong("A confirm does not mean", "mqtool send -e '' -r helo --no-mandatory 'Hello?'"),
            Wrong("reached the queue 'helo'", "mqtool send -q helo 'Hello?'"),
            Wrong("was refused by its queue", _full),
        ),
    ),
    "nacked": Attempts(
        "mqtool send -q orders one; mqtool send -q orders two; mqtool receive -q orders -c 1; mqtool send -q orders "
        "two",
        _twice,
        (
            Wrong("its publisher was not told", _twice_unconfirmed),
            Wrong("First receive the order in it", "mqtool send -q orders one; mqtool send -q orders two"),
            Wrong(
                "Publish it again",
                "mqtool send -q orders one; mqtool send -q orders two; mqtool receive -q orders -c 1",
            ),
            Wrong(
                "'orders' was purged: 'one' was deleted",
                "mqtool send -q orders one; mqtool send -q orders two; mqtool queue purge orders --yes;"
                "mqtool send -q orders two",
            ),
            Wrong("there was room", "mqtool send -q orders one"),
            Wrong("not to 'orders'", "mqtool send -q order one"),
        ),
    ),
}
