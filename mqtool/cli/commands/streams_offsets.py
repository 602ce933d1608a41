"""mqtool send-stream, receive-stream; offset show, set, reset, send, receive."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mqtool.cli.access import Access
from mqtool.cli.command_line import Argument, Option, OptionGroup, argument_option
from mqtool.cli.display import output
from mqtool.cli.options import Broker, Commands, Publishing
from mqtool.cli.options.queue_options import StreamPort, refuse
from mqtool.cli.options.receiving_options import OFFSET, Receiving
from mqtool.cli.pipe.publishing import publishing_stream_channel
from mqtool.cli.pipe.receiving import consuming, receiving_channel
from mqtool.errors import MqtoolError, NotConfirmed, UsageError
from mqtool.inspection.queue_details import ReaderOffsets
from mqtool.message import Confirmation, Message
from mqtool.spelling import counted
from mqtool.topology import Stream
from mqtool.tutorials.stream_dialects import HELLO, TRACKING, StreamDialect

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel


app = Commands()


def _dialect(text: str) -> StreamDialect:
    """Parse a stream dialect. Of a value such as go-classic, which MQTOOL_DIALECT may contain, only `go` is used."""
    try:
        return StreamDialect(text.partition("-")[0])
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(StreamDialect)}") from None


DialectOfStreams = Annotated[
    Any | None,
    Option(
        "--dialect",
        parser=_dialect,
        metavar="LANGUAGE",
        help="python, go, java, dotnet, javascript, rust or elixir",
        show_default=str(StreamDialect.PYTHON),
        envvar="MQTOOL_DIALECT",
        panel="Topology",
        complete=lambda *_: [*StreamDialect],
    ),
]


def dialect_of(broker: Broker) -> StreamDialect:
    """Return the stream dialect chosen with --dialect (see DialectOfStreams); by default, Python's."""
    dialect: Any = broker.dialect
    return dialect or StreamDialect.PYTHON


class StreamOptions(OptionGroup):
    """Options for a stream's name and settings, and for the broker's stream port."""

    PANEL: ClassVar = "Topology"

    queue: Annotated[str | None, Option("-q", help="Stream", show_default="the tutorial's")] = None
    arguments: Annotated[list[Any] | None, argument_option("Setting to create it with, such as max-age=7D")] = None
    partitions: Annotated[
        int | None, Option(min=1, max=255, metavar="N", help="Create it as a super stream of N partitions")
    ] = None
    declare: Annotated[bool, Option(help="Declare it if it does not exist")] = False
    port: StreamPort = None

    @property
    def uses_any_settings(self) -> bool:
        """True if the stream is named, but its settings are not: an existing one is then used without a notice."""
        return self.queue is not None and not self.arguments

    def of(self, default: Stream) -> Stream:
        """Return the tutorial's stream, with the options applied.

        Raises:
            UsageError: the name is empty.
        """
        if self.queue == "":
            raise UsageError("the stream's name is empty", "leave --queue out to use the tutorial's")
        given = {name.removeprefix("x-"): value for name, value in self.arguments or []}
        name = self.queue or default.name
        # The same names that `rabbitmq-streams add_super_stream` uses.
        partitions = [f"{name}-{number}" for number in range(self.partitions or 0)]
        return Stream(name, {**default.arguments, **given}, partitions)


class Appending(OptionGroup):
    """Options of `send-stream`."""

    PANEL: ClassVar = "Messages"

    routing_key: Annotated[str | None, Option("-r", help="Key that chooses the partition (default: each in turn)")] = (
        None
    )
    filter_value: Annotated[
        str | None, Option("--filter", metavar="VALUE", help="Filter value to store with messages (RabbitMQ 3.13)")
    ] = None


class Reading(OptionGroup):
    """Options of `receive-stream`: where to start, and which messages to receive."""

    PANEL: ClassVar = "Receiving"

    offset: Annotated[Any, Option(help="Start: first, last, next, N, a time, or an age", **OFFSET)] = "first"
    track: Annotated[str | None, Option(metavar="NAME", help="Continue where NAME stopped, and store its offset")] = (
        None
    )
    single_active: Annotated[bool, Option(help="One reader per --track name at a time (RabbitMQ 3.11)")] = False
    filters: Annotated[
        list[str] | None, Option("--filter", metavar="VALUE", help="Only chunks with this filter value (RabbitMQ 3.13)")
    ] = None


