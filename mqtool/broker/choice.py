"""The kinds of broker that mqtool can start, and which one to take."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mqtool.broker import embedded_process, node
from mqtool.broker.state import Started, Wanted


class Kind(StrEnum):
    """What to start."""

    AUTO = "auto"
    NODE = "node"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Starter:
    """How to handle one kind of broker.

    Attributes:
        is_available: whether it can be started on this machine.
        describe: what to call it in a sentence.
    """

    is_available: Callable[[], bool]
    start: Callable[[Wanted], Started]
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
    Kind.EMBEDDED: Starter(
        is_available=lambda: True,
        start=embedded_process.start,
        is_running=embedded_process.is_running,
        stop=embedded_process.stop,
        describe="mqtool's embedded broker",
    ),
}


def choose(kind: Kind) -> Kind:
    """The kind itself, or for `auto` the first that this machine can start; the embedded broker runs everywhere."""
    if kind is not Kind.AUTO:
        return kind
    return next(candidate for candidate, starter in STARTERS.items() if starter.is_available())
