"""Options for receiving, selecting and printing messages."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mqtool.amqp import STREAMING
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli.command_line import DURATION, Option, OptionGroup
from mqtool.cli.display.delivery_writer import DeliveryWriter, append_to, start_new_line
from mqtool.message import Delivery
from mqtool.offsets import parse_offset

#: Settings of an option that takes a stream offset.
OFFSET = dict[str, Any](parser=parse_offset, metavar="OFFSET")
#: --match: whether a message must have all or any of the headers.
Match = Annotated[Literal["all", "any"], Option(help="Match all of the headers, or any of them")]


def _condition(text: str) -> Any:
    from mqtool.where import parse  # only with --where, because it takes a few milliseconds to import

    return parse(text)


#: --where; the value is a mqtool.where.Where.
Where = Annotated[
    Any | None,
    Option("--where", parser=_condition, metavar="CONDITION", help="Only messages that match (mqtool help where)"),
]


class Printing(OptionGroup):
    """Options for printing messages."""

    PANEL: ClassVar = "Printing"

    raw: Annotated[bool, Option(help="Print bodies only, one per line")] = False
    as_json: Annotated[bool, Option("--json", help="Print messages as NDJSON")] = False
    template: Annotated[str | None, Option("--format", "-F", help="Print with a template (mqtool help output)")] = None
    pretty: Annotated[bool, Option(help="Indent JSON bodies")] = False
    into: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Append to FILE; reopen it on the signal HUP")
    ] = None

    @property
    def has_form(self) -> bool:
        """True if an option selects a format other than the command's default output."""
        return self.raw or self.as_json or self.template is not None

    def redirect(self) -> None:
        """Append output to the file given by --output, if any; if stdout is a file, start on a new line.

        Raises:
            UsageError: the file cannot be opened.
        """
        if self.into is not None:
            append_to(self.into)
        else:
            start_new_line()

    def writer(self, line: Callable[[Delivery], str] | str, *, wait_for_reader: bool = False) -> DeliveryWriter:
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
            wait_for_reader=wait_for_reader,
        )


class Receiving(OptionGroup):
    """Options of receiving commands."""

    PANEL: ClassVar = "Receiving"

    printing: Printing
    limit: Annotated[int | None, Option("--count", "-c", "-n", min=1, help="Stop after N messages")] = None
    idle_timeout: Annotated[float | None, Option(help="Stop after this long without a message", **DURATION)] = None
    timeout: Annotated[float | None, Option(help="Total time limit (exit 124)", **DURATION)] = None
    prefetch: Annotated[
        int | None, Option(min=0, max=65535, help="Deliveries to hold unacknowledged; 0 for no limit")
    ] = None
    auto_ack: Annotated[bool, Option(help="Acknowledge on delivery: a crash can lose messages")] = False
    ready_file: Annotated[Path | None, Option(help="Create FILE once the command is consuming")] = None

    def settings(self, default: ReceivingSettings = STREAMING) -> ReceivingSettings:
        """Return the settings for Channel.consume(): the defaults with the options applied."""
        return default._replace(
            prefetch=default.prefetch if self.prefetch is None else self.prefetch,
            auto_ack=self.auto_ack,
            count=self.limit,
            idle_timeout=self.idle_timeout,
            timeout=self.timeout,
        )