@app.command(
    "mqtool send-stream 'Hello, World!'",
    "tail -f app.log | mqtool send-stream -l -q app",
    "mqtool send-stream -q orders --partitions 3 -r ann 'two books'",
    without=("delay", "at", "via", "mandatory", "persistent", "declare"),
    instead={"dialect": DialectOfStreams},
)
def send_stream(stream: StreamOptions, publishing: Publishing, appending: Appending) -> None:
    """Append messages to a stream (stream tutorial 1)."""
    tutorial = HELLO[dialect_of(publishing.broker)]
    from mqtool.tutorials import stream_hello_world

    opened = partial(
        Access.stream_channel,
        port=stream.port,
        any_settings=stream.uses_any_settings,
        confirm_timeout=publishing.options.confirm_timeout,
        encode=_body_alone if tutorial.stores_bodies and stream.queue is None else None,
        filters=[appending.filter_value] if appending.filter_value else [],
    )
    key = appending.routing_key
    with publishing_stream_channel(publishing, opened, routing_key=key, default=tutorial.body) as (channel, outgoing):
        receipts = stream_hello_world.send(channel, stream.of(tutorial.stream), outgoing.messages)
        outgoing.report(receipts, tutorial.sent)


@app.command(
    "mqtool receive-stream",
    "mqtool receive-stream -q app --offset 5m --raw",
    "mqtool receive-stream -q app --track reports | ./report",
    without=("prefetch", "auto_ack"),
    instead={"dialect": DialectOfStreams},
)
def receive_stream(stream: StreamOptions, receiving: Receiving, broker: Broker, reading: Reading) -> None:
    """Read a stream, from any offset (stream tutorial 1)."""
    from mqtool.tutorials import stream_hello_world

    tutorial = HELLO[dialect_of(broker)]
    opened = partial(
        Access.stream_channel,
        port=stream.port,
        any_settings=stream.uses_any_settings,
        filters=reading.filters or [],
        single_active=reading.single_active,
    )
    with receiving_channel(receiving, broker, tutorial.received, opened=opened, waiting=tutorial.waiting) as (
        channel,
        incoming,
    ):
        target = _checked(stream, tutorial.stream, channel, incoming.access)
        settings = incoming.printed(receiving.settings())
        incoming.print_all(stream_hello_world.receive(channel, target, reading.offset, settings, reading.track))


def _checked(options: StreamOptions, default: Stream, channel: "StreamChannel", access: Access) -> Stream:
    """Return the stream to read.

    Raises:
        NotFound: the stream does not exist, and neither an option nor the tutorial creates it.
    """
    stream = options.of(default)
    creates = options.declare or options.arguments or options.partitions or stream.name == default.name
    if not (creates or channel.exists(stream.name) or channel.streams_of(stream.name) != [stream.name]):
        refuse(stream.name, access, kind="stream")
    return stream


def _body_alone(message: Message) -> bytes:
    """Encode a message for tutorials that store only bodies. A message with properties is stored as AMQP 1.0."""
    if not message.properties and message.message_id is None:
        return message.body
    from mqtool.streams.entries import encode

    return encode(message)


offset = app.group("offset", "Stored offsets of a stream's readers (stream tutorial 2).")

StreamName = Annotated[str, Argument(help="Stream", metavar="STREAM")]
ReaderName = Annotated[str, Argument(help="Name of the reader, as for --track", metavar="NAME")]


