"""Right and wrong attempts at goals, with commands or with plain pika, and the learner who makes them."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pika
import pika.adapters.blocking_connection

from mqtool.amqp import Connection, parse_addresses
from mqtool.management import Management
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.trying import Trial, TrialBroker, TrialFinding
from tests.brokers import TestBroker
from tests.cli.shell import Running, Shell, wait_until
from tests.protocol.raw_amqp10 import RawAmqp10

PROGRAMS = Path(__file__).parents[2] / "mqtool" / "plays" / "repair"
PlainChannel = pika.adapters.blocking_connection.BlockingChannel


class Plain:
    """A learner's own program, written with pika, or over AMQP 1.0. Each of its channels has its own connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: list[pika.BlockingConnection] = []
        self._over_amqp10 = ExitStack()

    def channel(self) -> PlainChannel:
        parameters = pika.URLParameters(self._url)
        parameters.connection_attempts, parameters.retry_delay = 50, 0.1  # the broker may be restarting
        connection = pika.BlockingConnection(parameters)
        self._opened.append(connection)
        return connection.channel()

    def amqp10(self) -> RawAmqp10:
        """Open a connection over AMQP 1.0."""
        return self._over_amqp10.enter_context(RawAmqp10(self._url))

    def queue(self, name: str, *, durable: bool = True, **arguments: Any) -> str:
        """Declare a queue."""
        self.channel().queue_declare(name, durable=durable, arguments=arguments or None)
        return name

    def send(self, key: str, body: str, exchange: str = "", **properties: Any) -> None:
        self.channel().basic_publish(exchange, key, body.encode(), pika.BasicProperties(**properties))

    def consume(self, queue: str, *, prefetch: int = 0, auto_ack: bool = False, **arguments: object) -> "PlainConsumer":
        return PlainConsumer(self.channel(), queue, prefetch, auto_ack, arguments)

    def receive(self, queue: str, count: int = 1, *, auto_ack: bool = False) -> list[str]:
        """Receive this many messages, acknowledge them, and close the connection."""
        consumer = self.consume(queue, auto_ack=auto_ack)
        bodies = [consumer.next() for _ in range(count)]
        consumer.ack()
        consumer.close()
        return bodies

    def close(self) -> None:
        for each in self._opened:
            if each.is_open:
                each.close()
        self._over_amqp10.close()


class PlainConsumer:
    """A consumer that acknowledges messages only when ack() is called."""

    def __init__(
        self, channel: PlainChannel, queue: str, prefetch: int, auto_ack: bool, arguments: dict[str, object]
    ) -> None:
        self.channel = channel
        self._auto_ack = auto_ack
        self.got: list[tuple[int, str, Any]] = []
        self._taken = 0
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(
            queue,
            lambda _, how, properties, body: self.got.append((how.delivery_tag, body.decode(), properties)),
            auto_ack=auto_ack,
            arguments=arguments,
        )

    def next(self) -> str:
        """Wait for the next message."""
        self.wait(self._taken + 1)
        self._taken += 1
        return self.got[self._taken - 1][1]

    def wait(self, count: int) -> None:
        """Wait until this many messages have arrived."""

        def has_come() -> bool:
            self.channel.connection.process_data_events(0.01)
            return len(self.got) >= count

        wait_until(has_come, lambda: f"{count} messages; there are {self.got}", 30)

    def ack(self) -> None:
        """Acknowledge all messages received so far."""
        if self.got and not self._auto_ack:
            self.channel.basic_ack(self.got[-1][0], multiple=True)
            self.channel.connection.process_data_events(0)

    def close(self) -> None:
        self.channel.connection.close()

    def die(self) -> None:
        """End the TCP connection without closing the AMQP connection first, as when the program is killed."""
        connection: Any = self.channel.connection
        connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
        with suppress(pika.exceptions.AMQPConnectionError):
            while True:
                connection.process_data_events(0.1)


def watched(broker: TestBroker, way: str = "") -> TrialBroker:
    """Return a broker under test in the form that `try` needs."""
    return TrialBroker(
        lambda: Management(broker.management, "guest", "guest"),
        broker.vhost,
        lambda: Connection(parse_addresses(broker.url)),
        is_embedded=broker.kind == "embedded",
        way=way,
    )


#: Does something with commands (a bash script) or with pika.
Attempt = str | Callable[[Plain], object]


class Wrong(NamedTuple):
    """A wrong attempt, and part of the sentence with which `try` answers it.

    Attributes:
        on_rabbitmq: part of the answer on RabbitMQ, if it differs because RabbitMQ reports less; otherwise empty.
    """

    answer: str
    attempt: Attempt
    on_rabbitmq: str = ""


