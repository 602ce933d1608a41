"""The environment of a drill (a broker, commands in terminals, a proxy) and its result (counts of messages)."""

import contextlib
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from mqtool.amqp import Address, Connection, administration, parse_addresses
from mqtool.broker import choice, ports, state
from mqtool.broker.choice import BrokerKind
from mqtool.broker.lifeline import discarding_with_this_process
from mqtool.broker.readiness import wait_until_up
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, Unavailable, UsageError
from mqtool.message import new_message_id
from mqtool.stage.stage import Stage, undisturbed
from mqtool.stage.terminal import Audience, Guard, Terminal, TerminalPlace
from mqtool.work.retry_or_dead_letter import dead_letter_queue

if TYPE_CHECKING:
    from mqtool.management import Management

#: Seconds to wait for a condition.
PATIENCE = 60.0
_LOOK = 0.1
#: Give up after this many seconds without progress. After a restart, electing a queue's leader takes time.
_STILL = 20.0
_THIS_MACHINE = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a drill: counts of its messages.

    Attributes:
        sent: distinct messages passed to the publisher.
        confirmed: publishes that the broker confirmed, including those of duplicates.
        done: distinct messages handled at least once.
        redelivered: deliveries that the broker marked as redelivered.
        suppressed: deliveries recognised as duplicates by their message ID.
        twice: messages handled more than once.
        dead: messages in the dead-letter queue.
        pause: the longest time without a delivery, in seconds, if measured.
        foreign: messages that other publishers sent to the drill's queue. No other count includes them.
    """

    sent: int
    confirmed: int
    done: int
    redelivered: int
    suppressed: int = 0
    twice: int = 0
    dead: int = 0
    pause: float | None = None
    foreign: int = 0

    def sums(self) -> str:
        """Return the counts as a sentence."""
        came = f"{self.redelivered:,} redelivered, {self.suppressed:,} duplicates recognised by their message ID"
        pause = "" if self.pause is None else f". The longest pause was {self.pause:.1f} s"
        return f"Totals: {self.sent:,} messages sent, {self.confirmed:,} confirmed, {came}{pause}."

    @property
    def is_inconclusive(self) -> bool:
        """True if messages are missing, but may still be in the queue, behind other publishers' messages."""
        return self.lost > 0 and self.foreign > 0

    def balance(self) -> str:
        """Return the number of lost messages, followed by the equation sent = done + dead letters + lost.

        If the missing messages may still be in the queue, return "inconclusive" and their number.
        """
        if self.is_inconclusive:
            return f"inconclusive: {self.lost:,} missing, perhaps still in the queue, behind other publishers' messages"
        dead = f" + {self.dead:,} dead letters" if self.dead else ""
        what, lost = (f"{self.lost:,}", f" + {self.lost:,} lost") if self.lost else ("nothing", "")
        return f"{what} lost: {self.sent:,} sent = {self.done:,} done{dead}{lost}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the name and value of each count, and the longest pause if it was measured, as the rows of a table."""
        rows = [
            ("sent", self.sent), ("confirmed", self.confirmed), ("handled", self.done),
            ("redelivered", self.redelivered), ("duplicates recognised", self.suppressed),
            ("handled twice", self.twice), ("dead letters", self.dead),
            ("missing" if self.is_inconclusive else "lost", self.lost),
            *([("from other publishers", self.foreign)] if self.foreign else []),
        ]  # fmt: skip
        pause = [] if self.pause is None else [("longest pause", f"{self.pause:.1f} s")]
        return [(name, f"{count:,}") for name, count in rows] + pause

    @property
    def lost(self) -> int:
        """Number of messages that were neither handled nor dead-lettered."""
        return self.sent - self.done - self.dead

    def __str__(self) -> str:
        what = ("sent", "confirmed", "done", "redelivered", "suppressed")
        more = tuple(name for name in ("twice", "dead", "foreign") if getattr(self, name))
        pause = "" if self.pause is None else f"longest pause {self.pause:.1f} s, "
        counts = [f"{name} {getattr(self, name):,}" for name in (*what, *more)]
        return f"{', '.join(counts)}, {pause}{'missing' if self.is_inconclusive else 'lost'} {self.lost:,}"


