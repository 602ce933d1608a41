"""mqtool send-stream, mqtool receive-stream."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from mqtool.cli.access import Access
from mqtool.cli.options import OFFSET, Broker, Commands, OutputFile, Publishing, Receiving
from mqtool.cli.options.streams import DialectOfStreams, StreamOptions
from mqtool.cli.pipe.publishing import publish_to_stream
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.message import Delivery, Message, Receipt
from mqtool.tutorials.stream_dialects import HELLO, Hello, StreamDialect

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

app = Commands()

Filters = Annotated[
    list[str] | None,
    Option(
        "--filter", metavar="VALUE", help="Only chunks with this value (RabbitMQ 3.13)", rich_help_panel="Receiving"
    ),
]


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
def send_stream(
    stream: StreamOptions,
    publishing: Publishing,
    routing_key: Annotated[
        str | None,
        Option("-r", help="Key that chooses the partition (default: each in turn)", rich_help_panel="Messages"),
    ] = None,
    filter_value: Annotated[
        str | None,
        Option(
            "--filter",
            metavar="VALUE",
            help="Store VALUE for readers with --filter (RabbitMQ 3.13)",
            rich_help_panel="Messages",
        ),
    ] = None,
) -> None:
    """Append messages to a stream (stream tutorial 1)."""
    tutorial = _tutorial(publishing.broker)

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
        opened=_opened(stream, [filter_value] if filter_value else [], **settings),
        routing_key=routing_key,
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
def receive_stream(
    stream: StreamOptions,
    receiving: Receiving,
    broker: Broker,
    offset: Annotated[
        Any, Option(help="Start: first, last, next, N, a time, or an age", rich_help_panel="Receiving", **OFFSET)
    ] = "first",
    track: Annotated[
        str | None,
        Option(metavar="NAME", help="Continue where NAME stopped, and store its offset", rich_help_panel="Receiving"),
    ] = None,
    single_active: Annotated[
        bool, Option(help="One reader per --track name at a time (RabbitMQ 3.11)", rich_help_panel="Receiving")
    ] = False,
    filters: Filters = None,
    into: OutputFile = None,
) -> None:
    """Read a stream, from any offset (stream tutorial 1)."""
    tutorial = _tutorial(broker)

    def consumer(channel: "StreamChannel") -> Iterator[Delivery]:
        from mqtool.tutorials import stream_hello_world

        return stream_hello_world.receive(channel, stream.of(tutorial.stream), offset, receiving.settings(), track)

    print_deliveries(
        receiving,
        broker,
        consumer,
        tutorial.received,
        opened=_opened(stream, filters or [], single_active=single_active),
        waiting=tutorial.waiting,
        into=into,
    )


def _tutorial(broker: Broker) -> Hello:
    dialect: Any = broker.dialect  # which is another option here: see DialectOfStreams
    return HELLO[dialect or StreamDialect.PYTHON]


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
