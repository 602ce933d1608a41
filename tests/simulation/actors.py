"""The roles of clients in a simulation, and the faults. Each role performs its steps one after another."""

import asyncio
import base64
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pamqp.commands import Basic, Exchange, Queue, Tx

from tests.protocol import raw_stream
from tests.simulation.client import Client, Gone
from tests.simulation.client091 import Client091, Closed, Delivered, body_of
from tests.simulation.client10 import Client10
from tests.simulation.http_client import HttpClient
from tests.simulation.judge import Sent
from tests.simulation.plan import Actor
from tests.simulation.stream_client import StreamClient

if TYPE_CHECKING:
    from tests.simulation.world import World

_RETRY_SECONDS = 0.5

_CONNECTION_FORCED = 320

#: The broker grants credit for 170 messages, and renews it once half of them have arrived.
_MUCH_MORE_THAN_CREDIT = 256

HEADERS = {"x-match": "all", "kind": "a"}
#: How long an x-delayed-message exchange holds messages back, in milliseconds.
_DELAYS = (0, 200, 1000, 3000, 8000)

BINDINGS = (("amq.fanout", ""), ("amq.topic", "{}.#"), ("amq.headers", ""), ("delayed", ""))


async def declare_queues(world: "World") -> None:
    """Declare the queues, and bind each to the exchanges that publishers use."""
    client = Client091(world, "setup", world.random)
    await client.connect()
    how: Any = {"exchange_type": "fanout"}
    if world.has_delays:
        how = {"exchange_type": "x-delayed-message", "arguments": {"x-delayed-type": "fanout"}}
    await client.call(Exchange.Declare(exchange="delayed", durable=True, **how))
    for name, kind in world.kinds.items():
        await client.declare(name, kind.arguments)
        if name != "dead":
            for exchange, key in BINDINGS:
                arguments: Any = HEADERS if exchange == "amq.headers" else {}
                bind = Queue.Bind(queue=name, exchange=exchange, routing_key=key.format(name), arguments=arguments)
                await client.call(bind)
    await client.close()


class Role:
    """A client that performs the steps of an actor, and reopens its connection if it is lost.

    Attributes:
        client: the open connection.
    """

    new_client: ClassVar[Callable[..., Any]] = Client091

    def __init__(self, world: "World", actor: Actor) -> None:
        self.world, self.judge, self.actor = world, world.judge, actor
        self.random = Random(actor.seed)
        self.client: Any = None

    async def perform(self) -> None:
        """Perform all steps. A step during which the connection is lost is not repeated."""
        for step in self.actor.steps:
            await asyncio.sleep(max(0.0, step.at - self.world.loop.time()))
            await self.connected()
            self.judge.note(self.client.name, f"{step.what} {step.given or ''}")
            method: Callable[..., Awaitable[None]] = getattr(self, step.what)
            try:
                await method(**step.given)
            except Gone:
                self.judge.note(self.client.name, "connection lost")
            except Closed:
                self.client.vanish(told=True)
        await self.finish()

    async def finish(self) -> None:
        """Close the connection, if it is open."""
        if self.client is not None and self.client.is_open:
            try:
                await self.client.close()
            except (Gone, Closed):
                self.judge.note(self.client.name, "connection lost")

    async def connected(self) -> None:
        """Open the connection, if necessary. Retry until the broker accepts it."""
        while self.client is None or not self.client.is_open:
            await self.world.up.wait()
            self.client = self.new_client(self.world, self.actor.name, self.random)
            try:
                await self.client.connect()
                await self.prepare()
            except (Gone, Closed):
                self.client.vanish(told=True)
                await asyncio.sleep(_RETRY_SECONDS)

    async def prepare(self) -> None:
        """Set up a new connection."""


