"""mqtool wait."""

from typing import Annotated

from typer import Option

from mqtool.broker.waiting import connect_within
from mqtool.cli.display import output
from mqtool.cli.options import DURATION, Broker, Commands

app = Commands()


@app.command("mqtool wait --timeout 30s")
def wait(
    options: Broker,
    timeout: Annotated[float, Option(help="Total time limit (exit 124)", **DURATION)] = "30s",  # type: ignore[assignment]
) -> None:
    """Wait until the broker accepts connections."""
    access = options.access()
    connect_within(timeout, access.connect).close()
    output.status(f"{access.address} is ready")
