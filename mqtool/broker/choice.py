"""The kinds of broker that mqtool can start, and which one to take."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mqtool.broker import node
from mqtool.broker.state import Started
from mqtool.errors import Unavailable


class Kind(StrEnum):
    """What to start."""

    AUTO = "auto"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Starter:
    """How to handle one kind of broker.

    Attributes:
        is_available: whether it can be started on this machine.
        start: takes a name, a port and a data directory, each but the name possibly None.
        describe: what to call it in a sentence.
    """

    is_available: Callable[[], bool]
    start: Callable[[str, int | None, Path | None], Started]
    is_running: Callable[[Started], bool]
    stop: Callable[[Started], None]
    describe: str


#: In the order in which `auto` tries them.
STARTERS = {
    Kind.NODE: Starter(
        is_available=lambda: node.find_server() is not None,
        start=node.start,
        is_running=node.is_running,
        stop=node.stop,
        describe="a private RabbitMQ node",
    ),
}


def choose(kind: Kind) -> Kind:
    """The kind itself, or for `auto` the first that this machine can start.

    Raises:
        Unavailable: it can start none.
    """
    if kind is not Kind.AUTO:
        return kind
    for candidate, starter in STARTERS.items():
        if starter.is_available():
            return candidate
    raise Unavailable(
        "there is no broker to start: no rabbitmq-server is installed",
        "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)",
    )
