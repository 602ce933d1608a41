"""Options of the commands for streams: the stream, its settings, and the stream dialect."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mqtool.cli.completion import names_of
from mqtool.cli.options.broker_options import BrokerOptions
from mqtool.cli.options.queue_options import Declare, StreamPort
from mqtool.cli.values import argument_option, parsed
from mqtool.errors import UsageError
from mqtool.topology import Stream
from mqtool.tutorials.stream_dialects import StreamDialect


def _dialect(text: str) -> StreamDialect:
    """Parse a stream dialect. Of a value such as go-classic, which MQTOOL_DIALECT may contain, only `go` is used."""
    try:
        return StreamDialect(text.partition("-")[0])
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(StreamDialect)}") from None


DialectOfStreams = Annotated[
    Any | None,
    typer.Option(
        "--dialect",
        parser=parsed(_dialect),
        metavar="LANGUAGE",
        help="python, go, java, dotnet, javascript, rust or elixir",
        show_default=str(StreamDialect.PYTHON),
        envvar="MQTOOL_DIALECT",
        rich_help_panel="Topology",
        autocompletion=lambda: [*StreamDialect],
    ),
]


def dialect_of(broker: BrokerOptions) -> StreamDialect:
    """Return the stream dialect chosen with --dialect (see DialectOfStreams); by default, Python's."""
    dialect: Any = broker.dialect
    return dialect or StreamDialect.PYTHON


@dataclass(kw_only=True, eq=False, repr=False)
class StreamOptions:
    """Options for a stream's name and settings, and for the broker's stream port."""

    queue: Annotated[
        str | None,
        typer.Option(
            "--queue",
            "-q",
            help="Stream",
            show_default="the tutorial's",
            rich_help_panel="Topology",
            metavar="QUEUE",
            autocompletion=names_of("queues"),
        ),
    ] = None
    arguments: Annotated[
        list[Any] | None, argument_option("Setting of the declaration, such as max-age=7D", rich_help_panel="Topology")
    ] = None
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=255, metavar="N", help="Declare a super stream with N partitions", rich_help_panel="Topology"
        ),
    ] = None
    declare: Declare = None
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
