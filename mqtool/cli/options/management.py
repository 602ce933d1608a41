"""Where the management API of the broker is."""

from typing import Annotated

import typer

from mqtool.amqp import Address, parse_addresses
from mqtool.cli.options import Broker
from mqtool.errors import Unavailable, UsageError
from mqtool.management import HOW_TO_ENABLE, PATIENCE, Management, listens_on

_AMQP_PORT, _PORT, _TLS_PORT = 5672, 15672, 15671

MANAGEMENT_VARIABLE = "MQTOOL_MANAGEMENT_URL"

ManagementUrl = Annotated[
    str | None,
    typer.Option(
        "--management",
        metavar="URL",
        help="The management API; else port 15672 of the broker.",
        envvar=MANAGEMENT_VARIABLE,
        rich_help_panel="Broker",
    ),
]


def management_of(broker: Broker, url: str | None = None, patience: tuple[float, float] = PATIENCE) -> Management:
    """The API at that URL; else that of the broker, if mqtool started it; else port 15672 beside the broker.

    Args:
        patience: seconds to wait for a connection, and for an answer.

    Raises:
        UsageError: the URL is none.
        Unavailable: on port 15672 there is another broker's.
    """
    address = broker.addresses()[0]
    url = url or _of_started(address)
    ca = None if broker.tls_ca is None else str(broker.tls_ca)
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"bad management URL {url!r}", "it looks like http://localhost:15672")
        return Management(url.rstrip("/"), address.user, address.password, patience, ca)
    host = f"[{address.host}]" if ":" in address.host else address.host
    # Where AMQP is encrypted, the password shall not go over the wire in clear.
    guess = f"https://{host}:{_TLS_PORT}" if address.tls else f"http://{host}:{_PORT}"
    guessed = Management(guess, address.user, address.password, patience, ca)
    if not address.tls and address.port != _AMQP_PORT and not listens_on(guessed, address.port):
        # Several brokers may run on one machine; to answer for the wrong one would be worse than no answer.
        raise Unavailable(f"the management API at {guessed.url} is not that of the broker at {address}", HOW_TO_ENABLE)
    return guessed


def _of_started(address: Address) -> str | None:
    from mqtool.broker import state

    for started in state.load_all():
        known = parse_addresses(started.url)[0]
        same_host = known.host == address.host or {known.host, address.host} <= {"localhost", "127.0.0.1"}
        if same_host and known.port == address.port and "management" in started.details:
            return str(started.details["management"])
    return None
