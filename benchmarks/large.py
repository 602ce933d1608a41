"""Measure the memory and CPU time that brokers need for many queues, bindings, connections and messages.

    python -m benchmarks.large [--part N] [--rows WORD]

Starts new brokers for each row of the table: the embedded broker with --data-dir, and a private node of RabbitMQ if it
is installed. Queues are durable classic queues; messages are persistent and confirmed. The table shows by how much a
broker's memory (RSS) exceeds that of the idle broker, five seconds after everything was created, and how much CPU time
the broker used to create everything. On Linux only.

--part N divides the sizes in docs/explanation/performance.md by N, by default 10. With `--part 1`, the sizes are the
full ones: a broker needs up to 5 GiB of memory, and the benchmark takes half an hour. --rows WORD measures only the
rows whose names contain WORD.
"""

import argparse
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from pamqp import commands

from benchmarks.embedded import Client, Process, publish_confirmed, resident
from benchmarks.tap import processor_time
from mqtool.broker import ports
from mqtool.broker.node import PrivateNodes
from mqtool.broker.readiness import wait_until_up
from mqtool.broker.state import Wanted

#: Seconds before each measurement of memory, so that garbage is collected and files are written.
_SETTLE = 5
#: Seconds without an answer after which a broker counts as stuck.
_PATIENCE = 600
#: All sizes are multiples of this, as publish_confirmed() expects.
_UNIT = 500
_QUEUE, _EXCHANGE = "large", "large-topic"


class Broker(NamedTuple):
    """A running broker."""

    url: str
    pid: int

    @property
    def memory(self) -> float:
        """The resident memory of the broker in MiB."""
        return resident(self.pid) / 2**20

    @property
    def cpu(self) -> float:
        """The CPU time that the broker has used in all its threads, in seconds."""
        return processor_time(self.pid)


class Cost(NamedTuple):
    """What the queues, bindings, connections or messages of one row of the table cost a broker.

    Attributes:
        idle: memory of the broker before they are created, in MiB.
        memory: additional memory once all of them exist, in MiB.
        cpu: CPU time that the broker used to create them, in seconds.
    """

    idle: float
    memory: float
    cpu: float


@contextmanager
def embedded() -> Iterator[Broker]:
    with Process("--data-dir", "{}/data") as broker:
        yield Broker(broker.url, broker.process.pid)


@contextmanager
def rabbitmq() -> Iterator[Broker]:
    """Run a private RabbitMQ node with basic message rates, RabbitMQ's default. `mqtool broker up` sets detailed rates,
    which cost more.
    """
    starter = PrivateNodes("RabbitMQ", ("management.rates_mode = basic",))
    started = starter.start(Wanted(f"large-{os.getpid()}", ports.free_port(), management_port=ports.free_port()))
    try:
        started = wait_until_up(starter, started)
        yield Broker(started.url, started.pid)
    finally:
        starter.stop(started)
        starter.discard(started)


def _declare(client: Client, queue: str) -> None:
    arguments = {"x-queue-type": "classic"}
    client.call(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments), commands.Queue.DeclareOk)


def queues(url: str, count: int, held: ExitStack) -> None:
    client = Client(url)
    held.enter_context(client.socket)
    for number in range(count):
        _declare(client, f"{_QUEUE}-{number}")


def bindings(url: str, count: int, held: ExitStack) -> None:
    """Bind one queue to a topic exchange with this many keys."""
    client = Client(url)
    held.enter_context(client.socket)
    _declare(client, _QUEUE)
    declare = commands.Exchange.Declare(exchange=_EXCHANGE, exchange_type="topic", durable=True)
    client.call(declare, commands.Exchange.DeclareOk)
    for number in range(count):
        bind = commands.Queue.Bind(queue=_QUEUE, exchange=_EXCHANGE, routing_key=f"site.{number}.*")
        client.call(bind, commands.Queue.BindOk)


def connections(url: str, count: int, held: ExitStack) -> None:
    """Open this many connections, each with a channel, and keep them open."""
    for _ in range(count):
        held.enter_context(Client(url).socket)


def messages(url: str, count: int, held: ExitStack) -> None:
    client = Client(url)
    held.enter_context(client.socket)
    _declare(client, _QUEUE)
    publish_confirmed(client, "", _QUEUE, count)


@dataclass(frozen=True)
class Row:
    """A row of the table, which shows what a number of queues, bindings, connections or messages cost.

    Attributes:
        what: what is created, such as "queues".
        size: how many of them are created with `--part 1`. With `--part N`, this number is divided by N.
        fill: a function that creates them on a broker. It takes the broker's URL, the number to create, and an
            ExitStack, which closes the opened sockets at the end.
    """

    what: str
    size: int
    fill: Callable[[str, int, ExitStack], None]


ROWS = (
    Row("queues", 10_000, queues),
    Row("bindings of a topic exchange to one queue", 100_000, bindings),
    Row("connections, each with a channel", 2_000, connections),
    Row("waiting messages of 100 bytes", 1_000_000, messages),
    Row("waiting messages of 100 bytes", 10_000_000, messages),
)


def cost(row: Row, size: int, running: AbstractContextManager[Broker]) -> Cost:
    """Start a broker, and create on it the queues, bindings, connections or messages of one row of the table. Return
    how much memory and CPU time the broker needs for them.
    """
    with running as broker, ExitStack() as held:
        time.sleep(_SETTLE)
        idle, before = broker.memory, broker.cpu
        row.fill(broker.url, size, held)
        cpu = broker.cpu - before
        time.sleep(_SETTLE)
        return Cost(idle, broker.memory - idle, cpu)


def line(what: str, costs: list[Cost]) -> str:
    """Return a row of the table in Markdown."""
    return f"| {what} |" + "".join(f" {each.memory:,.0f} MiB | {each.cpu:,.1f} s |" for each in costs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", type=int, default=10, metavar="N", help="divide all sizes by N (default: 10)")
    parser.add_argument("--rows", metavar="WORD", default="", help="measure only rows whose names contain WORD")
    asked = parser.parse_args()
    brokers = (
        {"embedded": embedded, "RabbitMQ": rabbitmq} if PrivateNodes("").is_available() else {"embedded": embedded}
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no node is left behind
    socket.setdefaulttimeout(_PATIENCE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for the connections; the brokers inherit it
    print("| what |" + "".join(f" {name}: memory | CPU time |" for name in brokers))
    print("|---|" + "---|---|" * len(brokers))
    idle: dict[str, float] = {}
    for row in ROWS:
        if asked.rows not in row.what:
            continue
        size = max(_UNIT, row.size // asked.part // _UNIT * _UNIT)
        costs = []
        for name, running in brokers.items():
            costs.append(cost(row, size, running()))
            idle[name] = costs[-1].idle
        print(line(f"{size:,} {row.what}", costs), flush=True)
    print("memory of the idle brokers: " + ", ".join(f"{name} {each:.0f} MiB" for name, each in idle.items()))


if __name__ == "__main__":
    main()