class Publisher(Role):
    """Publishes with confirms."""

    async def prepare(self) -> None:
        await self.client.confirm()

    async def publish(
        self, queue: str, count: int, exchange: str = "", persistent: bool = True, delays: bool = False
    ) -> None:
        """Publish messages, and wait until they are confirmed."""
        for _ in range(count):
            to, key, headers, delay = exchange, queue, None, 0
            targets = [queue]
            everywhere = [name for name in self.world.kinds if name != "dead"]
            if exchange == "amq.topic":
                key = f"{queue}.x.y"
            elif exchange in ("amq.fanout", "delayed"):
                targets = everywhere
                if delays and self.world.has_delays:
                    delay = self.random.choice(_DELAYS)
                    headers = {"x-delay": delay}
            elif exchange == "amq.headers":
                kind = self.random.choice("ab")
                headers, targets = {"kind": kind}, everywhere if kind == "a" else []
            elif exchange == "nowhere":
                to, key, targets = "amq.direct", "nowhere", []
            has_priorities = all(self.world.kinds[name].priorities for name in targets)
            priority = self.random.randrange(6) if has_priorities else 0
            given = {"persistent": persistent, "priority": priority, "delay": delay / 1000}
            sent = self.judge.published(self.client.name, targets, **given)
            self.judge.note(self.client.name, f"publishes {sent.number} for {', '.join(targets) or 'nobody'}")
            self.client.publish(sent, to, key, mandatory=not targets, headers=headers)
            if self.random.random() < 0.2:
                await asyncio.sleep(self.random.random() * 0.1)
        if self.random.random() < 0.8:
            await self.client.all_confirmed()

    async def vanish(self, *, told: bool) -> None:
        self.client.vanish(told=told)

    async def finish(self) -> None:
        try:
            if self.client is not None and self.client.is_open:
                await self.client.all_confirmed()
        except Gone:
            self.judge.note(self.client.name, "connection lost")
        await super().finish()


class Transactions(Role):
    """Publishes in transactions."""

    async def prepare(self) -> None:
        await self.client.call(Tx.Select())

    async def transact(self, queue: str, count: int, commit: bool) -> None:
        def publish() -> list[Sent]:
            made = [self.judge.published(self.client.name, [queue]) for _ in range(count)]
            for sent in made:
                self.client.publish(sent, "", queue, counted=False)
            return made

        await self.client.transact(commit=commit, publish=publish)


class Consumer(Role):
    """Consumes, and acknowledges, rejects or requeues each message."""

    async def consume(  # noqa: C901 - a consumer and its ways to end
        self,
        queue: str,
        prefetch: int,
        no_ack: bool,
        rejects: float,
        requeues: float,
        multiple: float,
        pause: float,
        seconds: float,
        then: str,
        priority: int,
    ) -> None:
        client: Client091 = self.client
        if no_ack:
            self.judge.unsure.add(queue)

        is_over = False

        def decide(delivered: Delivered) -> None:
            if client.is_open and not is_over:
                chosen = self.random.random()
                how = "rejected" if chosen < rejects else "requeued" if chosen < rejects + requeues else "acked"
                client.settle(delivered, how, multiple=self.random.random() < multiple)

        def handle(delivered: Delivered) -> None:
            if not no_ack:
                self.world.loop.call_later(pause * self.random.random(), decide, delivered)

        client.when_delivered = handle
        await client.consume(queue, prefetch=prefetch, no_ack=no_ack, priority=priority)
        await asyncio.sleep(seconds)
        if not client.is_open:
            raise Gone
        if then in ("cancel", "close") and prefetch and not no_ack and not self.world.kinds[queue].single_active:
            await self._check_not_starved(queue)
        client.leave()
        if then == "cancel":
            for tag in [*client.consuming]:
                await client.call(Basic.Cancel(consumer_tag=tag))
            await asyncio.sleep(pause + 0.1)
        is_over = True
        if then == "cancel":
            await client.recover()
        elif then == "close":
            await client.close()
        else:
            client.vanish(told=then == "vanish")
        client.when_delivered = lambda _: None

    async def _check_not_starved(self, queue: str) -> None:
        """Check that a consumer that has settled all its messages gets the next one, if any."""
        client: Client091 = self.client
        started, got = self.world.loop.time(), client.count
        for _ in range(3):
            ready = await client.declare(queue, {}, passive=True)
            if not ready or client.unacked or client.count > got or f"{client.name}@{queue}" not in client.consuming:
                return
            await asyncio.sleep(1)
        if not self.world.was_faulty(started):
            self.judge.fail("a consumer below its prefetch limit gets messages", f"{client.name} on queue {queue}")


