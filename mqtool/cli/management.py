"""Where the management API of the broker is."""

from mqtool.amqp import Address, parse_addresses
from mqtool.cli.options import Broker
from mqtool.errors import Unavailable
from mqtool.management import Management, listens_on

_AMQP_PORT, _PORT = 5672, 15672


def management_of(broker: Broker, url: str | None = None, patience: float = 5.0) -> Management:
    """The API at that URL; else that of the broker, if mqtool started it; else port 15672 beside the broker.

    Args:
        patience: seconds to wait for an answer.

    Raises:
        Unavailable: on port 15672 there is another broker's.
    """
    address = broker.addresses()[0]
    url = url or _of_started(address)
    if url is not None:
        return Management(url.rstrip("/"), address.user, address.password, patience)
    host = f"[{address.host}]" if ":" in address.host else address.host
    guessed = Management(f"http://{host}:{_PORT}", address.user, address.password, patience)
    if address.port != _AMQP_PORT and not listens_on(guessed, address.port):
        # Several brokers may run on one machine; to answer for the wrong one would be worse than no answer.
        raise Unavailable(
            f"the management API at {guessed.url} is not that of the broker at {address}",
            "name the right one with --management",
        )
    return guessed


def _of_started(address: Address) -> str | None:
    from mqtool.broker import state

    for started in state.load_all():
        known = parse_addresses(started.url)[0]
        same_host = known.host == address.host or {known.host, address.host} <= {"localhost", "127.0.0.1"}
        if same_host and known.port == address.port and "management" in started.details:
            return str(started.details["management"])
    return None
