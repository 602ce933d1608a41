"""Having messages held back until they are due."""

from collections.abc import Iterator

from mqtool.amqp import Channel
from mqtool.cli import output
from mqtool.cli.options import DelayOptions, MessageOptions
from mqtool.cli.options.delays import mandatory_with_delay
from mqtool.delays import Delaying, Destination
from mqtool.message import Message


def held(
    messages: Iterator[Message | None],
    delays: DelayOptions,
    options: MessageOptions,
    channel: Channel,
    destination: Destination,
    *,
    plugin: bool | None = None,
) -> Iterator[Message | None]:
    """What to publish, so that each message arrives when its delay is over; the others are published as they are.

    Args:
        destination: where messages go that do not say so themselves.
        plugin: whether the broker has it, if that is known.

    Raises:
        PluginMissing: the plugin is asked for, and the broker has none.
    """
    if not delays.are_given and not options.as_json:
        return messages
    delaying = Delaying(channel, delays.via, destination, output.notice, plugin=plugin)
    if delays.are_given:
        delaying.choose()  # now, rather than when the first line comes
    elif options.mandatory:
        return map(_not_delayed, messages)
    return delaying.hold(messages)


def _not_delayed(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise mandatory_with_delay()
    return message
