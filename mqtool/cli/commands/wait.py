"""mqtool wait."""

from typing import Annotated

import typer

from mqtool.broker.readiness import connect_within
from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import BrokerOptions
from mqtool.cli.values import DURATION

app = typer.Typer()


@command(app, "mqtool wait --timeout 30s", effect=Effect.READS, heading="Broker")
def wait(
    options: BrokerOptions,
    timeout: Annotated[float, typer.Option(help="Total time limit (exit 124)", **DURATION)] = 30.0,
) -> None:
    """Wait until the broker accepts connections."""
    access = access_to(options)
    stopping.limit_time(timeout)
    connect_within(timeout, access.connect).close()
    output.status(f"{access.address} is ready")
