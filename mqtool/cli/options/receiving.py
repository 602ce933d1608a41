"""How to consume, when to stop, and how to print."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from mqtool.amqp import STREAMING, Channel
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli.display import output
from mqtool.cli.display.output import DeliveryWriter
from mqtool.cli.options.values import DURATION
from mqtool.errors import UsageError
from mqtool.message import Delivery


class Receiving(NamedTuple):
    """How to consume, when to stop, and how to print."""

    limit: Annotated[
        int | None,
        typer.Option("--count", "-c", min=1, help="Stop after N messages", rich_help_panel="Receiving"),
    ] = None
    idle_timeout: Annotated[
        float | None,
        typer.Option(help="Stop after this long without a message", rich_help_panel="Receiving", **DURATION),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(help="Total time limit (exit 124)", rich_help_panel="Receiving", **DURATION),
    ] = None
    prefetch: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Deliveries to hold unacknowledged; 0 for no limit", rich_help_panel="Receiving"
        ),
    ] = None
    auto_ack: Annotated[
        bool,
        typer.Option(
            "--auto-ack",
            help="Acknowledge on delivery: a crash can lose messages",
            rich_help_panel="Receiving",
        ),
    ] = False
    raw: Annotated[bool, typer.Option("--raw", help="Print bodies only, one per line", rich_help_panel="Printing")] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print messages as NDJSON", rich_help_panel="Printing")] = (
        False
    )
    template: Annotated[
        str | None,
        typer.Option("--format", "-F", help="Print by a template (mqtool help output)", rich_help_panel="Printing"),
    ] = None
    ready_file: Annotated[Path | None, typer.Option(help="Create FILE once consuming", rich_help_panel="Receiving")] = (
        None
    )

    def settings(self, default: ReceivingSettings = STREAMING) -> ReceivingSettings:
        """How the channel shall consume."""
        return replace(
            default,
            prefetch=default.prefetch if self.prefetch is None else self.prefetch,
            auto_ack=self.auto_ack,
            count=self.limit,
            idle_timeout=self.idle_timeout,
            timeout=self.timeout,
        )

    def writer(self, line: Callable[[Delivery], str], *, queue_is_ours: bool = False) -> DeliveryWriter:
        """Prints deliveries as the options say, else as the command's own line with the body behind it.

        Args:
            queue_is_ours: what we do not print nobody will get, so there is no need to be careful with pipes.

        Raises:
            UsageError: the options contradict each other, or the ready file could not be created.
        """
        if self.ready_file is not None and not self.ready_file.parent.is_dir():
            raise UsageError(f"cannot create the ready file {self.ready_file}: its directory does not exist")
        hand_over = not self.auto_ack and not queue_is_ours
        return DeliveryWriter(line, raw=self.raw, as_json=self.as_json, template=self.template, hand_over=hand_over)

    def print_all(self, channel: Channel, deliveries: Iterator[Delivery], write: DeliveryWriter, waiting: str) -> None:
        """Print deliveries to the end of them; asking for the next one acknowledges the one printed.

        Raises:
            ReaderGone: nobody reads what we print any more.
        """
        with self.printing(channel, waiting):
            for delivery in deliveries:
                write(delivery)

    @contextmanager
    def printing(self, channel: Channel, waiting: str) -> Iterator[None]:
        """Say, now that we consume, that we wait: to the person, and to whoever watches the ready file. Stop when the
        reader of our stdout goes away.

        Raises:
            ReaderGone: it did.
        """
        output.status(waiting)
        output.create_ready_file(self.ready_file)
        reader = output.Reader(on_gone=channel.stop)
        yield
        reader.check()