class DrillScene:
    """Context manager for a drill: starts a broker if none is given, and provides a directory and terminals.

    Args:
        url: the URL of a broker to use; None to start one.
        guard: kills the commands if mqtool is killed.
        cluster: start a cluster of three nodes instead of one broker.
        image: start RabbitMQ in Docker, from this image.
    """

    def __init__(
        self,
        kind: BrokerKind,
        url: str | None,
        audience: Audience,
        guard: Guard,
        *,
        cluster: bool = False,
        image: str | None = None,
    ) -> None:
        self.queue = f"drill-{new_message_id()[:8]}"
        self.say = audience.say
        self._audience = audience
        self._guard = guard
        self._named_url = url
        self._starter = choice.choose_quick(BrokerKind.DOCKER if image else kind, cluster=cluster)
        self._wanted = Wanted(f"drill-{os.getpid()}", ports.free_port(), cluster=cluster, image=image)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mqtool-drill-")))
            if self._named_url is None:
                stack.enter_context(discarding_with_this_process(self._wanted.name))
                stack.push(self._discard_broker)
            else:
                stack.push(self._remove_queues)
            self.url = self._named_url or self._start_broker()
            place = TerminalPlace(self.directory, self.directory, self.url, prefix="", guard=self._guard)
            stack.enter_context(self._audience.on_broker(None if self._named_url else self._management))
            self.terminals = stack.enter_context(Stage(self._audience, place)).terminals
            self._end = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end.__exit__(*error)

    # The broker.

    @property
    def address(self) -> Address:
        """The address of the broker, or of its first node."""
        return parse_addresses(self.url)[0]

    def through(self, proxy: "Proxy") -> str:
        """Return the URL with which clients reach the broker through a proxy on this machine.

        Raises:
            UsageError: the URL requires TLS, and the broker is on another machine, so that its certificate is not
                valid for this machine.
        """
        address = self.address
        if address.tls and address.host not in _THIS_MACHINE:
            raise UsageError(
                f"the drill's proxy runs on this machine, but the certificate of {address.host} is not valid for this "
                "machine",
                "use a broker on this machine, or an amqp:// URL (without TLS)",
            )
        login, vhost = (quote(each, safe="") for each in (address.password, address.virtual_host))
        host = f"{address.host if address.tls else '127.0.0.1'}:{proxy.port}"
        return f"amqp{'s' * address.tls}://{quote(address.user, safe='')}:{login}@{host}/{vhost}"

    @property
    def _started(self) -> Started:
        started = state.load(self._wanted.name)
        assert started is not None
        return started

    def _start_broker(self) -> str:
        self._starter.prepare(self._wanted, self.say)
        self.say(f"starting {self._starter.describe} …")
        return wait_until_up(self._starter, self._starter.start(self._wanted)).url

    def _discard_broker(self, failed: object, *_: object) -> None:
        with (
            undisturbed(),
            contextlib.suppress(*([MqtoolError] if failed else [])),  # report the first error
        ):
            if (started := state.load(self._wanted.name)) is not None:
                self._starter.stop(started)
                self._starter.discard(started)

    def _remove_queues(self, failed: object, *_: object) -> None:
        """Delete the drill's queues from a broker that the user named. Wait queues expire and need not be deleted."""
        with (
            undisturbed(),
            contextlib.suppress(*([MqtoolError] if failed else [])),  # report the first error
            Connection(parse_addresses(self.url), name="mqtool drill") as connection,
        ):
            channel = connection.channel()
            for queue in (self.queue, dead_letter_queue(self.queue).name):
                administration.delete_queue(channel, queue)

    def _management(self) -> "Management":
        started = state.load(self._wanted.name)
        if started is None:
            raise Unavailable("the broker is down")
        return started.management

    def restart_broker(self) -> None:
        """Stop the broker and start it again; its messages are kept."""
        self._starter.stop(self._started)
        self._start_broker()

    def kill_node(self) -> None:
        """Kill the first node of the cluster (kill -9)."""
        self._starter.kill(self._started, 0)

    def revive_nodes(self) -> None:
        """Start the killed nodes again. They may not be ready when this returns."""
        self._starter.revive(self._started)

    # The commands.

    @property
    def sending(self) -> str:
        """The command line that publishes the messages on its stdin."""
        return f"mqtool send --json -q {self.queue} --persistent"

    def send(self, terminal: Terminal, messages: Iterable[str]) -> int:
        """Publish messages to the drill's queue; return how many were confirmed."""
        terminal.feed(self.sending)
        terminal.write("\n".join(messages))
        terminal.finish()
        return number_of(terminal, "confirmed")

    def wait_until_still(self, complete: Callable[[], bool], progress: Callable[[], int]) -> None:
        """Wait until complete() returns True, or until progress() has returned the same number for 20 s.

        Messages that are then missing are lost, or are in the queue behind those of other publishers.
        """
        before, still_since = progress(), time.monotonic()
        while not complete():
            if (now := progress()) != before:
                before, still_since = now, time.monotonic()
            elif time.monotonic() > still_since + _STILL:
                return
            time.sleep(_LOOK)