@dataclass(frozen=True)
class Attempts:
    """Two ways to reach a goal, and wrong attempts."""

    commands: str
    plain: Callable[[Plain], object]
    wrong: tuple[Wrong, ...]


#: The beginning of every script. A script and its consumers run until `try` has given the expected answer.
_PRELUDE = """
trap 'until [ -e answered ]; do sleep 0.05; done; kill $(jobs -p) 2>/dev/null; wait' EXIT
number=0
# start COMMAND...: start a command that consumes, in the background, and wait until it does
start() { number=$((number + 1)); "$@" --ready-file ready.$number & until [ -e ready.$number ]; do sleep 0.02; done; }
# consumers QUEUE COUNT: wait until a queue has this many consumers
consumers() { until [ "$(mqtool list consumers 2>/dev/null | grep -cw "$1")" -ge $2 ]; do sleep 0.1; done; }
pause() { sleep 0.5; }
export AMQP_URL=$MQTOOL_URL
# copy PROGRAM [SED...]: copy a program to repair, and repair the copy with sed commands
copy() { program=$1; shift; sed "$@" -e '' $PROGRAMS/$program.py > $program.py; }
"""


class Learner:
    """Makes attempts at a goal, and collects what `try` finds."""

    def __init__(self, goal: Goal, broker: TestBroker, shell: Shell) -> None:
        self.findings: list[TrialFinding] = []
        self._goal = goal
        self._broker = broker
        self._shell = shell
        self._over = threading.Event()
        self._staying = ExitStack()
        self._script: Running | None = None
        self.trial: Trial | None = None
        self._looks = 0
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def try_it(self) -> None:
        """Watch the broker until the goal is reached, or until the learner gives up."""
        try:
            with Trial(watched(self._broker)) as trial:
                trial.prepare(self._goal)
                self.trial = trial
                self._ready.set()
                for finding in trial.findings(self._goal):
                    self.findings += [finding] if finding else []
                    self._looks += 1
                    if self._over.is_set():
                        return
        except BaseException as failure:  # raised in the test
            self._failure = failure
            self._ready.set()

    def make(self, attempt: Attempt) -> None:
        """Make an attempt. A script may fail, as learners' commands do. It runs until wait_for() has found the answer.

        A program keeps its connections open until the test ends: RabbitMQ may forget the counters of a closed one.
        """
        if isinstance(attempt, str):
            # Files of an earlier attempt.
            for left in (*self._shell.directory.glob("ready.*"), self._shell.directory / "answered"):
                left.unlink(missing_ok=True)
            script = f"PROGRAMS={PROGRAMS}\n{_PRELUDE}{attempt}"
            self._script = self._shell.start("bash", "-c", script, ready=False)
        else:
            plain = Plain(self._broker.url)
            self._staying.callback(plain.close)
            attempt(plain)

    @contextmanager
    def begun(self) -> Iterator["Learner"]:
        thread = threading.Thread(target=self.try_it)
        thread.start()
        try:
            assert self._ready.wait(60)
            yield self
        finally:
            self._over.set()
            thread.join()
            self._end_script()
            self._staying.close()
        if self._failure:
            raise self._failure

    def wait_for(self, kind: str, text: str = "") -> str:
        """Wait for a finding of this kind that contains this text, and for the attempt's end; return its sentence."""

        def found() -> list[str]:
            return [each.text for each in self.findings if each.kind == kind and text in each.text]

        wait_until(
            lambda: found() or self._failure,
            lambda: f"{kind} {text!r}; there is {self.findings}; commands printed: {self._printed()}",
        )
        self._end_script()
        return found()[0] if found() else ""

    def wait_until_seen(self, body: str) -> None:
        """Wait until a message with this body has been published, and `try` has had time to respond."""

        def has_come() -> bool:
            trial = self.trial
            return trial is not None and any(each.body == body for each in trial.seen.messages)

        wait_until(has_come, f"the message {body!r}")
        self._end_script()
        looks = self._looks
        wait_until(lambda: self._looks > looks + 20, "`try` to respond")

    def wait_until_bound(self, exchange: str) -> None:
        """Wait until `try` has seen a queue that is bound to an exchange. Create the file `bound` for the script."""

        def is_bound() -> bool:
            return self.trial is not None and bool(self.trial.seen.bound(exchange))

        wait_until(is_bound, f"a queue that is bound to {exchange}")
        (self._shell.directory / "bound").touch()

    def _end_script(self) -> None:
        if self._script:
            (self._shell.directory / "answered").touch()
            self._script.wait()

    def _printed(self) -> str:
        return f"{self._script.stdout}{self._script.stderr}" if self._script else ""