class Getter(Role):
    """Fetches single messages with basic.get."""

    async def get(self, queue: str) -> None:
        if self.world.kinds[queue].refuses_get:
            return
        delivered = await self.client.get(queue)
        if delivered is not None and self.random.random() < 0.7:
            self.client.settle(delivered, self.random.choice(["acked", "requeued"]))


class Sender10(Role):
    """Publishes over AMQP 1.0, within its credit and the session's window or, on purpose, beyond them."""

    new_client = Client10

    async def send(self, queue: str, count: int) -> None:
        client: Client10 = self.client
        await client.attach_sender(queue)
        for _ in range(count):
            await client.until(lambda: client.credit > 0 and client.window > 0, "credit")
            if client.error is not None:
                break
            sent = self.judge.published(client.name, [queue], persistent=self.random.random() < 0.9)
            self.judge.note(client.name, f"publishes {sent.number} for {queue}")
            client.transfer(sent)
        await client.until(lambda: not client.waiting, "outcomes")
        await client.detach()

    async def overdraw(self, queue: str) -> None:
        """Send more transfers than credit. The broker detaches the link, unless it renews the credit in between."""
        client: Client10 = self.client
        await client.attach_sender(queue)
        await client.until(lambda: client.credit > 0, "credit")
        client.overdrawn = True
        client.hold()
        for _ in range(_MUCH_MORE_THAN_CREDIT):
            client.transfer(self.judge.published(client.name, [queue]))
        client.release()
        await client.until(lambda: not client.waiting, "outcomes")
        client.vanish(told=True)


class Receiver10(Role):
    """Receives over AMQP 1.0, and settles each message."""

    new_client = Client10

    async def receive(self, queue: str, credit: int, seconds: float, accepts: float, then: str) -> None:
        client: Client10 = self.client
        is_over = False

        def handle(delivery: int, number: int) -> None:
            if is_over:
                return
            how = "acked" if self.random.random() < accepts else self.random.choice(["rejected", "requeued"])
            client.settle(delivery, number, how)
            if client.credit <= credit // 2 and self.random.random() < 0.9:
                client.grant(credit)

        client.when_delivered = handle
        await client.attach_receiver(queue, credit)
        await asyncio.sleep(seconds)
        if not client.is_open:
            raise Gone
        is_over = True
        if then == "vanish":
            client.vanish(told=True)
        elif then == "close":
            await client.close()
        else:
            await client.detach()


class StreamPublisher(Role):
    """Publishes to a stream under a name, so that messages that it sends again are stored only once."""

    new_client = StreamClient

    def __init__(self, world: "World", actor: Actor) -> None:
        super().__init__(world, actor)
        self._stream = actor.steps[0].given["stream"] if actor.steps else ""
        self._unconfirmed: dict[int, Sent] = {}
        self._next = 0

    async def prepare(self) -> None:
        if not self._stream:
            return
        await self.client.declare_publisher(self._stream, self.actor.name)
        if self._unconfirmed:
            self.judge.note(self.client.name, f"repeats {[each.number for each in self._unconfirmed.values()]}")
            self._publish(dict(self._unconfirmed))

    def _publish(self, messages: dict[int, Sent]) -> None:
        self._unconfirmed |= messages
        self.client.publish(messages)

    async def publish(self, stream: str, count: int) -> None:
        messages = {}
        for _ in range(count):
            self._next += 1
            messages[self._next] = sent = self.judge.published(self.actor.name, [stream])
            self.judge.note(self.client.name, f"publishes {sent.number} for {stream}")
        self._publish(messages)
        await self._confirmed()

    async def _confirmed(self) -> None:
        try:
            await self.client.all_confirmed()
        finally:
            waiting = self.client.waiting
            self._unconfirmed = {number: sent for number, sent in self._unconfirmed.items() if number in waiting}

    async def finish(self) -> None:
        while self._unconfirmed:
            try:
                await self.connected()
                await self._confirmed()
            except Gone:
                self.judge.note(self.client.name, "connection lost")
        await super().finish()


