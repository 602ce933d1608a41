"""Where the management API of the broker is."""

from mqtool.cli.options import Broker
from mqtool.management import Management

_PORT = 15672


def management_of(broker: Broker, url: str | None = None, patience: float = 5.0) -> Management:
    """The API at that URL; else that of the broker which `mqtool broker up` started; else port 15672 beside the broker.

    Args:
        patience: seconds to wait for an answer.
    """
    address = broker.addresses()[0]
    if url is None and broker.url is None:
        from mqtool.broker import state

        started = state.load()
        url = str(started.details["management"]) if started and "management" in started.details else None
    host = f"[{address.host}]" if ":" in address.host else address.host
    return Management((url or f"http://{host}:{_PORT}").rstrip("/"), address.user, address.password, patience)
