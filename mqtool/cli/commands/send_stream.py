"""mqtool send-stream."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mqtool.cli.access import Access
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.options import Publishing
from mqtool.cli.options.stream_options import DialectOfStreams, StreamOptions, dialect_of
from mqtool.cli.pipe.existence import ask_to_declare_stream
from mqtool.cli.pipe.publishing import publishing_stream_channel
from mqtool.cli.values import parsed, valid_filter
from mqtool.tutorials import stream_hello_world
from mqtool.tutorials.stream_dialects import HELLO

if TYPE_CHECKING:
    pass

app = typer.Typer()


@dataclass(kw_only=True, eq=False, repr=False)
class Appending:
    """Options of `send-stream`."""

    routing_key: Annotated[
        str | None,
        typer.Option(
            "--routing-key",
            "-r",
            help="Routing key; in a super stream, chooses the partition",
            show_default="each in turn",
            rich_help_panel="Messages",
            metavar="KEY",
        ),
    ] = None
    filter_value: Annotated[
        Any | None,
        typer.Option(
            "--filter",
            parser=parsed(valid_filter),
            metavar="VALUE",
            help="Filter value to store with messages (RabbitMQ 3.13+)",
            rich_help_panel="Messages",
        ),
    ] = None


@command(
    app,
    "mqtool send-stream 'Hello, World!'",
    "tail -f app.log | mqtool send-stream -l -q app",
    "mqtool send-stream -q orders --partitions 3 -r ann 'two books'",
    effect=Effect.SENDS,
    heading="Tutorials",
    without=("protocol", "delay", "at", "via", "mandatory", "persistent", "declare", "trust_streams"),
    instead={"dialect": DialectOfStreams},
)
def send_stream(stream: StreamOptions, publishing: Publishing, appending: Appending) -> None:
    """Append messages to a stream (stream tutorial 1)."""
    tutorial = HELLO[dialect_of(publishing.broker)]
    opened = partial(
        Access.stream_channel,
        port=stream.port,
        any_settings=stream.uses_any_settings,
        confirm_timeout=publishing.options.confirm_timeout,
        stores_bodies=tutorial.stores_bodies and stream.queue is None,
        filters=[appending.filter_value] if appending.filter_value else [],
    )
    key = appending.routing_key
    default = tutorial.body if stream.queue is None else None
    with publishing_stream_channel(publishing, opened, routing_key=key, default=default) as (channel, outgoing):
        target = stream.of(tutorial.stream)
        ask_to_declare_stream(channel, outgoing.access, target)
        receipts = stream_hello_world.send(channel, target, outgoing.messages)
        outgoing.report(receipts, tutorial.sent)