class StreamReader(Role):
    """Reads a stream from its first message, or from its stored offset."""

    new_client = StreamClient

    async def read(self, stream: str, count: int, tracks: float, then: str) -> None:
        """Read messages, and store the offset after some of them, with the probability `tracks`."""
        client: StreamClient = self.client
        stored = await client.query_offset(stream, self.actor.name) if tracks else None
        await client.subscribe(stream, raw_stream.FIRST if stored is None else raw_stream.at(stored + 1), 2)
        for _ in range(30):
            await asyncio.sleep(0.2)
            if not client.is_open:
                raise Gone
            last = client.found[-1][0] if client.found else -1
            if last > (-1 if stored is None else stored) and self.random.random() < tracks:
                client.store_offset(stream, self.actor.name, stored := last)
            if len(client.found) >= count:
                break
        if tracks and self.random.random() < 0.5:
            await client.query_offset(stream, self.actor.name)
        if then == "close":
            await client.close()
        else:
            client.vanish(told=then == "vanish")


class Rude(Role):
    """Makes mistakes that close its channel or connection. No other client may be affected."""

    async def prepare(self) -> None:
        self.client.may_be_closed = True

    async def _closed_with(self, code: int, *, unless_deleted: str = "") -> None:
        for _ in range(600):
            if self.client.closed_with:
                break
            await asyncio.sleep(0.1)
            if not self.client.is_open and not self.client.closed_with:
                raise Gone
        is_excused = not self.client.closed_with and unless_deleted in self.judge.emptied
        if self.client.closed_with not in (code, _CONNECTION_FORCED) and not is_excused:  # forced: the broker stopped
            self.judge.fail("a mistake gets its code", f"{self.client.name}: {self.client.closed_with}, not {code}")
        self.client.vanish(told=True)

    async def unknown_exchange(self, queue: str) -> None:
        self.client.publish(self.judge.published(self.client.name, []), "no such exchange", queue, counted=False)
        await self._closed_with(404)

    async def unknown_tag(self, queue: str) -> None:
        self.client.method(Basic.Ack(self.random.randint(100, 200)))
        await self._closed_with(406)

    async def other_arguments(self, queue: str) -> None:
        self.client.method(Queue.Declare(queue=queue, durable=True, arguments={"x-expires": 1}))
        # If an administrator has just deleted the queue, this declares another one, which soon expires.
        await self._closed_with(406, unless_deleted=queue)

    async def unknown_queue(self, queue: str) -> None:
        self.client.method(Basic.Consume(queue=f"no {queue}"))
        await self._closed_with(404)

    async def garbage(self, queue: str) -> None:
        self.client.send(b"\x09\x00\x01\x00\x00\x00\x01\x00\x00")
        await self._closed_with(501)

    async def frame_on_closed_channel(self, queue: str) -> None:
        self.client.method(Basic.Get(queue=queue), 7)
        await self._closed_with(504)


