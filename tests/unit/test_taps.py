"""Taps: the buffer for a slow reader, and exchanges that cannot be tapped."""

import queue as queues
from dataclasses import replace
from typing import Any

import pytest

from mqtool.amqp.subscription import Buffer
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.taps import FIREHOSE_EXCHANGE, firehose_copies, original_of, switch_firehose, to_exchange


def batch(*bodies: str) -> list[Delivery]:
    return [Delivery(body.encode(), "", "", "", False, {}, 0) for body in bodies]


def test_a_tap_with_a_slow_reader_drops_the_oldest_messages_and_counts_them() -> None:
    """`mqtool tap` receives copies of messages in batches, and buffers them for the program that reads its output. If
    the buffer is full because this reader is slow, `mqtool tap` drops the oldest batches, and counts the messages in
    them. The latest batch is kept whole, even if it is larger than the buffer.
    """
    buffer = Buffer(3)
    buffer.put(batch("1", "2"))
    assert buffer.get_nowait() == batch("1", "2")
    for bodies in (["3", "4"], ["5", "6"], ["7"]):
        buffer.put(batch(*bodies))
    assert buffer.dropped == 2
    assert buffer.get_nowait() == batch("5", "6")
    buffer.put(batch("8", "9", "10", "11"))
    assert buffer.dropped == 3
    assert buffer.get_nowait() == batch("8", "9", "10", "11")
    assert buffer.empty()


def test_a_full_tap_buffer_keeps_the_latest_batch_and_a_wake_up() -> None:
    """A tap's buffer contains batches of messages and wake-ups. A wake-up tells the reader, for example, that the
    connection was lost. If the latest batch does not fit into the buffer, the tap drops older batches, but keeps
    wake-ups and the latest batch.
    """
    buffer = Buffer(1)
    buffer.put(batch("1"))
    buffer.put(None)
    buffer.put(batch("2", "3"))
    assert buffer.dropped == 1
    assert [buffer.get_nowait(), buffer.get_nowait()] == [None, batch("2", "3")]
    assert buffer.empty()


def test_a_tap_buffer_drops_messages_only_above_its_limit() -> None:
    """A tap's buffer drops a message only if it would otherwise contain more messages than its limit. Messages that the
    reader has already taken from the buffer do not count towards the limit.
    """
    buffer = Buffer(2)
    for number in ("1", "2"):
        buffer.put(batch(number))
        assert buffer.get(timeout=20) == batch(number)
    for number in ("3", "4", "5"):
        buffer.put(batch(number))
    assert buffer.dropped == 1
    assert [buffer.get_nowait(), buffer.get_nowait()] == [batch("4"), batch("5")]
    with pytest.raises(queues.Empty):
        buffer.get(timeout=0.001)


def test_a_tap_buffer_drops_messages_above_128_mib() -> None:
    """If the bodies of the messages in a tap's buffer are larger than 128 MiB in total, the tap drops the oldest
    messages, even if the buffer has not reached its limit of messages.
    """
    buffer, half = Buffer(100), replace(batch("")[0], body=bytes(64 << 20))
    buffer.put([half])
    assert buffer.get_nowait() == [half]
    for added, dropped in ([half], 0), (batch("x"), 0), ([half], 1), ([half], 2), ([half], 3):
        buffer.put(added)
        assert buffer.dropped == dropped
    assert [buffer.get_nowait(), buffer.get_nowait()] == [[half], [half]]
    buffer.put([half])
    buffer.put([half])
    assert buffer.dropped == 3


def test_a_consistent_hash_exchange_cannot_be_tapped() -> None:
    """`tap` raises UsageError for a consistent-hash exchange, because the exchange would route some messages to the
    tap's queue instead of another queue.
    """

    class Api:
        def get(self, _path: str) -> dict[str, Any]:
            return {"type": "x-consistent-hash", "arguments": {}}

    with pytest.raises(UsageError, match="a tap would take some"):
        to_exchange(Api, "/", "shards", ["1"], {})  # type: ignore[arg-type]


