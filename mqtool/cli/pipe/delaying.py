"""Having messages held back until they are due."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mqtool.amqp import Channel
from mqtool.cli.display import output
from mqtool.cli.options import DelayOptions, MessageOptions
from mqtool.cli.options.delays import mandatory_with_delay
from mqtool.cli.pipe.failed_messages import Input
from mqtool.errors import MqtoolError
from mqtool.message import Message
from mqtool.topology import DEFAULT_EXCHANGE, Exchange, Queue

if TYPE_CHECKING:
    from mqtool.delays.holding import Delaying


def held(
    messages: Iterator[Message | None],
    delays: DelayOptions,
    options: MessageOptions,
    channel: Channel,
    *,
    exchange: Exchange = DEFAULT_EXCHANGE,
    queue: Queue | None = None,
    routing_key: str | None = None,
    plugin: bool | None = None,
) -> Iterator[Message | None]:
    """What to publish, so that each message arrives when its delay is over; the others are published as they are.

    Args:
        exchange, queue, routing_key: where messages go that do not say so themselves, as delays.ways.Destination.
        plugin: whether the broker has it, if that is known.

    Raises:
        PluginMissing: the plugin is asked for, and the broker has none.
    """
    if not delays.are_given and not options.as_json:
        return messages
    from mqtool.delays.holding import Delaying
    from mqtool.delays.ways import Destination

    destination = Destination(queue or exchange, routing_key)
    delaying = Delaying(channel, delays.via, destination, output.notice, plugin=plugin)
    if delays.are_given:
        delaying.choose()  # now, rather than when the first line comes
    elif options.mandatory:
        return map(_not_delayed, messages)
    return _giving_back(messages, delaying)


def _giving_back(messages: Iterator[Message | None], delaying: "Delaying") -> Iterator[Message | None]:
    """A message that cannot be held back was not published: it is one of those left, for --failed-to."""
    try:
        yield from delaying.hold(messages)
    except MqtoolError:
        if isinstance(messages, Input) and delaying.at_fault is not None:
            messages.give_back(delaying.at_fault)
        raise


def _not_delayed(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise mandatory_with_delay()
    return message
