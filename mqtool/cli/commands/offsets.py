"""mqtool offset, mqtool offset-tracking."""

from typing import Annotated

from typer import Argument

from mqtool.cli.display import output
from mqtool.cli.options import Broker, Commands, Receiving
from mqtool.cli.options.streams import DialectOfStreams, StreamOptions, StreamPort, dialect_of
from mqtool.cli.pipe.receiving import announced
from mqtool.errors import MqtoolError, NotConfirmed, UsageError
from mqtool.inspection.listing import counted
from mqtool.inspection.stream_readers import Places
from mqtool.message import Confirmation, Message
from mqtool.tutorials.stream_dialects import TRACKING

app = Commands()
offset = app.group("offset", "Show or change how far a named reader of a stream came.")
tracking = app.group("offset-tracking", "Store and query offsets of a stream (stream tutorial 2).")

StreamName = Annotated[str, Argument(help="Stream", metavar="STREAM")]
ReaderName = Annotated[str, Argument(help="Name of the reader, as for --track", metavar="NAME")]


@offset.command("mqtool offset show app reports", dialect=None, strict=None)
def show(stream: StreamName, name: ReaderName, broker: Broker, port: StreamPort = None) -> None:
    """Print the offset of the last message that a reader has read.

    For a super stream, that of each partition.
    """
    with broker.access().stream_channel(port) as channel:
        found = {each: channel.stored_offset(each, name) for each in channel.streams_of(stream)}
        stored = {each: offset for each, offset in found.items() if offset is not None}
        seen = {each: Places(channel.offsets_of(each), {name: offset}) for each, offset in found.items()}
    if not stored:
        raise MqtoolError(
            f"stream {stream!r} has no offset under {name!r}",
            "a reader stores one with --track; it starts where --offset says until then",
        )
    for each, offset in stored.items():
        output.show(str(offset) if each == stream else f"{each}	{offset}")
    lags = [(each.lag(name), len(each.offsets)) for each in seen.values()]  # without an offset, all is to be read
    if behind := sum(there if lag is None else lag for lag, there in lags):
        output.status(f"{counted(behind)} behind")
    if missed := sum(each.missed(name) for each in seen.values()):
        output.warning(f"the stream has dropped {counted(missed)} that {name!r} had not read")


@offset.command("mqtool offset set app reports 41999", name="set", dialect=None, strict=None)
def set_(
    stream: StreamName,
    name: ReaderName,
    number: Annotated[int, Argument(min=0, help="Offset of the last message read", metavar="N")],
    broker: Broker,
    port: StreamPort = None,
) -> None:
    """Have a reader continue after an offset."""
    with broker.access().stream_channel(port) as channel:
        if (partitions := channel.streams_of(stream)) != [stream]:
            raise UsageError(f"{stream!r} is a super stream", f"name one of its partitions, such as {partitions[0]}")
        channel.store_offset(stream, name, number)
    output.status(f"{name!r} continues after offset {number:,} of stream {stream!r}")


@offset.command("mqtool offset reset app reports", dialect=None, strict=None)
def reset(stream: StreamName, name: ReaderName, broker: Broker, port: StreamPort = None) -> None:
    """Have a reader start again, where its --offset says."""
    with broker.access().stream_channel(port) as channel:
        for each in channel.streams_of(stream):
            channel.forget_offset(each, name)
    output.status(f"{name!r} starts again in stream {stream!r}")


@tracking.command("mqtool offset-tracking send", dialect=DialectOfStreams, partitions=None)
def send(stream: StreamOptions, broker: Broker) -> None:
    """Append 100 messages, the last of which is the marker."""
    from mqtool.tutorials import stream_offset_tracking as lesson

    tutorial = TRACKING[dialect_of(broker)]
    last = lesson.MESSAGES - 1
    bodies = [tutorial.body.format(number=number) for number in range(last)] + [tutorial.marker.format(number=last)]
    with broker.access().stream_channel(stream.port) as channel:
        output.status(tutorial.publishing)
        receipts = lesson.send(channel, stream.of(tutorial.stream), (Message(body.encode()) for body in bodies))
        refused = [receipt for receipt in receipts if receipt.confirmation is not Confirmation.CONFIRMED]
    if refused:
        raise NotConfirmed(f"{len(refused)} of {lesson.MESSAGES} messages were not confirmed: {refused[0].reason}")
    output.status(tutorial.confirmed)


@tracking.command(
    "mqtool offset-tracking receive",
    dialect=DialectOfStreams,
    partitions=None,
    prefetch=None,
    auto_ack=None,
    raw=None,
    as_json=None,
    template=None,
    pretty=None,
    into=None,
)
def receive(stream: StreamOptions, receiving: Receiving, broker: Broker) -> None:
    """Read on up to the marker, and store every tenth offset."""
    from mqtool.tutorials import stream_offset_tracking as lesson

    tutorial = TRACKING[dialect_of(broker)]
    offsets: list[int] = []
    with broker.access().stream_channel(stream.port) as channel:
        target = channel.declare(stream.of(tutorial.stream))
        start = lesson.next_offset(channel, target, tutorial.subscriber)
        deliveries = lesson.receive(channel, target, tutorial.subscriber, start, receiving.settings())
        with announced(receiving.ready_file, channel, tutorial.started):
            for delivery in deliveries:
                if not offsets:
                    output.show(tutorial.first)
                offsets = [*offsets[:1], delivery.delivery_tag]
    if offsets:
        output.show(tutorial.done.format(first=offsets[0], last=offsets[-1]))
