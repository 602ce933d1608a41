"""mqtool receive."""

from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import typer

from mqtool.amqp import Channel
from mqtool.cli.access import HINT_PATIENCE, Access
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.cli.options import TutorialBroker, UsedQueueOptions
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.options.receiving_options import OFFSET, ReceivingOptions, UntilEmpty, WhereOption
from mqtool.cli.pipe.existence import checked
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.cli.values import parsed, valid_filter
from mqtool.errors import MqtoolError
from mqtool.offsets import NEXT
from mqtool.tutorials import hello_world
from mqtool.tutorials.dialects import NAMES, Dialect

app = typer.Typer()


@command(
    app,
    "mqtool receive",
    "mqtool receive --raw --until-empty -o app.log",
    "mqtool receive --json | mqtool send --json -q b",
    effect=Effect.CHANGES,
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].hello)},
    heading="Tutorials",
    aliases=("consume", "sub"),
)
def receive(
    queue: UsedQueueOptions,
    receiving: ReceivingOptions,
    broker: TutorialBroker,
    offset: Annotated[
        Any | None, typer.Option("--offset", help="Where to start in a stream", rich_help_panel="Receiving", **OFFSET)
    ] = None,
    filters: Annotated[
        list[Any] | None,
        typer.Option(
            "--filter",
            parser=parsed(valid_filter),
            metavar="VALUE",
            help="Read only stream chunks with filter value VALUE (AMQP 1.0)",
            rich_help_panel="Receiving",
        ),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="SQL filter for a stream (RabbitMQ 4.2+)", rich_help_panel="Receiving"),
    ] = None,
    where: WhereOption = None,
    until_empty: UntilEmpty = False,
) -> None:
    """Receive messages from a queue (tutorial 1).

    With --where, messages that do not match stay in the queue, but no other consumer gets them until the command ends.
    """
    matching = Matching(receiving, where, skips=offset is not None, until_empty=until_empty)
    settings = matching.settings()._replace(offset=offset)
    reads_stream = offset is not None or filters or sql is not None
    opened = partial(Access.channel_or_session, values=filters or (), sql=sql)
    with receiving_channel(receiving, broker, broker.lines.received, opened=opened) as (channel, incoming):
        names = dialect_names(broker)
        target = queue.of(names.queue(queue.queue, names.hello))
        if reads_stream and queue.queue is not None and not queue.has_settings:
            target = target._replace(arguments={"x-queue-type": "stream"})
        target = checked(target, queue, channel, broker, incoming.access)
        if not reads_stream and queue.queue is not None:
            _tell_where_streams_start(target.name, incoming.access)
        if not reads_stream:
            settings = matching.within_limit(settings, incoming.access, channel, target.name)
        if until_empty:
            from mqtool.cli.pipe import waiting

            settings = waiting.until_empty(settings, incoming.access, channel, target)
        settings = incoming.printed(settings)
        if isinstance(channel, Channel):
            deliveries = hello_world.receive(channel, target, settings)
        else:
            from mqtool.tutorials import amqp10_hello_world

            if settings.offset is None and target.arguments.get("x-queue-type") == "stream":
                settings = settings._replace(offset=NEXT)  # a link does not know the type of its queue
            deliveries = amqp10_hello_world.receive(channel, target, settings)
        incoming.print_all(matching.of(channel, deliveries, settings))


def _tell_where_streams_start(name: str, access: Access) -> None:
    """On a terminal, say that only what comes from now on is received if this is a stream, which waits silently."""
    if not output.is_terminal(2) or current().quiet:
        return
    from mqtool.management import path

    with suppress(MqtoolError):  # without the management API, nothing is said
        if access.management(HINT_PATIENCE).get(path("queues", access.vhost, name)).get("type") == "stream":
            output.notice(f"{name!r} is a stream: only new messages are received; --offset first receives all")
