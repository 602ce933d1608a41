"""mqtool receive."""

from typing import Annotated, Any

from mqtool.cli.command_line import Option
from mqtool.cli.options import OFFSET, Broker, Commands, UsedQueueOptions
from mqtool.cli.options.queue_options import checked
from mqtool.cli.options.receiving_options import Receiving, Where
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.tutorials import hello_world

app = Commands()


@app.command("mqtool receive", "mqtool receive --raw -o app.log", "mqtool receive --json | mqtool send --json -q b")
def receive(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    offset: Annotated[Any | None, Option(help="Where to start in a stream", panel="Receiving", **OFFSET)] = None,
    where: Where = None,
) -> None:
    """Receive messages from a queue (tutorial 1).

    With --where, messages that do not match stay in the queue. Until the command ends, no other consumer gets them.
    """
    matching = Matching(receiving, where, skips=offset is not None)
    settings = matching.settings()._replace(offset=offset)
    with receiving_channel(receiving, broker, broker.lines.received) as (channel, incoming):
        target = checked(queue.of(broker.names.hello), queue, channel, broker, incoming.access)
        settings = incoming.printed(settings)
        incoming.print_all(matching.of(channel, hello_world.receive(channel, target, settings), settings))
