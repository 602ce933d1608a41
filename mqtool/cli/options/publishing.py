"""What every command takes that publishes messages."""

from typing import Annotated, NamedTuple

from typer import Argument

from mqtool.cli.options.connection import Broker
from mqtool.cli.options.delays import DelayOptions
from mqtool.cli.options.messages import MessageOptions

Words = Annotated[list[str] | None, Argument(help="Message words (default: stdin, or 'Hello World!')")]


class Publishing(NamedTuple):
    """What to publish, when it is to arrive, and which broker to publish to."""

    options: MessageOptions
    delays: DelayOptions
    broker: Broker
    words: Words = None
