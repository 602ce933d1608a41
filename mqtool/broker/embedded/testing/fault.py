"""The base class of faults, the parser of fault requests, and the faults that affect messages and consumers.

The faults that affect connections are in connection_faults.py.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.virtual_host import Routing
from mqtool.broker.embedded.sockets.listener import Listener
from mqtool.broker.embedded.wire.amqp_connection import BrokerConnection
from mqtool.duration import parse_duration
from mqtool.spelling import did_you_mean, mistyped

if TYPE_CHECKING:
    from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10

    # For type checkers only: most brokers serve no streams, and start faster without this import.
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection

Client: TypeAlias = "BrokerConnection | StreamConnection | Connection10"

_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?", re.ASCII)

#: The fault classes, by names such as `cut_connections`.
KINDS: dict[str, "type[Fault]"] = {}


@dataclass(frozen=True)
class FaultScene:
    """The parts of a broker that faults affect.

    Attributes:
        broker: the broker.
        by_protocol: the broker's connections, one collection per protocol.
        listeners: the listening sockets for clients.
        call_later: calls a function after a number of seconds.
    """

    broker: Broker
    by_protocol: Sequence[Collection[Client]]
    listeners: Sequence[Listener]
    call_later: Callable[[float, Callable[[], object]], object]

    @property
    def connections(self) -> list[Client]:
        return [connection for connections in self.by_protocol for connection in connections]

    def check_spelling(self, queue: str) -> None:
        """Raise ValueError if no queue has this name, and it looks like a misspelling of a queue's name."""
        names = {name for vhost in self.broker.vhosts.values() for name in vhost.queues}
        meant = None if queue in names else mistyped(queue, sorted(names))
        if meant is not None:
            raise ValueError(f"queue {queue!r} does not exist: did you mean {meant!r}?")

    def shut(self) -> None:
        """Refuse new connections."""
        for listener in self.listeners:
            listener.shut()

    def open(self) -> None:
        """Accept new connections again."""
        for listener in self.listeners:
            listener.open()


class Fault:
    """The base class of faults. Subclasses are dataclasses; their fields are the arguments that a request can set.

    The broker calls begin() and then, while the fault is active, the method named after each event that happens.

    Attributes:
        lasts: False if the fault is over after begin(); True if it lasts until it is undone, times out or is used up.
        used_up: True if the fault no longer affects anything.
    """

    lasts: ClassVar[bool] = True
    used_up: bool = False

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            KINDS[name_of(cls)] = cls

    def begin(self, scene: FaultScene) -> int:  # noqa: ARG002
        """Start the fault. Return the number of connections, channels or consumers that it affects."""
        return 0

    def end(self, scene: FaultScene) -> None:
        """Undo the fault."""

    def duration(self) -> float | None:
        """Return how many seconds the fault lasts; None if it lasts until it is undone."""
        return None

    def connected(self, connection: Client) -> None:
        """Apply the fault to a new connection."""

    def publishing(self, routing: Routing) -> bool:  # noqa: ARG002
        """Return True to nack a message. May change `routing.queues`, the queues that the message is routed to."""
        return False

    def acknowledging(self, queue: BrokerQueue) -> bool:  # noqa: ARG002
        """Return True to requeue a message from this queue instead of acknowledging it."""
        return False

    def confirming(self, data: bytes, send: Callable[[bytes], None]) -> bool:  # noqa: ARG002
        """Return True to delay publisher confirms; the fault then sends the encoded confirms later, with send(data)."""
        return False


