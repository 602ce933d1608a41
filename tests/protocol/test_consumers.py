"""Consumers: prefetch, sharing of messages, priorities, and cancellation by the broker."""

from typing import Any

import pika
import pytest
from pamqp import body, commands, header
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.brokers import TestBroker
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient


class Recorder:
    """A consumer's callback that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, bytes]] = []

    def __call__(self, _channel: BlockingChannel, method: Any, _properties: BasicProperties, body: bytes) -> None:
        self.got.append((method, body))

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.got]


def publish(channel: BlockingChannel, count: int, queue: str = "q") -> None:
    for number in range(count):
        channel.basic_publish("", queue, str(number).encode())


def settled(channel: BlockingChannel) -> None:
    """Wait until the broker has handled everything sent, and its deliveries have arrived."""
    for _ in range(3):
        channel.queue_declare("q", passive=True)
        channel.connection.process_data_events(0.02)


def test_prefetch_limits_each_consumer(channel: BlockingChannel, take: Take) -> None:
    """A consumer with a prefetch of 2 gets two messages, and a third one after the consumer has acknowledged one
    message. The prefetch does not limit basic.get.
    """
    channel.queue_declare("q")
    publish(channel, 5)
    channel.basic_qos(prefetch_count=2)
    consumer = Recorder()
    channel.basic_consume("q", consumer)
    settled(channel)
    assert consumer.bodies == [b"0", b"1"]
    assert take.one("q", auto_ack=False)[2] == b"2"
    channel.basic_ack(consumer.got[0][0].delivery_tag)
    take.until(lambda: len(consumer.got) == 3)
    settled(channel)
    assert consumer.bodies == [b"0", b"1", b"3"]


@pytest.mark.differs_since("4.3", "prefetch of a whole channel is refused by default, and does nothing")
def test_up_to_rabbitmq_4_2_a_global_prefetch_limits_all_consumers_of_a_channel_together(
    channel: BlockingChannel, take: Take
) -> None:
    """Up to RabbitMQ 4.2, if a channel has a global prefetch of 3, all its consumers together have at most three
    unacknowledged messages.
    """
    for queue in ("q", "r"):
        channel.queue_declare(queue)
        publish(channel, 3, queue)
    channel.basic_qos(prefetch_count=3, global_qos=True)
    consumer = Recorder()
    channel.basic_consume("q", consumer)
    channel.basic_consume("r", consumer)
    settled(channel)
    assert len(consumer.got) == 3
    channel.basic_ack(consumer.got[1][0].delivery_tag, multiple=True)
    take.until(lambda: len(consumer.got) == 5)
    settled(channel)
    assert len(consumer.got) == 5


def test_prefetch_does_not_limit_automatic_acknowledgement(channel: BlockingChannel, take: Take) -> None:
    """A consumer with automatic acknowledgement gets all messages, whatever its prefetch."""
    channel.queue_declare("q")
    publish(channel, 5)
    channel.basic_qos(prefetch_count=1)
    consumer = Recorder()
    channel.basic_consume("q", consumer, auto_ack=True)
    take.until(lambda: len(consumer.got) == 5)


def test_messages_are_shared_evenly_among_the_consumers_of_a_queue(channel: BlockingChannel, take: Take) -> None:
    """If nine messages are published to a queue with three consumers, each consumer gets three of them."""
    channel.queue_declare("q")
    consumers = [Recorder(), Recorder(), Recorder()]
    for consumer in consumers:
        channel.basic_consume("q", consumer)
    publish(channel, 9)
    take.until(lambda: sum(len(consumer.got) for consumer in consumers) == 9)
    assert [len(consumer.got) for consumer in consumers] == [3, 3, 3]


def test_the_consumer_with_the_higher_priority_is_served_first(channel: BlockingChannel, take: Take) -> None:
    """Of two consumers of a queue, the one with the higher x-priority gets messages up to its prefetch. The other
    consumer gets only the messages beyond this prefetch.
    """
    channel.queue_declare("q")
    channel.basic_qos(prefetch_count=2)
    low, high = Recorder(), Recorder()
    channel.basic_consume("q", low)
    channel.basic_consume("q", high, arguments={"x-priority": 10})
    publish(channel, 3)
    take.until(lambda: len(low.got) + len(high.got) == 3)
    assert high.bodies == [b"0", b"1"]
    assert low.bodies == [b"2"]


@pytest.mark.parametrize("kind", [{}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"])
def test_only_one_consumer_of_a_queue_with_x_single_active_consumer_gets_messages(
    channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """While the first consumer of a queue with x-single-active-consumer is active, it gets all messages. Once it is
    cancelled, the second consumer gets the next message.
    """
    channel.queue_declare("q", durable=True, arguments={**kind, "x-single-active-consumer": True})
    first, second = Recorder(), Recorder()
    tag = channel.basic_consume("q", first, auto_ack=True)
    channel.basic_consume("q", second, auto_ack=True)
    publish(channel, 3)
    take.until(lambda: len(first.got) == 3)
    assert second.got == []
    channel.basic_cancel(tag)
    publish(channel, 1)
    take.until(lambda: len(second.got) == 1)


def test_deliveries_of_a_cancelled_consumer_can_still_be_acknowledged(channel: BlockingChannel, take: Take) -> None:
    """After a client cancels a consumer, the client can still acknowledge the messages that had already been delivered
    to this consumer.
    """
    channel.queue_declare("q")
    publish(channel, 1)
    consumer = Recorder()
    tag = channel.basic_consume("q", consumer)
    take.until(lambda: consumer.got)
    channel.basic_cancel(tag)
    channel.basic_ack(consumer.got[0][0].delivery_tag)
    channel.close()


def test_a_channel_that_deletes_its_queue_gets_queue_delete_ok_before_basic_cancel(broker: TestBroker) -> None:
    """If a client deletes a queue on a channel that consumes from it, the client receives queue.delete-ok first, and
    then basic.cancel.
    """
    with RawClient(broker.url) as client:
        client.send(commands.Queue.Declare(queue="q", durable=True))
        client.expect(commands.Queue.DeclareOk)
        client.send(commands.Basic.Consume(queue="q", consumer_tag="t"))
        client.expect(commands.Basic.ConsumeOk)
        client.send(commands.Queue.Delete(queue="q"))
        client.expect(commands.Queue.DeleteOk)
        assert client.expect(commands.Basic.Cancel).consumer_tag == "t"


def test_deleting_a_queue_cancels_its_consumers(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """When a queue is deleted, each of its consumers gets basic.cancel with its own consumer tag."""
    channel.queue_declare("q")
    cancelled: list[Any] = []
    channel.add_on_cancel_callback(cancelled.append)
    channel.basic_consume("q", print, consumer_tag="t")
    connection.channel().queue_delete("q")
    take.until(lambda: cancelled)
    assert cancelled[0].method.consumer_tag == "t"


def test_an_exclusive_consumer_excludes_others_until_it_is_cancelled(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """If a client sends basic.consume on another channel for a queue that has an exclusive consumer, the broker
    closes that channel with error 403. Once the exclusive consumer is cancelled, another consumer can be started and
    gets messages.
    """
    channel.queue_declare("q")
    exclusive, other = Recorder(), Recorder()
    tag = channel.basic_consume("q", exclusive, exclusive=True)
    for is_exclusive in (False, True):
        with pytest.raises(ChannelClosedByBroker, match=r"ACCESS_REFUSED - .*'q'.* in exclusive use") as refused:
            connection.channel().basic_consume("q", other, exclusive=is_exclusive)
        assert refused.value.reply_code == 403
    channel.basic_cancel(tag)
    channel.basic_consume("q", other)
    publish(channel, 1)
    take.until(lambda: other.got)
    assert (exclusive.bodies, other.bodies) == ([], [b"0"])


def test_an_exclusive_consumer_of_a_quorum_queue_does_not_exclude_others(
    connection: pika.BlockingConnection, channel: BlockingChannel, take: Take
) -> None:
    """A quorum queue accepts other consumers, also exclusive ones, although it has an exclusive consumer."""
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_qos(prefetch_count=1)
    first, second, third = Recorder(), Recorder(), Recorder()
    channel.basic_consume("q", first, exclusive=True)
    for other, is_exclusive in ((second, False), (third, True)):
        another = connection.channel()
        another.basic_qos(prefetch_count=1)
        another.basic_consume("q", other, exclusive=is_exclusive)
    publish(channel, 3)
    take.until(lambda: first.got and second.got and third.got)


_KINDS = pytest.mark.parametrize(
    "kind", [{"x-queue-type": "classic"}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"]
)


@_KINDS
@pytest.mark.parametrize("prefetch", [1, 2])
def test_messages_of_a_lost_single_active_consumer_come_before_all_others(
    amqp_url: str, channel: BlockingChannel, take: Take, kind: dict[str, Any], prefetch: int
) -> None:
    """If the single active consumer is lost, the next one gets first what the lost one had not acknowledged."""
    channel.queue_declare("q", durable=True, arguments={**kind, "x-single-active-consumer": True})
    publish(channel, 5)
    second = Recorder()
    with RawClient(amqp_url) as lost:
        lost.send(commands.Basic.Qos(prefetch_count=prefetch))
        lost.expect(commands.Basic.QosOk)
        lost.send(commands.Basic.Consume(queue="q", consumer_tag="lost"))
        lost.expect(commands.Basic.ConsumeOk)
        for _ in range(prefetch):
            lost.expect(commands.Basic.Deliver)
            lost.expect(header.ContentHeader)
            lost.expect(body.ContentBody)
        channel.basic_consume("q", second)
    take.until(lambda: len(second.got) == 5)
    assert second.bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert [method.redelivered for method, _ in second.got] == [number < prefetch for number in range(5)]


@_KINDS
def test_the_priority_of_consumers_decides_which_one_becomes_the_single_active_one(
    broker: TestBroker, channel: BlockingChannel, take: Take, kind: dict[str, Any]
) -> None:
    """Of four consumers, the last two have a priority of 10. When the active one is cancelled, the oldest of the
    highest priority follows. Since RabbitMQ 4.0, a quorum queue does not let the first consumer be active once one of
    higher priority is there; before, age alone decided in quorum queues.
    """
    channel.queue_declare("q", durable=True, arguments={**kind, "x-single-active-consumer": True})
    consumers = {tag: Recorder() for tag in "ABCD"}
    for tag, consumer in consumers.items():
        arguments = {"x-priority": 10} if tag in "CD" else {}
        channel.basic_consume("q", consumer, consumer_tag=tag, auto_ack=True, arguments=arguments)
    order = ""
    for _ in "ABCD":
        channel.basic_publish("", "q", b"next")
        take.until(lambda: any(consumer.got for consumer in consumers.values()))
        [active] = [tag for tag, consumer in consumers.items() if consumer.got]
        channel.basic_cancel(active)
        del consumers[active]
        order += active
    is_quorum = kind["x-queue-type"] == "quorum"
    by_priority = "CDAB" if broker.differs_since("4.0", "quorum queues heed the priority") else "ABCD"
    assert order == (by_priority if is_quorum else "ACDB")


@pytest.mark.differs_since("4.0", "the second consumer takes over")
def test_up_to_rabbitmq_3_13_a_single_active_consumer_stays_active(channel: BlockingChannel, take: Take) -> None:
    """In a quorum queue of RabbitMQ 3.13 and earlier, a consumer of higher priority waits for the active one to end."""
    assert _taken_in_turn(channel, take) == ([b"0", b"1", b"2", b"3"], [])


def test_since_rabbitmq_4_0_a_consumer_of_higher_priority_takes_over(
    broker: TestBroker, channel: BlockingChannel, take: Take
) -> None:
    """In a quorum queue since RabbitMQ 4.0, the single active consumer gets no more messages once there is one of
    higher priority, which becomes the active one when everything has been acknowledged.
    """
    if not broker.differs_since("4.0", "it takes over"):
        pytest.skip("before RabbitMQ 4.0, no consumer takes over")
    assert _taken_in_turn(channel, take) == ([b"0", b"1"], [b"2", b"3"])


def _taken_in_turn(channel: BlockingChannel, take: Take) -> tuple[list[bytes], list[bytes]]:
    """Consume with a second consumer of higher priority while the first one holds two of four messages."""
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    channel.queue_declare("q", durable=True, arguments=arguments)
    publish(channel, 4)
    first, second = Recorder(), Recorder()
    channel.basic_qos(prefetch_count=2)
    channel.basic_consume("q", first)
    take.until(lambda: len(first.got) == 2)
    channel.basic_consume("q", second, arguments={"x-priority": 10})
    settled(channel)
    for acknowledged in range(4):
        take.until(lambda: len(first.got) + len(second.got) > acknowledged)  # noqa: B023 - called at once
        method, _ = [*first.got, *second.got][acknowledged]
        channel.basic_ack(method.delivery_tag)
    return first.bodies, second.bodies