def test_one_notice_reports_firehose_copies_with_invalid_headers() -> None:
    """A tap of the firehose skips copies whose headers, which describe the original message, are missing or have wrong
    types. It prints one notice about them, and yields the other copies.
    """
    told = {"exchange_name": "x", "routing_keys": ["k"], "properties": {"headers": {}}}
    wrong: list[dict[str, Any]] = [{}, *({**told, name: 5} for name in told), {**told, "properties": {"headers": 7}}]
    copy = replace(batch("")[0], exchange=FIREHOSE_EXCHANGE)
    copies = [replace(copy, properties={"headers": each}) for each in [*wrong, told]]
    said: list[str] = []
    assert [*firehose_copies(copies, said.append)] == copies[-1:]
    assert len(said) == 1


def test_copies_that_did_not_come_straight_from_the_firehose_are_skipped() -> None:
    """A tap of the firehose skips messages that another exchange has routed to the tap's queue, and messages that a
    queue has dead-lettered to the firehose's exchange. Anyone may have sent them, even if their headers look like those
    of the firehose's copies. One notice says that someone sent them to the tap's queue.
    """
    told = {"exchange_name": "x", "routing_keys": ["k"], "properties": {}}
    copy = replace(batch("")[0], exchange=FIREHOSE_EXCHANGE, properties={"headers": told})
    forged = [replace(copy, exchange=""), replace(copy, properties={"headers": {**told, "x-death": []}})]
    said: list[str] = []
    assert [*firehose_copies([*forged, copy, *forged], said.append)] == [copy]
    assert said == [
        "ignoring messages that are not copies of the firehose: someone sent them to mqtool's private queue"
    ]


@pytest.mark.parametrize(
    ("copy_key", "told", "queue", "redelivered"),
    [
        ("publish.x", {}, "", False),
        ("deliver.jobs", {"redelivered": 0}, "jobs", False),
        ("deliver.deliver.jobs", {"redelivered": 1}, "deliver.jobs", True),
    ],
)
def test_a_tap_shows_a_copy_of_the_firehose_as_the_original_message(
    copy_key: str, told: dict[str, Any], queue: str, *, redelivered: bool
) -> None:
    """The firehose publishes a copy of each message. A tap shows the copy as the original message, with its body,
    exchange, first routing key and properties. For a delivery, it also shows the queue, and whether the message was
    redelivered. RabbitMQ writes a timestamp after 2038 as a negative number, which the tap corrects.
    """
    properties = {"timestamp": -1, "type": "t", "headers": {"a": 1}}
    headers = {"exchange_name": "x", "routing_keys": ["k", "cc"], "properties": properties, **told}
    copy = Delivery(b"body", FIREHOSE_EXCHANGE, copy_key, "mqtool.tap", False, {"headers": headers}, 7, 3)
    original = {"timestamp": (1 << 32) - 1, "type": "t", "headers": {"a": 1}}
    assert original_of(copy) == Delivery(b"body", "x", "k", queue, redelivered, original, 7, 3)


def test_a_virtual_host_without_a_default_queue_type_does_not_get_the_type_undefined() -> None:
    """To switch the firehose on, a tap sends the settings of the virtual host back to RabbitMQ. Some versions of
    RabbitMQ report the default queue type `undefined` for a virtual host that has none. The tap does not send
    `undefined` back.
    """
    sent: list[Any] = []

    class Api:
        @staticmethod
        def get(*_: object, **__: object) -> object:
            return {"metadata": {"description": "d", "default_queue_type": "undefined"}, "tracing": True}

        @staticmethod
        def put(_: str, body: object) -> None:
            sent.append(body)

    switch_firehose(Api, "/", on=True)  # type: ignore[arg-type]
    assert sent == [{"description": "d", "tracing": True}]
