"""mqtool send-stream, mqtool receive-stream."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Option

from mqtool.cli.access import Access
from mqtool.cli.groups import in_panel
from mqtool.cli.options import OFFSET, Broker, Commands, Publishing, Receiving
from mqtool.cli.options.streams import DialectOfStreams, StreamOptions, dialect_of
from mqtool.cli.pipe.publishing import publish_to_stream
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.message import Delivery, Message, Receipt
from mqtool.tutorials.stream_dialects import HELLO

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

app = Commands()


@in_panel("Messages")
class Appending(NamedTuple):
    """How to append to a stream."""

    routing_key: Annotated[str | None, Option("-r", help="Key that chooses the partition (default: each in turn)")] = (
        None
    )
    filter_value: Annotated[
        str | None, Option("--filter", metavar="VALUE", help="Store VALUE for readers with --filter (RabbitMQ 3.13)")
    ] = None


@in_panel("Receiving")
class Reading(NamedTuple):
    """What to read of a stream."""

    offset: Annotated[Any, Option(help="Start: first, last, next, N, a time, or an age", **OFFSET)] = "first"
    track: Annotated[str | None, Option(metavar="NAME", help="Continue where NAME stopped, and store its offset")] = (
        None
    )
    single_active: Annotated[bool, Option(help="One reader per --track name at a time (RabbitMQ 3.11)")] = False
    filters: Annotated[
        list[str] | None, Option("--filter", metavar="VALUE", help="Only chunks with this value (RabbitMQ 3.13)")
    ] = None


@app.command(
    "mqtool send-stream 'Hello, World!'",
    "tail -f app.log | mqtool send-stream -l -q app",
    "mqtool send-stream -q orders --partitions 3 -r ann 'two books'",
    dialect=DialectOfStreams,
    delay=None,
    at=None,
    via=None,
    mandatory=None,
    persistent=None,
)
def send_stream(stream: StreamOptions, publishing: Publishing, appending: Appending) -> None:
    """Append messages to a stream (stream tutorial 1)."""
    tutorial = HELLO[dialect_of(publishing.broker)]

    def publisher(channel: "StreamChannel", messages: Iterable[Message | None]) -> Iterator[Receipt]:
        from mqtool.tutorials import stream_hello_world

        return stream_hello_world.send(channel, stream.of(tutorial.stream), messages)

    settings: dict[str, Any] = {"confirm_timeout": publishing.options.confirm_timeout}
    if tutorial.stores_octets and stream.queue is None:
        settings["encode"] = _octets
    publish_to_stream(
        publishing,
        publisher,
        tutorial.sent,
        opened=_opened(stream, [appending.filter_value] if appending.filter_value else [], **settings),
        routing_key=appending.routing_key,
        default=tutorial.body,
    )


@app.command(
    "mqtool receive-stream",
    "mqtool receive-stream -q app --offset 5m --raw",
    "mqtool receive-stream -q app --track reports | ./report",
    dialect=DialectOfStreams,
    prefetch=None,
    auto_ack=None,
)
def receive_stream(stream: StreamOptions, receiving: Receiving, broker: Broker, reading: Reading) -> None:
    """Read a stream, from any offset (stream tutorial 1)."""
    tutorial = HELLO[dialect_of(broker)]

    def consumer(channel: "StreamChannel") -> Iterator[Delivery]:
        from mqtool.tutorials import stream_hello_world

        return stream_hello_world.receive(
            channel, stream.of(tutorial.stream), reading.offset, receiving.settings(), reading.track
        )

    print_deliveries(
        receiving,
        broker,
        consumer,
        tutorial.received,
        opened=_opened(stream, reading.filters or [], single_active=reading.single_active),
        waiting=tutorial.waiting,
    )


def _opened(
    stream: StreamOptions, filters: list[str], **settings: Any
) -> Callable[[Access], "AbstractContextManager[StreamChannel]"]:
    return lambda access: access.stream_channel(stream.port, filters=filters, **settings)


def _octets(message: Message) -> bytes:
    """As Python's tutorial stores it: the body alone, unless there is more to a message than that."""
    if not message.properties and message.message_id is None:
        return message.body
    from mqtool.streams.entries import encode

    return encode(message)
