"""What a run needs: its settings, the broker, each process's job, and the stamp that each message carries."""

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, Self

from mqtool.amqp import Address, Connection, TlsFiles
from mqtool.errors import UsageError
from mqtool.management import Management
from mqtool.topology import Exchange, Queue

#: The first bytes of each body: the run's secret, the publisher, the message's number, and the time at which it should
#: have been sent, in nanoseconds of the monotonic clock, which all processes on a machine share.
STAMP = Struct(">8sHQq")
#: The protocols' names in options.
AMQP_0_9_1, AMQP_1_0, STREAM = PROTOCOLS = ("amqp0.9.1", "amqp1.0", "stream")
#: The number of different bodies if their sizes vary, and their approximate total size in bytes.
_BODIES, _BODIES_SIZE = 512, 1 << 26
#: The default size of bodies, and the maximum size: the highest limit that RabbitMQ allows.
SIZES, _LARGEST = (100, 100), 512 << 20
#: The default number of messages in flight per publisher, and the default prefetch.
IN_FLIGHT, PREFETCH = 1000, 1000


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The settings of a run.

    Attributes:
        rate: messages per second, for all publishers together; None to publish as fast as confirms allow.
        duration: seconds to publish; None to publish until `messages` are published.
        messages: how many messages all publishers together publish; None for no limit.
        sizes: the sizes of the smallest and the largest body, in bytes.
        bodies: a file with one body per line (its first bytes are overwritten); None for bodies of `sizes`.
        in_flight: the maximum number of unconfirmed messages per publisher.
        acknowledge: acknowledge after this many messages; 0 if the broker does not expect acknowledgements.
        exchange: the type of the exchange to publish to; None for the default exchange.
        ttl: seconds after which messages expire; None for never.
        warm_up: seconds at the start in which messages are counted but not measured.
        delay: seconds that messages wait in a wait queue before they reach the consumers.
        rpc: consumers reply to each message; latencies are measured up to the reply instead of the confirm.
        churn: instead of publishing, create and remove "connections", "channels", "queues" or "bindings".
        protocol: the protocol of publishers and consumers, one of PROTOCOLS.
    """

    rate: float | None = None
    duration: float | None = 10.0
    messages: int | None = None
    sizes: tuple[int, int] = SIZES
    bodies: Path | None = None
    publishers: int = 1
    consumers: int = 1
    queue_type: str = "quorum"
    prefetch: int = PREFETCH
    in_flight: int = IN_FLIGHT
    acknowledge: int = 1
    exchange: str | None = None
    persistent: bool = True
    ttl: float | None = None
    warm_up: float = 0.0
    delay: float = 0.0
    rpc: bool = False
    churn: str | None = None
    protocol: str = AMQP_0_9_1

    def checked(self) -> Self:
        """Return the plan if its settings are consistent.

        Raises:
            UsageError: settings contradict each other.
        """
        self._check_sizes()
        self._check_kind()
        self._check_protocol()
        if self.duration is None and self.messages is None:
            raise UsageError("the run would never end", "give --duration or --count")
        if self.duration is not None and self.warm_up >= self.duration:
            raise UsageError("the warm-up takes the whole run", "make --warm-up shorter than --duration")
        if 0 < self.prefetch < self.acknowledge:
            raise UsageError(
                f"--ack {self.acknowledge} waits for more messages than --prefetch {self.prefetch} allows",
                "make --ack smaller, or --prefetch larger",
            )
        return self

    def _check_sizes(self) -> None:
        small, large = self.sizes
        if small < STAMP.size:
            raise UsageError(
                f"a body of {small} bytes is too small",
                f"each message carries its number and its time, in {STAMP.size} bytes",
            )
        if large > _LARGEST:
            raise UsageError(f"a body of {large:,} bytes is too large", f"brokers take up to {_LARGEST:,} bytes")
        if self.bodies is not None and self.sizes != SIZES:
            raise UsageError("--bodies gives the sizes, too", "leave out --bodies, or the size")

    def _check_kind(self) -> None:
        """Raise UsageError if the settings ask for two kinds of work that cannot be combined."""
        is_stream = self.queue_type == "stream"
        if self.churn is not None and (self.rpc or self.delay or self.exchange is not None or self.ttl is not None):
            raise UsageError(
                f"--churn {self.churn} publishes nothing", "leave out --rpc, --delay, --exchange and --ttl"
            )
        if self.rpc and (is_stream or self.exchange is not None or self.delay):
            raise UsageError("--rpc needs a classic or quorum queue, without an exchange or a delay", "leave them out")
        if self.delay and is_stream:
            raise UsageError("messages to a stream cannot wait in a wait queue", "use a classic or quorum queue")
        if is_stream and self.protocol == AMQP_0_9_1 and not (self.acknowledge and self.prefetch):
            unfit = "--prefetch 0" if self.acknowledge else "--ack auto"
            raise UsageError("a stream's consumers must acknowledge, with a limited prefetch", f"leave out {unfit}")

    def _check_protocol(self) -> None:
        """Raise UsageError if the settings ask for something that the protocol does not support."""
        if self.protocol == AMQP_0_9_1:
            return
        found = {"--rpc": self.rpc, "--churn": self.churn is not None}
        if self.protocol == STREAM:
            if self.queue_type != "stream":
                raise UsageError(
                    f"the stream protocol cannot reach a {self.queue_type} queue", f"leave out --protocol {STREAM}"
                )
            found |= {"--exchange": self.exchange is not None, "--ttl": self.ttl is not None}
            found |= {"--transient": not self.persistent, "--ack": self.acknowledge != 1}
            found |= {"--prefetch": self.prefetch != PREFETCH}
        if unfit := [name for name, is_given in found.items() if is_given]:
            raise UsageError(f"{unfit[0]} cannot be combined with --protocol {self.protocol}", "leave one of them out")

    def with_value(self, name: str, value: Any) -> Self:
        """Return a copy with a new value for one setting."""
        return replace(self, **{name: value})

    @property
    def total(self) -> int | None:
        """The number of messages that the run publishes; None if this depends on the broker's speed."""
        if self.rate is None or self.duration is None:
            return self.messages
        intended = max(1, round(self.rate * self.duration))
        return intended if self.messages is None else min(intended, self.messages)

    def share(self, publisher: int) -> int | None:
        """Return how many of the messages one publisher publishes."""
        if self.total is None:
            return None
        return self.total // self.publishers + (publisher < self.total % self.publishers)

    def in_words(self) -> str:
        """Return the settings as one line."""
        if self.churn is not None:
            pace = f"{self.rate:,.0f}/s" if self.rate else "one after another"
            return f"creating and removing {self.churn}, {_counted(self.publishers, 'client')}, {pace}"
        small, large = self.sizes
        size = f"bodies from {self.bodies.name}" if self.bodies else f"{small} bytes" if small == large else ""
        pace = f"{self.rate:,.0f}/s" if self.rate else f"up to {self.in_flight:,} in flight"
        parts = [
            "stream" if self.queue_type == "stream" else f"{self.queue_type} queue",
            *(
                []
                if self.protocol == AMQP_0_9_1
                else ["over AMQP 1.0" if self.protocol == AMQP_1_0 else "by its protocol"]
            ),
            _counted(self.publishers, "publisher"),
            _counted(self.consumers, "consumer"),
            size or f"{small} to {large} bytes",
            "persistent" if self.persistent else "transient",
            *(["with replies"] if self.rpc else []),
            *([f"delayed by {self.delay:g} s"] if self.delay else []),
            pace,
        ]
        return ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def bodies(plan: BenchPlan) -> list[bytes]:
    """Return the bodies to publish one after another, over and over. Each has room for the stamp.

    Raises:
        UsageError: the file of bodies cannot be read, or is empty.
    """
    if plan.bodies is not None:
        try:
            lines = plan.bodies.read_bytes().splitlines()[:_BODIES]
        except OSError as error:
            raise UsageError(f"cannot read {plan.bodies}: {error.strerror}") from error
        if not lines:
            raise UsageError(f"{plan.bodies} has no bodies", "write one on each line")
        return [line.ljust(STAMP.size) for line in lines]
    small, large = plan.sizes
    if small == large:
        return [bytes(small)]
    sizes = random.Random(0)  # gives the same sizes in every run
    count = max(2, min(_BODIES, _BODIES_SIZE // large))
    return [bytes(sizes.randint(small, large)) for _ in range(count)]


#: The attributes of a job that are lists of addresses.
_ADDRESSES = ("addresses", "amqp_addresses")


class BenchPlace(NamedTuple):
    """The broker to measure.

    Attributes:
        connect: opens an AMQP 0-9-1 connection for declaring what a run needs.
        find_api: finds the management API, which reports the broker's CPU and memory use.
        find_leader: finds the node to use for a stream, and its stream port.
    """

    addresses: Sequence[Address]
    tls: TlsFiles
    connect: Callable[[], Connection]
    find_api: Callable[[], Management]
    find_leader: Callable[[str], Address]


class Timed(NamedTuple):
    """A command to run in a shell, and the time to run it, in seconds after the start."""

    at: float
    command: str


@dataclass(frozen=True, slots=True)
class Job:
    """The job of one process.

    Attributes:
        role: "publisher" or "consumer".
        number: the publisher's or consumer's number, from 0.
        addresses: the nodes to connect to, with the port of the plan's protocol.
        amqp_addresses: the nodes, with the port of AMQP 0-9-1.
        secret: 8 ASCII characters with which every message of the run begins, and no message of anyone else.
    """

    role: str
    number: int
    plan: BenchPlan
    addresses: Sequence[Address]
    amqp_addresses: Sequence[Address]
    tls: TlsFiles
    exchange: str
    routing_key: str
    queue: str
    secret: str

    @property
    def declared(self) -> list[Queue | Exchange]:
        """What the run has declared. Messages that are delayed are published to another queue than `queue`."""
        queues = [Queue(name) for name in dict.fromkeys((self.routing_key, self.queue))]
        return [*queues, *([Exchange(self.exchange)] if self.exchange else [])]

    def as_told(self) -> dict[str, Any]:
        """Return the job's values for told(). They contain the password, so send them through a pipe only."""
        nodes = {name: [each._asdict() for each in getattr(self, name)] for name in _ADDRESSES}
        return {**asdict(self), **nodes}

    @classmethod
    def from_told(cls, values: Mapping[str, Any]) -> Self:
        """Create the job from values received from another process."""
        plan = dict(values["plan"])
        plan |= {"sizes": tuple(plan["sizes"]), "bodies": plan["bodies"] and Path(plan["bodies"])}
        tls = TlsFiles(*(each and Path(each) for each in values["tls"]))
        nodes = {name: [Address(**each) for each in values[name]] for name in _ADDRESSES}
        return cls(**{**values, "plan": BenchPlan(**plan), "tls": tls, **nodes})


def told(values: Mapping[str, Any]) -> bytes:
    """Encode a message from one process of a run to another as a line of JSON."""
    return json.dumps(values, separators=(",", ":"), default=os.fspath).encode() + b"\n"


def lines_in(data: bytes) -> tuple[Iterable[Any], bytes]:
    """Decode the complete lines of JSON in `data`; return their values and the incomplete rest."""
    *lines, rest = data.split(b"\n")
    return map(json.loads, lines), rest