class Administrator(Role):
    """Uses the management API."""

    new_client = HttpClient

    async def _ask(
        self, method: str, path: str, body: Any = None, *, expected: tuple[int, ...] = (200, 201, 204)
    ) -> Any:
        status, answer = await self.client.ask(method, path, body)
        if status not in expected:
            self.judge.fail("requests succeed", f"{method} {path} {body}: {status} {answer}")
        return answer

    async def overview(self, queue: str) -> None:
        await self._ask("GET", "/overview")
        await self._ask("GET", "/connections")
        await self._ask("GET", "/channels")

    async def list(self, queue: str) -> None:
        """Compare the queues' counts with the messages that they can contain."""
        for found in await self._ask("GET", "/queues/%2F"):
            name, kind = found["name"], self.world.kinds[found["name"]]
            ready, unacked = found["messages_ready"], found["messages_unacknowledged"]
            if found["messages"] != ready + unacked or min(ready, unacked) < 0:
                self.judge.fail("counts are true", f"queue {name}: {found['messages']} = {ready} + {unacked}")
            possible = sum(name in sent.queues for sent in self.judge.sent.values())
            if name != "dead" and not kind.stream and found["messages"] > possible:
                self.judge.fail("counts are true", f"queue {name}: {found['messages']} of {possible} published")
            if kind.max_length is not None and ready > kind.max_length:
                self.judge.fail("a queue keeps its limits", f"queue {name} has {ready} messages")

    async def peek(self, queue: str) -> None:
        kind = self.world.kinds[queue]
        if kind.stream or kind.refuses_get:  # RabbitMQ's API refuses this, too
            await self._ask("GET", "/overview")  # the broker closes a connection without requests
            return
        body = {"count": 3, "ackmode": "ack_requeue_true", "encoding": "auto"}
        missing = [404] if queue in self.judge.deleted else []
        await self._ask("POST", f"/queues/%2F/{queue}/get", body, expected=(200, *missing))

    async def publish(self, queue: str) -> None:
        sent = self.judge.published(self.client.name, [queue])
        body = {
            "properties": {"delivery_mode": 2},
            "routing_key": queue,
            "payload": base64.b64encode(body_of(sent.number)).decode(),
            "payload_encoding": "base64",
        }
        refuses = self.world.kinds[queue].refuses
        expected = (200, 400) if refuses else (200,)
        answer = await self._ask("POST", "/exchanges/%2F/amq.default/publish", body, expected=expected)
        is_taken = not refuses and queue not in self.judge.emptied
        if is_taken and not answer["routed"]:
            self.judge.fail("messages are routed by their bindings", f"message {sent.number} for {queue}")
        if is_taken:
            self.judge.outcome(sent, "confirmed")
        elif "error" in answer:
            self.judge.outcome(sent, "refused")

    async def limit(self, queue: str) -> None:
        """Set a policy that drops the oldest messages of one queue."""
        self.judge.emptied.add(queue)
        definition = {"max-length": 5}
        body = {"pattern": f"^{queue}$", "definition": definition, "apply-to": "queues"}
        await self._ask("PUT", f"/policies/%2F/limit-{queue}", body)

    async def unlimit(self, queue: str) -> None:
        await self._ask("DELETE", f"/policies/%2F/limit-{queue}", expected=(204, 404))

    async def purge(self, queue: str) -> None:
        self.judge.emptied.add(queue)
        await self._ask("DELETE", f"/queues/%2F/{queue}/contents", expected=(204, 400))

    async def delete(self, queue: str) -> None:
        """Delete a queue, and declare it again with its bindings."""
        self.judge.emptied.add(queue)
        self.judge.deleted.add(queue)
        await self._ask("DELETE", f"/queues/%2F/{queue}", expected=(204, 404))
        await self.declare_again(queue)

    async def declare_again(self, queue: str) -> None:
        arguments = self.world.kinds[queue].arguments
        declaration = f"/queues/%2F/{queue}", {"durable": True, "arguments": arguments}
        await self._ask("PUT", *declaration, expected=(201, 204, 400))
        await asyncio.sleep(1)  # 400: a rude client has declared it with other arguments meanwhile, but it soon expires
        await self._ask("PUT", *declaration)
        for exchange, key in BINDINGS:
            given = HEADERS if exchange == "amq.headers" else {}
            body = {"routing_key": key.format(queue), "arguments": given}
            await self._ask("POST", f"/bindings/%2F/e/{exchange}/q/{queue}", body)

    async def user(self, queue: str) -> None:
        await self._ask("PUT", "/users/other", {"password": "x", "tags": ""})
        await self._ask("PUT", "/permissions/%2F/other", {"configure": "", "write": "", "read": ""})
        await self._ask("DELETE", "/users/other", expected=(204, 404))