@offset.command("mqtool offset show app reports", without=("dialect", "strict"))
def show(stream: StreamName, name: ReaderName, broker: Broker, port: StreamPort = None) -> None:
    """Print the offset of the last message that a reader has read.

    For a super stream, prints the offset in each partition.
    """
    with broker.access().stream_channel(port) as channel:
        found = {each: channel.stored_offset(each, name) for each in channel.streams_of(stream)}
        stored = {each: offset for each, offset in found.items() if offset is not None}
        seen = {each: ReaderOffsets(channel.offsets_of(each), {name: offset}) for each, offset in found.items()}
    if not stored:
        raise MqtoolError(
            f"no offset of {name!r} is stored in stream {stream!r}",
            "a reader with --track stores its offset; until then, it starts at --offset",
        )
    for each, offset in stored.items():
        output.show(str(offset) if each == stream else f"{each}	{offset}")
    # Without a stored offset, the whole stream is unread.
    lags = [(each.lag(name), len(each.offsets)) for each in seen.values()]
    if behind := sum(there if lag is None else lag for lag, there in lags):
        output.status(f"{counted(behind)} behind")
    if missed := sum(each.missed(name) for each in seen.values()):
        output.warning(f"the stream has dropped {counted(missed)} that {name!r} had not read")


@offset.command("mqtool offset set app reports 41999", name="set", without=("dialect", "strict"))
def set_(
    stream: StreamName,
    name: ReaderName,
    number: Annotated[int, Argument(min=0, help="Offset of the last message read", metavar="N")],
    broker: Broker,
    port: StreamPort = None,
) -> None:
    """Make a reader continue after an offset."""
    with broker.access().stream_channel(port) as channel:
        if (partitions := channel.streams_of(stream)) != [stream]:
            raise UsageError(f"{stream!r} is a super stream", f"name one of its partitions, such as {partitions[0]}")
        channel.store_offset(stream, name, number)
    output.status(f"{name!r} continues after offset {number:,} of stream {stream!r}")


@offset.command("mqtool offset reset app reports", without=("dialect", "strict"))
def reset(stream: StreamName, name: ReaderName, broker: Broker, port: StreamPort = None) -> None:
    """Make a reader start over, at its --offset."""
    with broker.access().stream_channel(port) as channel:
        for each in channel.streams_of(stream):
            channel.forget_offset(each, name)
    output.status(f"{name!r} starts over in stream {stream!r}")


@offset.command("mqtool offset send", without=("partitions", "declare"), instead={"dialect": DialectOfStreams})
def send(stream: StreamOptions, broker: Broker) -> None:
    """Append 100 messages, the last of which is the marker."""
    from mqtool.tutorials import stream_offset_tracking as lesson

    tutorial = TRACKING[dialect_of(broker)]
    last = lesson.MESSAGES - 1
    bodies = [tutorial.body.format(number=number) for number in range(last)] + [tutorial.marker.format(number=last)]
    encode = _body_alone if tutorial.stores_bodies else None
    with broker.access().stream_channel(stream.port, encode=encode) as channel:
        output.status(tutorial.publishing)
        receipts = lesson.send(channel, stream.of(tutorial.stream), (Message(body.encode()) for body in bodies))
        refused = [receipt for receipt in receipts if receipt.confirmation is not Confirmation.CONFIRMED]
    if refused:
        raise NotConfirmed(f"{len(refused)} of {lesson.MESSAGES} messages were not confirmed: {refused[0].reason}")
    output.status(tutorial.confirmed)


@offset.command(
    "mqtool offset receive",
    without=("partitions", "prefetch", "auto_ack", "raw", "as_json", "template", "pretty", "into"),
    instead={"dialect": DialectOfStreams},
)
def receive(stream: StreamOptions, receiving: Receiving, broker: Broker) -> None:
    """Read up to the marker, and store every tenth offset."""
    from mqtool.tutorials import stream_offset_tracking as lesson

    tutorial = TRACKING[dialect_of(broker)]
    offsets: list[int] = []
    access = broker.access()
    with access.stream_channel(stream.port) as channel:
        target = channel.declare(_checked(stream, tutorial.stream, channel, access))
        start = lesson.next_offset(channel, target, tutorial.subscriber)
        deliveries = lesson.receive(channel, target, tutorial.subscriber, start, receiving.settings())
        with consuming(receiving.ready_file, channel, tutorial.started):
            for delivery in deliveries:
                if not offsets:
                    output.show(tutorial.first)
                offsets = [*offsets[:1], delivery.delivery_tag]
    if offsets:
        output.show(tutorial.done.format(first=offsets[0], last=offsets[-1]))
