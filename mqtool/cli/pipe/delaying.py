"""The stage of a publishing pipeline that makes messages wait until they are due."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mqtool.amqp import Channel
from mqtool.cli.display import output
from mqtool.cli.options import Publishing
from mqtool.cli.options.message_options import mandatory_with_delay
from mqtool.cli.pipe.source import Input
from mqtool.errors import MqtoolError
from mqtool.message import Message
from mqtool.topology import Exchange, Queue

if TYPE_CHECKING:
    from mqtool.delays.holding import Delaying


def held(
    source: Input, asked: Publishing, channel: Channel, to: Exchange | Queue, leads_to: Queue | None = None
) -> Iterable[Message | None]:
    """The messages to publish: those with a delay on their way to where they wait, the others as they are.

    Args:
        to: where messages go that do not name an exchange or a routing key themselves.
        leads_to: the queue behind it, if that is known.

    Raises:
        PluginMissing: the user asked for the plugin, and the broker lacks it.
    """
    delays, options = asked.delays, asked.options
    if not delays.are_given and not options.as_json:
        return source
    if options.mandatory:
        return map(_not_delayed, source)
    from mqtool.delays.holding import Delaying
    from mqtool.delays.ways import Destination

    delaying = Delaying(channel, delays.via, Destination(to, leads_to), output.notice, output.warning)
    if delays.are_given:
        delaying.choose()  # now, rather than when the first line arrives
    return _hold(source, delaying)


def _hold(source: Input, delaying: "Delaying") -> Iterator[Message | None]:
    try:
        yield from delaying.hold(source)
    except MqtoolError:
        if delaying.at_fault is not None:  # it was not published, so --failed-to has to keep it
            source.give_back(delaying.at_fault)
        raise


def _not_delayed(message: Message | None) -> Message | None:
    if message is not None and (message.delay is not None or message.due is not None):
        raise mandatory_with_delay()
    return message
