"""mqtool receive-stream."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mqtool.cli.access import Access
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.options import TutorialBroker
from mqtool.cli.options.receiving_options import OFFSET, ReceivingOptions
from mqtool.cli.pipe.existence import check_new
from mqtool.cli.pipe.receiving import receiving_channel
from mqtool.cli.values import parsed, valid_filter
from mqtool.topology import Stream
from mqtool.tutorials import stream_hello_world
from mqtool.tutorials.stream_dialects import HELLO

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel
from mqtool.cli.options.stream_options import DialectOfStreams, StreamOptions, dialect_of

app = typer.Typer()


@dataclass(kw_only=True, eq=False, repr=False)
class ReadingOptions:
    """Options of `receive-stream`: where to start, and which messages to receive."""

    offset: Annotated[
        Any,
        typer.Option(
            "--offset", help="Start at first, last, next, N, a time, or an age", rich_help_panel="Receiving", **OFFSET
        ),
    ] = "first"
    track: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Continue where reader NAME stopped, and store its offset", rich_help_panel="Receiving"
        ),
    ] = None
    single_active: Annotated[
        bool,
        typer.Option(
            "--single-active", help="One active reader per --track name (RabbitMQ 3.11+)", rich_help_panel="Receiving"
        ),
    ] = False
    filters: Annotated[
        list[Any] | None,
        typer.Option(
            "--filter",
            parser=parsed(valid_filter),
            metavar="VALUE",
            help="Read only chunks with this filter value (RabbitMQ 3.13+)",
            rich_help_panel="Receiving",
        ),
    ] = None


@command(
    app,
    "mqtool receive-stream",
    "mqtool receive-stream -q app --offset 5m --raw",
    "mqtool receive-stream -q app --track reports | ./report",
    effect=Effect.READS,
    heading="Tutorials",
    without=("protocol", "prefetch", "auto_ack"),
    instead={"dialect": DialectOfStreams},
)
def receive_stream(
    stream: StreamOptions, receiving: ReceivingOptions, broker: TutorialBroker, reading: ReadingOptions
) -> None:
    """Read a stream from any offset (stream tutorial 1)."""
    tutorial = HELLO[dialect_of(broker)]
    opened = partial(
        Access.stream_channel,
        port=stream.port,
        any_settings=stream.uses_any_settings,
        filters=reading.filters or [],
        single_active=reading.single_active,
    )
    asked = broker if reading.track is None else broker.asking()  # --track stores an offset on the broker
    with receiving_channel(receiving, asked, tutorial.received, opened=opened, waiting=tutorial.waiting) as (
        channel,
        incoming,
    ):
        target = stream_to_read(stream, tutorial.stream, channel, incoming.access)
        settings = incoming.printed(receiving.settings())
        incoming.print_all(stream_hello_world.receive(channel, target, reading.offset, settings, reading.track))


def stream_to_read(options: StreamOptions, default: Stream, channel: "StreamChannel", access: Access) -> Stream:
    """Return the stream to read.

    Raises:
        NotFound: the stream does not exist, and must not be declared; see check_new().
    """
    stream = options.of(default)
    declares = options.declare
    is_usual = options.arguments or options.partitions or stream.name == default.name
    if declares is None and is_usual and not access.is_guarded:
        declares = True
    is_tutorials = declares and stream.name == default.name
    if not (is_tutorials or channel.exists(stream.name) or channel.streams_of(stream.name) != [stream.name]):
        check_new(stream.name, access, declares=declares, kind="stream", suggests=options.declare is None)
    return stream