def name_of(kind: type[Fault]) -> str:
    """Return the name by which requests refer to a fault class, such as `cut_connections` for CutConnections."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def arguments_of(kind: Any) -> dict[str, Any]:
    """Return the arguments of a fault class, with their types."""
    return {each.name: each.type for each in dataclasses.fields(kind) if each.init}


def fault_of(name: str, arguments: Mapping[str, Any]) -> Fault:
    """Create the fault that a request describes. Numbers and durations may be given as strings.

    Raises:
        ValueError: there is no such fault, or it does not take these arguments. The client gets the error message.
    """
    kind = KINDS.get(name.replace("-", "_"))
    if kind is None:
        among = did_you_mean(name.replace("-", "_"), KINDS, f"one of {', '.join(sorted(KINDS))}")
        raise ValueError(f"unknown fault {name!r}: {among}")
    known = arguments_of(kind)
    for argument in arguments:
        if argument not in known:
            takes = f"one of {', '.join(known)}" if known else "none"
            raise ValueError(f"{name} has no argument {argument!r}: {takes}")
    given = {each: _converted(each, value, known[each]) for each, value in arguments.items()}
    try:
        return kind(**given)
    except TypeError as error:
        needed = [each.name for each in dataclasses.fields(kind) if each.default is dataclasses.MISSING]  # type: ignore[arg-type]
        raise ValueError(f"{name} needs {', '.join(each for each in needed if each in known)}") from error


def checked(fault: Fault) -> Fault:
    """Return a fault with the same arguments.

    Raises:
        ValueError: an argument is out of range; the message is the same as that of fault_of().
    """
    return fault_of(name_of(type(fault)), {name: getattr(fault, name) for name in arguments_of(type(fault))})


def _converted(name: str, value: Any, annotated: Any) -> Any:
    kinds = get_args(annotated) or (annotated,)
    if value is None and NoneType in kinds:
        return None
    (kind,) = [each for each in kinds if each is not NoneType]
    if kind is bool:
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise ValueError(f"{name} must be true or false, not {value!r}")
    try:
        if kind is float:
            number = _seconds(value) if isinstance(value, str) else float(value)
        elif kind is int:
            number = int(value)
        else:
            return str(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be {'a duration' if kind is float else 'a number'}, not {value!r}") from error
    if not number >= (0 if kind is float else 1):
        raise ValueError(f"{name} must be {'at least 0' if kind is float else 'at least 1'}, not {value!r}")
    return number


def _seconds(text: str) -> float:
    """Parse a duration such as 200ms, or a number of seconds such as 0.2. Raises ValueError if it is neither."""
    return float(text) if _NUMBER.fullmatch(text) else parse_duration(text)


@dataclass
class NackPublishes(Fault):
    """Rejects the next messages to a queue: the publisher gets a nack, and the queue does not receive the message."""

    queue: str
    count: int = 1

    def begin(self, scene: FaultScene) -> int:
        scene.check_spelling(self.queue)
        return 0

    def publishing(self, routing: Routing) -> bool:
        if self.used_up or all(queue.name != self.queue for queue in routing.queues):
            return False
        self.count -= 1
        self.used_up = self.count <= 0
        routing.queues = [queue for queue in routing.queues if queue.name != self.queue]
        return True


@dataclass
class ReturnUnroutable(Fault):
    """Makes the next messages unroutable: mandatory messages are returned, others are dropped."""

    count: int = 1

    def publishing(self, routing: Routing) -> bool:
        if not self.used_up:
            self.count -= 1
            self.used_up = self.count <= 0
            routing.queues = []
        return False


@dataclass
class DelayConfirms(Fault):
    """Delays publisher confirms by `seconds`; None delays them until the fault is undone."""

    seconds: float | None = None
    _call_later: Callable[[float, Callable[[], object]], object] | None = field(default=None, init=False, repr=False)
    _kept: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)

    def begin(self, scene: FaultScene) -> int:
        self._call_later = scene.call_later
        return 0

    def confirming(self, data: bytes, send: Callable[[bytes], None]) -> bool:
        self._kept.append(lambda: send(data))
        if self.seconds is not None and self._call_later is not None:
            self._call_later(self.seconds, self._send_next)
        return True

    def _send_next(self) -> None:
        if self._kept:
            self._kept.pop(0)()

    def end(self, scene: FaultScene) -> None:  # noqa: ARG002
        while self._kept:
            self._send_next()


@dataclass
class LoseAcks(Fault):
    """Loses the next acknowledgements: the messages are requeued and redelivered."""

    count: int = 1
    queue: str | None = None

    def begin(self, scene: FaultScene) -> int:
        if self.queue is not None:
            scene.check_spelling(self.queue)
        return 0

    def acknowledging(self, queue: BrokerQueue) -> bool:
        if self.used_up or self.queue not in (None, queue.name):
            return False
        self.count -= 1
        self.used_up = self.count <= 0
        return True


@dataclass
class CancelConsumers(Fault):
    """Cancels all consumers of a queue, as RabbitMQ does when the queue's leader moves."""

    lasts: ClassVar[bool] = False
    queue: str

    def begin(self, scene: FaultScene) -> int:
        queues = [vhost.queues[self.queue] for vhost in scene.broker.vhosts.values() if self.queue in vhost.queues]
        if not queues:
            scene.check_spelling(self.queue)
            raise ValueError(f"queue {self.queue!r} does not exist")
        cancelled = [(queue, consumer) for queue in queues for consumer in list(queue.consumers)]
        for queue, consumer in cancelled:
            queue.remove_consumer(consumer)
            consumer.cancelled()
        return len(cancelled)
