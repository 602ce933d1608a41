"""Declare a dead-letter queue, unless one exists that would not keep its messages.

Others may have declared it, with settings of their own: harmless ones, such as the type quorum; or a TTL, a maximum
length or a dead-letter exchange, through which messages would be lost, or leave for another queue. AMQP has no query
for the arguments of a queue, and the broker's error for a declaration with other settings names only one of them. So
adopt it, and declare the queue again, until nothing differs. Policies are not considered: only operators set them.
"""

import re

from mqtool.channels import AmqpChannel
from mqtool.errors import DeclaredDifferently, Difference
from mqtool.field_values import FieldValue
from mqtool.management.overflow import overflow_of
from mqtool.spelling import pasteable
from mqtool.topology import Queue

#: The beginning of RabbitMQ's error text for a setting that differs. RabbitMQ cuts texts of over 255 bytes.
_SETTING = re.compile(r"inequivalent arg '([\w-]+)' for queue ")
#: Settings with which the broker drops or moves messages: as arguments, whatever their values; and auto_delete, with
#: which it deletes the queue, and all messages in it, when somebody who has looked at one of them stops consuming.
_NOT_KEEPING = ("x-message-ttl", "x-expires", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-max-age",
                "auto_delete")  # fmt: skip
#: Arguments with which the broker drops the oldest messages, unless x-overflow says to reject new ones.
_LIMITS = ("x-max-length", "x-max-length-bytes")


def declare_dead_letter_queue(channel: AmqpChannel, queue: Queue, known: Queue | None = None) -> Queue:
    """Declare a dead-letter queue, or use an existing one that keeps its messages. It is not declared again later.

    Args:
        known: what an earlier call has returned for this queue; spares requests that the broker would refuse.

    Returns:
        The queue with the settings that it has on the broker.

    Raises:
        DeclaredDifferently: the queue exists with arguments with which it may not keep its messages; or with any other
            settings, and the channel is strict.
    """
    if known is not None:
        try:
            return channel.declare(known, remember=False, exactly=True)
        except DeclaredDifferently:
            pass  # it was deleted and declared again
    existing = _with_its_settings(channel, queue)
    if existing != queue:
        channel.declare(queue, remember=False)  # prints a notice, or raises an error if the channel is strict
    return existing


def _with_its_settings(channel: AmqpChannel, queue: Queue) -> Queue:
    adopted = set[str]()
    while True:
        try:
            channel.declare(queue, remember=False, exactly=True)
            break
        except DeclaredDifferently as error:
            setting, difference = _SETTING.search(str(error)), Difference.reported_in(str(error))
            if setting is None:
                raise
            name = setting[1]
            if name in _NOT_KEEPING or name in adopted or difference is None:
                raise _not_keeping(queue, name) from error
            adopted.add(name)
            queue = adopt(queue, difference)
    kind = str(queue.arguments.get("x-queue-type", "classic"))
    for limit in _LIMITS:
        if limit in queue.arguments and overflow_of(kind, queue.arguments, []) == "drop-head":
            raise _not_keeping(queue, limit)
    return queue


def adopt(queue: Queue, difference: Difference) -> Queue:
    """Return the queue with a setting as it is on the broker. RabbitMQ does not name the type of x-queue-type."""
    setting, value, kind = difference.setting, difference.theirs, difference.kind
    is_true = value == "true"
    if setting == "durable":
        return queue._replace(durable=is_true)
    if setting == "auto_delete":
        return queue._replace(auto_delete=is_true)
    argument: FieldValue = value
    if kind == "bool":
        argument = is_true
    elif kind not in (None, "longstr") and re.fullmatch(r"-?\d+", value):
        argument = int(value)
    return queue._replace(arguments={**queue.arguments, setting: argument})


def _not_keeping(queue: Queue, argument: str) -> DeclaredDifferently:
    return DeclaredDifferently(
        f"dead-letter queue {queue.name!r} exists with {argument}, so it may not keep its messages",
        f"once it is empty: {pasteable('queue delete', queue.name)}; a limit that you want can be set by a policy",
    )
