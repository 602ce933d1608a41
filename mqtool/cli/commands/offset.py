"""mqtool offset."""

from typing import Annotated

import typer

from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.receive_stream import stream_to_read
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import BrokerOptions, TutorialBroker
from mqtool.cli.options.broker_options import PublishingBroker
from mqtool.cli.options.queue_options import StreamPort
from mqtool.cli.options.receiving_options import ReceivingOptions
from mqtool.cli.options.stream_options import DialectOfStreams, StreamOptions, dialect_of
from mqtool.cli.pipe.existence import ask_to_declare_stream
from mqtool.cli.pipe.receiving import consuming
from mqtool.errors import MqtoolError, NotConfirmed, UsageError
from mqtool.inspection.queue_details import ReaderOffsets
from mqtool.message import Confirmation, Message
from mqtool.spelling import counted
from mqtool.streams.session import NOWHERE
from mqtool.tutorials import stream_offset_tracking as lesson
from mqtool.tutorials.stream_dialects import TRACKING

app = group("offset", "Show and set offsets of a stream's readers (stream tutorial 2).", heading="Tutorials")

StreamName = Annotated[
    str, typer.Argument(help="Name of the stream", metavar="STREAM", autocompletion=names_of("queues"))
]


ReaderName = Annotated[str, typer.Argument(help="Name of the reader, as in --track NAME", metavar="NAME")]


@command(app, "mqtool offset show app reports", effect=Effect.READS, without=("dialect", "strict"))
def show(stream: StreamName, name: ReaderName, broker: BrokerOptions, port: StreamPort = None) -> None:
    """Print the offset of the last message that a reader has read.

    For a super stream, prints the offset in each partition.
    """
    with access_to(broker).stream_channel(port) as channel:
        found = {each: channel.stored_offset(each, name) for each in channel.streams_of(stream)}
        stored = {each: offset for each, offset in found.items() if offset is not None}
        seen = {each: ReaderOffsets(channel.offsets_of(each), {name: offset}) for each, offset in found.items()}
    if not stored:
        raise MqtoolError(
            f"no offset of {name!r} is stored in stream {stream!r}",
            "a reader with --track stores its offset; until then, it starts at --offset",
        )
    for each, offset in stored.items():
        output.show(str(offset) if each == stream else f"{output.one_line(each)}\t{offset}")
    # Without a stored offset, the whole stream is unread.
    lags = [(each.lag(name), len(each.offsets)) for each in seen.values()]
    if behind := sum(there if lag is None else lag for lag, there in lags):
        output.status(f"{counted(behind)} behind")
    if missed := sum(each.missed(name) for each in seen.values()):
        output.warning(f"the stream has dropped {counted(missed)} that {name!r} had not read")


@command(app, "mqtool offset set app reports 41999", effect=Effect.CHANGES, name="set", without=("dialect", "strict"))
def set_(
    stream: StreamName,
    name: ReaderName,
    number: Annotated[int, typer.Argument(min=0, max=NOWHERE - 1, help="Offset of the last message read", metavar="N")],
    broker: BrokerOptions,
    port: StreamPort = None,
) -> None:
    """Set the offset after which a reader continues."""
    with access_to(broker).stream_channel(port) as channel:
        if (partitions := channel.streams_of(stream)) != [stream]:
            raise UsageError(f"{stream!r} is a super stream", f"name one of its partitions, such as {partitions[0]}")
        channel.store_offset(stream, name, number)
    output.status(f"{name!r} continues after offset {number:,} of stream {stream!r}")


@command(app, "mqtool offset reset app reports", effect=Effect.CHANGES, without=("dialect", "strict"))
def reset(stream: StreamName, name: ReaderName, broker: BrokerOptions, port: StreamPort = None) -> None:
    """Forget a reader's stored offset, so that it starts over."""
    with access_to(broker).stream_channel(port) as channel:
        for each in channel.streams_of(stream):
            channel.forget_offset(each, name)
    output.status(f"{name!r} starts over in stream {stream!r}")


@command(
    app,
    "mqtool offset send",
    effect=Effect.SENDS,
    without=("protocol", "partitions", "declare"),
    instead={"dialect": DialectOfStreams},
)
def send(stream: StreamOptions, broker: PublishingBroker) -> None:
    """Append 99 messages and a marker (stream tutorial 2)."""
    tutorial = TRACKING[dialect_of(broker)]
    last = lesson.MESSAGES - 1
    bodies = [tutorial.body.format(number=number) for number in range(last)] + [tutorial.marker.format(number=last)]
    access, target = access_to(broker), stream.of(tutorial.stream)
    with access.stream_channel(stream.port, stores_bodies=tutorial.stores_bodies) as channel:
        ask_to_declare_stream(channel, access, target)
        output.status(tutorial.publishing)
        receipts = lesson.send(channel, target, (Message(body.encode()) for body in bodies))
        refused = [receipt for receipt in receipts if receipt.confirmation is not Confirmation.CONFIRMED]
    if refused:
        raise NotConfirmed(f"{len(refused)} of {lesson.MESSAGES} messages were not confirmed: {refused[0].reason}")
    output.status(tutorial.confirmed)


@command(
    app,
    "mqtool offset receive",
    effect=Effect.CHANGES,
    without=("protocol", "partitions", "prefetch", "auto_ack", "raw", "as_json", "template", "pretty", "into"),
    instead={"dialect": DialectOfStreams},
)
def receive(stream: StreamOptions, receiving: ReceivingOptions, broker: TutorialBroker) -> None:
    """Read up to the marker, and store every tenth offset."""
    tutorial = TRACKING[dialect_of(broker)]
    offsets: list[int] = []
    access = access_to(broker)
    stopping.limit_time(receiving.timeout)
    with access.stream_channel(stream.port) as channel:
        target = channel.declare(stream_to_read(stream, tutorial.stream, channel, access))
        start = lesson.next_offset(channel, target, tutorial.subscriber)
        deliveries = lesson.receive(channel, target, tutorial.subscriber, start, receiving.settings())
        with consuming(receiving, channel, tutorial.started):
            for delivery in deliveries:
                if not offsets:
                    output.show(tutorial.first)
                offsets = [*offsets[:1], delivery.delivery_tag]
    if offsets:
        output.show(tutorial.done.format(first=offsets[0], last=offsets[-1]))
