"""Publisher confirms: publishers handle confirms individually, in batches, or asynchronously.

    individually     publish, wait, publish, wait, …    a round trip for each
    in batches       publish × 100, wait for all, …     one for a hundred
    asynchronously   publish 1, 2, 3, 4, 5, 6, 7, …     no waiting: confirms
                             ack 1, ack 2-6, nack 7 …   arrive meanwhile

The broker acks a message once it is safe: consumed, or stored in its queues, on disk or on most replicas. It nacks a
message that it could not store. Messages on a channel are numbered from 1. An ack or nack contains such a number; with
the flag "multiple", it applies to all messages up to this number. Here, publish() yields one receipt for each message.

https://www.rabbitmq.com/tutorials/tutorial-seven-java
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from mqtool.channels import AmqpChannel
from mqtool.message import Confirmation, Message, Receipt
from mqtool.topology import Queue


def individually(channel: AmqpChannel, queue: Queue, messages: Iterable[Message]) -> Iterator[Receipt]:
    """Publish a message, wait for its confirm, then publish the next one."""
    return channel.publish(messages, routing_key=queue.name, window=1)


def in_batches(channel: AmqpChannel, queue: Queue, messages: Iterable[Message], size: int = 100) -> Iterator[Receipt]:
    """Publish a batch, wait until all of it is confirmed, publish the next batch."""
    source = iter(messages)
    while batch := list(islice(source, size)):
        yield from channel.publish(batch, routing_key=queue.name)


def asynchronously(
    channel: AmqpChannel, queue: Queue, messages: Iterable[Message], refused: list[Message]
) -> Iterator[Receipt]:
    """Publish without waiting; handle each confirm when it arrives.

    Args:
        refused: a list to which nacked messages are added. A real publisher would publish them again, or report them.
    """
    outstanding: dict[int, Message] = {}

    def numbered() -> Iterator[Message]:
        for sequence, message in enumerate(messages, start=1):
            outstanding[sequence] = message  # before publishing, since the confirm may arrive at once
            yield message

    def on_ack(sequence: int) -> None:
        del outstanding[sequence]  # the broker is now responsible for the message

    def on_nack(sequence: int) -> None:
        refused.append(outstanding.pop(sequence))

    for receipt in channel.publish(numbered(), routing_key=queue.name):
        if receipt.confirmation is Confirmation.CONFIRMED:
            on_ack(receipt.sequence)
        else:
            on_nack(receipt.sequence)
        yield receipt
    assert not outstanding  # publish() ends when all messages are acked or nacked, and raises NotConfirmed otherwise
