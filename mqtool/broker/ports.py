"""Addresses and ports for brokers to listen on: loopback, and other addresses only on request."""

import random
import socket

from mqtool.errors import Unavailable

HOST = "127.0.0.1"
#: All addresses of this machine, with loopback.
EVERY = "0.0.0.0"  # noqa: S104  # not where we listen by default
AMQP = 5672
STREAMS = 5552


def addresses(listen: str | None) -> list[str]:
    """The addresses to listen on: loopback and, if given, one more."""
    return [listen] if listen == EVERY else [HOST, *([listen] if listen else [])]


def choose(wanted: int | None, usual: int | None = None, listen: str | None = None) -> int:
    """The wanted port; if None, the usual one if that is free, else any free port.

    Args:
        listen: one more address on which it must be free.

    Raises:
        Unavailable: the wanted port is taken.
    """
    for host in addresses(listen):
        if wanted is not None and not is_free(wanted, host):
            raise Unavailable(
                f"port {wanted} on {host} is taken", "choose another with --port, --management-port or --stream-port"
            )
    if wanted is not None:
        return wanted
    return usual if usual and all(is_free(usual, host) for host in addresses(listen)) else free_port()


def stream_url(wanted: int | None, listen: str | None = None) -> dict[str, str]:
    """Where streams are to be, as a detail of a broker; 0 for any free port, nothing for None.

    Raises:
        Unavailable: the port is taken.
    """
    return {} if wanted is None else {"streams": f"rabbitmq-stream://{HOST}:{choose(wanted or None, None, listen)}"}


def is_free(port: int, host: str = HOST) -> bool:
    """Tell whether no socket listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port. The port below it is free as well, for TLS.

    It is below the range of outgoing connections (usually from 32768), so that none takes it during a restart.
    """
    while not (is_free(port := random.randint(20_000, 32_000)) and is_free(port - 1)):
        pass
    return port
