"""Which stream, and how to reach it."""

from typing import Annotated, Any, NamedTuple

from typer import Option

from mqtool.cli.groups import in_panel
from mqtool.cli.options.connection import Broker
from mqtool.cli.options.values import argument_option
from mqtool.errors import UsageError
from mqtool.topology import Stream
from mqtool.tutorials.stream_dialects import StreamDialect


def _dialect(text: str) -> StreamDialect:
    """MQTOOL_DIALECT may name one of the other tutorials, such as go-classic; on streams, each language has one."""
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
        help="Whose tutorial: python, go, java, dotnet, javascript, rust",
        show_default=str(StreamDialect.PYTHON),
        envvar="MQTOOL_DIALECT",
        rich_help_panel="Topology",
        autocompletion=lambda: [*StreamDialect],
    ),
]
StreamPort = Annotated[
    int | None,
    Option(
        "--stream-port",
        min=1,
        max=65535,
        help="The broker's port for streams",
        show_default="5552, with TLS 5551",
        envvar="MQTOOL_STREAM_PORT",
        rich_help_panel="Broker",
    ),
]


def dialect_of(broker: Broker) -> StreamDialect:
    """Whose tutorial it is, of a command with DialectOfStreams."""
    dialect: Any = broker.dialect
    return dialect or StreamDialect.PYTHON


@in_panel("Topology")
class StreamOptions(NamedTuple):
    """Which stream, and how to reach it."""

    queue: Annotated[str | None, Option("-q", help="Stream", show_default="the tutorial's")] = None
    arguments: Annotated[list[Any] | None, argument_option("Setting to create it with, such as max-age=7D")] = None
    partitions: Annotated[
        int | None, Option(min=1, max=255, metavar="N", help="Create it as a super stream of N partitions")
    ] = None
    port: StreamPort = None

    def of(self, default: Stream) -> Stream:
        """The tutorial's stream, with what the options change."""
        if self.queue == "":
            raise UsageError("the stream's name is empty", "leave --queue out to use the tutorial's")
        given = {name.removeprefix("x-"): value for name, value in self.arguments or []}
        name = self.queue or default.name
        # As `rabbitmq-streams add_super_stream` names them.
        partitions = [f"{name}-{number}" for number in range(self.partitions or 0)]
        return Stream(name, {**default.arguments, **given}, partitions)
