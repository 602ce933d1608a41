"""How to consume, when to stop, and how to print."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from typer import Option

from mqtool.amqp import STREAMING
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli.display.received import DeliveryWriter
from mqtool.cli.groups import in_panel
from mqtool.cli.options.values import DURATION
from mqtool.message import Delivery


@in_panel("Printing")
class Printing(NamedTuple):
    """How to print messages, and where."""

    raw: Annotated[bool, Option(help="Print bodies only, one per line")] = False
    as_json: Annotated[bool, Option("--json", help="Print messages as NDJSON")] = False
    template: Annotated[str | None, Option("--format", "-F", help="Print by a template (mqtool help output)")] = None
    pretty: Annotated[bool, Option(help="Indent JSON bodies")] = False
    into: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="Append to FILE; a HUP signal opens it again")
    ] = None

    @property
    def has_form(self) -> bool:
        """Whether the command's own lines are not wanted."""
        return self.raw or self.as_json or self.template is not None

    def redirect(self) -> None:
        """Have stdout be the file, if there is one.

        Raises:
            UsageError: it cannot be opened.
        """
        if self.into is not None:
            from mqtool.cli.display.appending import append_to

            append_to(self.into)

    def writer(self, line: Callable[[Delivery], str] | str, *, hand_over: bool = False) -> DeliveryWriter:
        """Prints deliveries as the options say, else in the command's own lines. Raises as DeliveryWriter does."""
        return DeliveryWriter(
            line, raw=self.raw, as_json=self.as_json, template=self.template, pretty=self.pretty, hand_over=hand_over
        )


@in_panel("Receiving")
class Receiving(NamedTuple):
    """How to consume, when to stop, and how to print."""

    printing: Printing
    limit: Annotated[int | None, Option("--count", "-c", "-n", min=1, help="Stop after N messages")] = None
    idle_timeout: Annotated[float | None, Option(help="Stop after this long without a message", **DURATION)] = None
    timeout: Annotated[float | None, Option(help="Total time limit (exit 124)", **DURATION)] = None
    prefetch: Annotated[
        int | None, Option(min=0, max=65535, help="Deliveries to hold unacknowledged; 0 for no limit")
    ] = None
    auto_ack: Annotated[bool, Option(help="Acknowledge on delivery: a crash can lose messages")] = False
    ready_file: Annotated[Path | None, Option(help="Create FILE once consuming")] = None

    def settings(self, default: ReceivingSettings = STREAMING) -> ReceivingSettings:
        """How the channel is to consume."""
        return default._replace(
            prefetch=default.prefetch if self.prefetch is None else self.prefetch,
            auto_ack=self.auto_ack,
            count=self.limit,
            idle_timeout=self.idle_timeout,
            timeout=self.timeout,
        )
