"""What the official tutorials on streams declare and print, in each language. https://www.rabbitmq.com/tutorials"""

from enum import StrEnum
from typing import NamedTuple

from mqtool.topology import Stream


class StreamDialect(StrEnum):
    """Whose names, settings and lines to use."""

    PYTHON = "python"
    GO = "go"
    JAVA = "java"
    DOTNET = "dotnet"
    JAVASCRIPT = "javascript"
    RUST = "rust"


class Hello(NamedTuple):
    """Tutorial 1.

    Attributes:
        stores_octets: it stores the body alone, and not as AMQP 1.0.
        received: may have the places {body}, {queue} and {offset}.
    """

    stream: Stream
    body: bytes
    sent: str
    received: str
    waiting: str
    stores_octets: bool = False


class Tracking(NamedTuple):
    """Tutorial 2: the names, the bodies of the messages and of the last, and the lines in the order they are printed.

    Attributes:
        body, marker: may have the place {number}.
        done: has the places {first} and {last}.
    """

    stream: Stream
    subscriber: str
    body: str = "hello"
    marker: str = "marker"
    publishing: str = "Publishing 100 messages..."
    confirmed: str = "Messages confirmed."
    started: str = "Started consuming..."
    first: str = "First message received."
    done: str = "Done consuming, first offset {first}, last offset {last}."


def _stream(name: str, gigabytes: int | None) -> Stream:
    return Stream(name, {} if gigabytes is None else {"max-length-bytes": gigabytes * 1_000_000_000})


_NAME = "offset-tracking-tutorial"

HELLO = {
    StreamDialect.PYTHON: Hello(
        _stream("hello-python-stream", 5),
        b"Hello, World!",
        " [x] {body} message sent",
        "Got message: {body!b} from stream {queue}",
        "Press control + C to close",
        stores_octets=True,
    ),
    StreamDialect.GO: Hello(
        _stream("hello-go-stream", 2),
        b"Hello world",
        " [x] '{body}' Message sent",
        "Stream: {queue} - Received message: [{body}]",
        " [x] Waiting for messages. enter to close the consumer",
    ),
    StreamDialect.JAVA: Hello(
        _stream("hello-java-stream", 5),
        b"Hello, World!",
        " [x] '{body}' message sent",
        "Received message: {body}",
        " [x]  Press Enter to close the consumer...",
    ),
    StreamDialect.DOTNET: Hello(
        _stream("hello-stream", 5),
        b"Hello, World",
        " [x] Sent '{body}'",
        "Stream: {queue} - Received message: {body}",
        " [x] Press any key to exit",
    ),
    StreamDialect.JAVASCRIPT: Hello(
        _stream("hello-nodejs-stream", 5),
        b"Test message",
        "Sending a message...",
        "Received message {body}",
        "Declaring the consumer with offset...",
    ),
    StreamDialect.RUST: Hello(
        _stream("hello-rust-stream", 5),
        b"Hello, World!",
        "Sent message to stream: hello-rust-stream",
        'Got message: Some(\n    "{body}",\n) with offset: {offset}',
        "Press any key to close the consumer",
    ),
}
TRACKING = {
    StreamDialect.PYTHON: Tracking(
        _stream("stream-offset-tracking-python", 2),
        "subscriber_1",
        "hello: {number}",
        "marker: {number}",
        "Publishing 100 messages",
        "Messages confirmed: true",
        "Started consuming: Press control +C to close",
        "First message received",
        "Done consuming first_offset: {first} last_offset {last} ",
    ),
    StreamDialect.GO: Tracking(_stream("stream-offset-tracking-go", 2), _NAME),
    StreamDialect.JAVA: Tracking(
        _stream("stream-offset-tracking-java", 1), _NAME, confirmed="Messages confirmed: true."
    ),
    StreamDialect.DOTNET: Tracking(
        _stream("stream-offset-tracking-dotnet", None),
        _NAME,
        done="Done consuming, first offset {first}, last offset {last}",
    ),
    StreamDialect.JAVASCRIPT: Tracking(
        _stream("stream-offset-tracking-javascript", None),
        _NAME,
        "hello {number}",
        publishing="Publishing 100 messages",
        confirmed="done!",
        started="Start consuming...",
        first="First message received",
        done="Done consuming, first offset was {first}, last offset was {last}",
    ),
    StreamDialect.RUST: Tracking(
        _stream("stream-offset-tracking-rust", 2),
        "consumer-1",
        "hello{number}",
        "marker{number}",
        "Publishing 100 messages",
        "Messages confirmed: True",
        "Started consuming",
        "First message received",
        "Done consuming first_offset: {first} last_offset: {last}  ",
    ),
}