def number_of(terminal: Terminal, what: str) -> int:
    """Return the number before the word `what`, such as "confirmed", in a terminal's output.

    If several lines contain such a number, return that of the last line. If none does, return 0.
    """
    found = [match[1] for line in terminal.lines if (match := re.search(rf"([\d,]+) {what}", line))]
    return int(found[-1].replace(",", "")) if found else 0


class DrillMessages:
    """The messages of a drill. Their IDs contain random digits, so that no other client's message has the same ID.

    Attributes:
        ids: the IDs of the messages, indexed by their numbers, which count from 0.
    """

    def __init__(self, count: int) -> None:
        self.ids = [f"m-{number}-{secrets.token_hex(8)}" for number in range(count)]
        self._numbers = {message_id: number for number, message_id in enumerate(self.ids)}

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._numbers

    def line(self, number: int, body: str | None = None) -> str:
        """Return a message as a line of input for `send --json`."""
        return json.dumps({"body": body or f"message {number}", "properties": {"message_id": self.ids[number]}})


class Arrivals:
    """The messages that `receive --json` has written to a file. count() reads the lines added since its last call.

    Attributes:
        deliveries: the deliveries of the drill's messages, including repeated ones.
        ids: the IDs of the drill's messages that have arrived.
        foreign: the number of deliveries of other messages.
    """

    def __init__(self, path: Path, messages: DrillMessages) -> None:
        self.deliveries: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.foreign = 0
        self._path = path
        self._messages = messages
        self._read = 0

    def count(self) -> int:
        """Read the new lines of the file; return the number of deliveries of the drill's messages so far."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                delivery = json.loads(line)
                message_id = delivery["properties"].get("message_id")
                if message_id in self._messages:
                    self.deliveries.append(delivery)
                    self.ids.add(message_id)
                else:
                    self.foreign += 1
        return len(self.deliveries)


class Proxy:
    """A TCP proxy: forwards connections from its own port on this machine to a port of a host, and can cut them."""

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self.target = host, target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # already closed
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Cut all connections without closing them properly; return the number of connections cut."""
        ends, self._open = self._open, []
        for end in ends:
            with contextlib.suppress(OSError):  # already closed
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        return len(ends) // 2

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self.target)
                except OSError:  # the broker is down
                    client.close()
                    continue
                self.join(client, server)

    def join(self, client: socket.socket, server: socket.socket) -> None:
        """Start forwarding data between two connections, in both directions."""
        self._open += [client, server]
        for ends in ((client, server), (server, client)):
            threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
