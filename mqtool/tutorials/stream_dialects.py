"""The streams, messages and output of the official stream tutorials, in each language."""

from enum import StrEnum
from typing import NamedTuple

from mqtool.topology import Stream


class StreamDialect(StrEnum):
    """A set of stream tutorials. It determines the names, settings and lines that commands use."""

    PYTHON = "python"
    GO = "go"
    JAVA = "java"
    DOTNET = "dotnet"
    JAVASCRIPT = "javascript"
    RUST = "rust"
    ELIXIR = "elixir"


class Hello(NamedTuple):
    """The names and output lines of one language's stream tutorial 1.

    Attributes:
        stores_bodies: True if the tutorial stores only the body of a message, without AMQP 1.0 sections.
        received: the line for a received message; may contain {body}, {queue} and {offset}.
    """

    stream: Stream
    body: bytes
    sent: str
    received: str
    waiting: str
    stores_bodies: bool = False


class DialectTracking(NamedTuple):
    """Stream tutorial 2: names, message bodies (`marker` is the last), and lines in the order they are printed.

    Attributes:
        body, marker: may contain {number}.
        done: the last line; contains {first} and {last}, the first and the last offset.
        stores_bodies: see Hello.
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
    stores_bodies: bool = False


def _stream(name: str, gigabytes: int | None) -> Stream:
    return Stream(name, {} if gigabytes is None else {"max-length-bytes": gigabytes * 1_000_000_000})


_TRACKING_NAME = "offset-tracking-tutorial"

HELLO = {
    StreamDialect.PYTHON: Hello(
        _stream("hello-python-stream", 5),
        b"Hello, World!",
        " [x] {body} message sent",
        "Got message: {body!b} from stream {queue}",
        "Press control + C to close",
        stores_bodies=True,
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
    StreamDialect.ELIXIR: Hello(
        _stream("my_stream", None),
        b"Hello, World!",
        'Published: "{body}"',
        'Received: "{body}"',
        " [x] Waiting for messages. Press enter to close the consumer",
        stores_bodies=True,
    ),
}
TRACKING = {
    StreamDialect.PYTHON: DialectTracking(
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
    StreamDialect.GO: DialectTracking(_stream("stream-offset-tracking-go", 2), _TRACKING_NAME),
    StreamDialect.JAVA: DialectTracking(
        _stream("stream-offset-tracking-java", 1), _TRACKING_NAME, confirmed="Messages confirmed: true."
    ),
    StreamDialect.DOTNET: DialectTracking(
        _stream("stream-offset-tracking-dotnet", None),
        _TRACKING_NAME,
        done="Done consuming, first offset {first}, last offset {last}",
    ),
    StreamDialect.JAVASCRIPT: DialectTracking(
        _stream("stream-offset-tracking-javascript", None),
        _TRACKING_NAME,
        "hello {number}",
        publishing="Publishing 100 messages",
        confirmed="done!",
        started="Start consuming...",
        first="First message received",
        done="Done consuming, first offset was {first}, last offset was {last}",
    ),
    StreamDialect.RUST: DialectTracking(
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
    StreamDialect.ELIXIR: DialectTracking(
        _stream("stream-offset-tracking-elixir", None), _TRACKING_NAME, stores_bodies=True
    ),
}
