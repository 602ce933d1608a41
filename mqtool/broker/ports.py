"""Ports on loopback."""

import random
import socket

from mqtool.errors import Unavailable

HOST = "127.0.0.1"
AMQP = 5672


def choose_amqp_port(wanted: int | None) -> int:
    """The wanted port; if None, 5672 if that is free, else any free port.

    Raises:
        Unavailable: the wanted port is taken.
    """
    if wanted is None:
        return AMQP if is_free(AMQP) else free_port()
    if not is_free(wanted):
        raise Unavailable(f"port {wanted} on {HOST} is taken", "choose another with --port")
    return wanted


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody listens on.

    It is below the range for outgoing connections (usually from 32768), one of which could take the port while the
    broker is being restarted.
    """
    while not is_free(port := random.randint(20_000, 32_000)):
        pass
    return port
