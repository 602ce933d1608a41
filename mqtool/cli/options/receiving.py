"""How to consume, when to stop, and how to print."""

from pathlib import Path
from typing import Annotated, NamedTuple

from typer import Option

from mqtool.amqp import STREAMING
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli.groups import in_panel
from mqtool.cli.options.values import DURATION

OutputFile = Annotated[
    Path | None,
    Option(
        "--output", "-o", metavar="FILE", help="Append to FILE; a HUP signal opens it again", rich_help_panel="Printing"
    ),
]


Raw = Annotated[bool, Option("--raw", help="Print bodies only, one per line", rich_help_panel="Printing")]
AsJson = Annotated[bool, Option("--json", help="Print messages as NDJSON", rich_help_panel="Printing")]
Template = Annotated[
    str | None, Option("--format", "-F", help="Print by a template (mqtool help output)", rich_help_panel="Printing")
]
Pretty = Annotated[bool, Option("--pretty", help="Indent JSON bodies", rich_help_panel="Printing")]


class Printing(NamedTuple):
    """How to print messages, and where."""

    raw: Raw = False
    as_json: AsJson = False
    template: Template = None
    pretty: Pretty = False
    into: OutputFile = None


@in_panel("Receiving")
class Receiving(NamedTuple):
    """How to consume, when to stop, and how to print."""

    limit: Annotated[int | None, Option("--count", "-c", "-n", min=1, help="Stop after N messages")] = None
    idle_timeout: Annotated[float | None, Option(help="Stop after this long without a message", **DURATION)] = None
    timeout: Annotated[float | None, Option(help="Total time limit (exit 124)", **DURATION)] = None
    prefetch: Annotated[
        int | None, Option(min=0, max=65535, help="Deliveries to hold unacknowledged; 0 for no limit")
    ] = None
    auto_ack: Annotated[bool, Option(help="Acknowledge on delivery: a crash can lose messages")] = False
    raw: Raw = False
    as_json: AsJson = False
    template: Template = None
    pretty: Pretty = False
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
