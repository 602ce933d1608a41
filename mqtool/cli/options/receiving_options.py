"""Options for receiving, selecting and printing messages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mqtool.amqp import STREAMING, Receiving
from mqtool.cli.display.delivery_writer import DeliveryWriter
from mqtool.cli.values import DURATION, parsed
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.offsets import parse_offset

#: Settings of an option that takes a stream offset.
OFFSET = dict[str, Any](parser=parsed(parse_offset), metavar="OFFSET")
#: --match: whether a message must have all or any of the headers.
Match = Annotated[Literal["all", "any"], typer.Option(help="Match all of the headers, or any of them")]


def _condition(text: str) -> Any:
    from mqtool.where import parse

    return parse(text)


UntilEmpty = Annotated[
    bool, typer.Option("--until-empty", help="Stop once no message is ready", rich_help_panel="Receiving")
]


#: --where; the value is a mqtool.where.Where.
WhereOption = Annotated[
    Any | None,
    typer.Option(
        "--where",
        parser=parsed(_condition),
        metavar="CONDITION",
        help="Select matching messages (see mqtool help where)",
    ),
]


def _condition_on_waiting(text: str) -> Any:
    """Parse a condition on messages that wait in a queue, which have not been received."""
    condition = _condition(text)
    if "timestamp" in condition.fields:
        raise UsageError(
            "messages in a queue have no 'timestamp', which is when a message was received",
            "properties.timestamp is the time that the sender has set, if any",
        )
    return condition


#: --where for messages that wait in a queue.
WhereWaiting = Annotated[
    Any | None,
    typer.Option(
        "--where",
        parser=parsed(_condition_on_waiting),
        metavar="CONDITION",
        help="Select matching messages (see mqtool help where)",
    ),
]


@dataclass(kw_only=True, eq=False, repr=False)
class PrintingOptions:
    """Options for printing messages."""

    raw: Annotated[bool, typer.Option("--raw", help="Print bodies only, one per line", rich_help_panel="Printing")] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print messages as NDJSON", rich_help_panel="Printing")] = (
        False
    )
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-F",
            help="Print with a template (see mqtool help output)",
            rich_help_panel="Printing",
            metavar="FORMAT",
        ),
    ] = None
    pretty: Annotated[bool, typer.Option("--pretty", help="Indent JSON bodies", rich_help_panel="Printing")] = False
    decompress: Annotated[
        bool, typer.Option("--decompress", help="Print gzip and zlib bodies decompressed", rich_help_panel="Printing")
    ] = False
    into: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Append messages to FILE; reopen it on SIGHUP",
            rich_help_panel="Printing",
        ),
    ] = None

    @property
    def has_form(self) -> bool:
        """True if an option selects a format other than the command's default output."""
        return self.raw or self.as_json or self.template is not None

    def writer(
        self, line: Callable[[Delivery], str] | str, *, wait_for_reader: bool = False, marks_redelivered: bool = False
    ) -> DeliveryWriter:
        """Return a writer for deliveries. It uses `line`, the command's own format, unless an option selects another.

        Raises:
            UsageError: the template has an unknown placeholder, or options contradict each other.
        """
        return DeliveryWriter(
            line,
            raw=self.raw,
            as_json=self.as_json,
            template=self.template,
            pretty=self.pretty,
            decompress=self.decompress,
            wait_for_reader=wait_for_reader,
            marks_redelivered=marks_redelivered,
        )


#: --timeout of commands with --exec.
TimeoutOfRuns = Annotated[
    float | None,
    typer.Option(
        help="Total time limit (exit 124); with --exec: limit of each run", rich_help_panel="Receiving", **DURATION
    ),
]


@dataclass(kw_only=True, eq=False, repr=False)
class ReceivingOptions:
    """Options of receiving commands."""

    printing: PrintingOptions
    limit: Annotated[
        int | None,
        typer.Option(
            "--count", "-c", "-n", min=1, help="Stop after N messages", rich_help_panel="Receiving", metavar="N"
        ),
    ] = None
    idle_timeout: Annotated[
        float | None, typer.Option(help="Stop if connected but idle this long", rich_help_panel="Receiving", **DURATION)
    ] = None
    timeout: Annotated[
        float | None, typer.Option(help="Total time limit (exit 124)", rich_help_panel="Receiving", **DURATION)
    ] = None
    prefetch: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Hold up to N unacknowledged messages; 0 for no limit",
            rich_help_panel="Receiving",
            metavar="N",
        ),
    ] = None
    auto_ack: Annotated[
        bool,
        typer.Option(
            "--auto-ack", help="Acknowledge on delivery; a crash can lose messages", rich_help_panel="Receiving"
        ),
    ] = False
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Create FILE once the command is consuming", rich_help_panel="Receiving", metavar="FILE"),
    ] = None

    def settings(self, default: Receiving = STREAMING) -> Receiving:
        """Return the settings for Channel.consume(): the defaults with the options applied."""
        return default._replace(
            prefetch=default.prefetch if self.prefetch is None else self.prefetch,
            auto_ack=self.auto_ack,
            count=self.limit,
            idle_timeout=self.idle_timeout,
            timeout=self.timeout,
        )