class Faults:
    """Breaks the network, the disk and the broker."""

    def __init__(self, world: "World", actor: Actor) -> None:
        self.world, self.actor = world, actor
        self.random = Random(actor.seed)

    async def perform(self) -> None:
        for step in self.actor.steps:
            await asyncio.sleep(max(0.0, step.at - self.world.loop.time()))
            self.world.judge.note("FAULT", f"{step.what} {step.given}")
            await getattr(self, step.what)(**step.given)

    def _victim(self) -> Client | None:
        clients = list(self.world.clients)
        return self.random.choice(clients) if clients else None

    async def reset(self, seconds: float) -> None:
        """Reset a connection at both ends."""
        if (victim := self._victim()) is not None:
            self.world.judge.note(victim.name, "is reset")
            victim.vanish(told=True)

    async def half_open(self, seconds: float) -> None:
        """Cut a connection without the broker noticing."""
        if (victim := self._victim()) is not None:
            self.world.judge.note(victim.name, "is cut off")
            self.world.judge.cut_off.add(victim.name)
            victim.vanish(told=False)

    async def stall(self, seconds: float) -> None:
        """Hold back everything on a connection for a while."""
        if (victim := self._victim()) is not None:
            until = self.world.loop.time() + seconds
            victim.side.stalled_until = victim.side.peer.stalled_until = until
            self.world.fault_until(until + 1)

    async def jump(self, seconds: float) -> None:
        """Change the time of day."""
        self.world.loop.jumped += int(self.random.choice([-3600, 3600, -1, 1]) * 1000 * seconds)

    async def eio(self, seconds: float) -> None:
        """Make syncs fail for a while."""
        if self.world.server is None:
            return
        fault = [self.world.loop.time()]
        self.world.judge.disk_faults.append(fault)
        disk = self.world.disk
        disk.is_failing = True
        self.world.fault_until(self.world.loop.time() + seconds + 1)
        await asyncio.sleep(seconds)
        disk.is_failing = False
        if len(fault) == 1:
            fault.append(self.world.loop.time())

    async def full(self, seconds: float) -> None:
        """Make the disk full for a while: neither the database nor streams can grow."""
        if self.world.server is None:
            return
        database = self.world.server.broker.ledger.database.db  # type: ignore[attr-defined]
        faults = self.world.judge.disk_faults
        faults.append([self.world.loop.time(), self.world.loop.time() + seconds])
        disk = self.world.disk
        disk.is_full = True
        self.world.full_until = self.world.loop.time() + seconds
        database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
        self.world.fault_until(self.world.loop.time() + seconds + 1)
        await asyncio.sleep(seconds)
        disk.is_full = False
        with suppress(sqlite3.ProgrammingError):  # the broker was stopped meanwhile
            database.execute("PRAGMA max_page_count = 1000000")

    async def kill(self, seconds: float) -> None:
        """Kill the broker, and start it again later."""
        await self._restart(seconds, power=False)

    async def power(self, seconds: float) -> None:
        """Cut the power: what was not synced may be lost."""
        await self._restart(seconds, power=True)

    async def _restart(self, seconds: float, *, power: bool) -> None:
        world = self.world
        if world.server is not None:
            world.kill_broker(power=power)
            await asyncio.sleep(seconds)
            await world.start_broker()
            world.fault_until(world.loop.time() + 1)

    async def stop(self, seconds: float) -> None:
        """Stop the broker cleanly, and start it again later."""
        if self.world.server is not None:
            await self.world.stop_broker()
            await asyncio.sleep(seconds)
            await self.world.start_broker()
            self.world.fault_until(self.world.loop.time() + 1)
