"""A virtual host: its exchanges and queues, and the way of a message from one to the other."""

import secrets
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.clock import Clock
from mqtool.broker.embedded.dead_letter import dead_letter, would_cycle
from mqtool.broker.embedded.delayed import Delayed, delay_of, released
from mqtool.broker.embedded.exchange import PREDECLARED, TRACE_EXCHANGE, Binding, Exchange
from mqtool.broker.embedded.message import Message
from mqtool.broker.embedded.queue import ENTRY_OVERHEAD, Ledger, Queue
from mqtool.routing.field_table import Table


class Definitions(Ledger, Protocol):
    """Where a virtual host writes down what has to outlive the process."""

    def exchange_declared(self, vhost: str, exchange: Exchange) -> None:
        """There is a new durable exchange."""

    def exchange_deleted(self, vhost: str, exchange: Exchange) -> None:
        """A durable exchange is gone."""

    def queue_declared(self, queue: Queue) -> None:
        """There is a new durable queue; gives it its key."""

    def queue_deleted(self, queue: Queue) -> None:
        """A durable queue is gone, and its messages with it."""

    def bound(self, vhost: str, binding: Binding) -> None:
        """There is a new binding between durable things."""

    def unbound(self, vhost: str, binding: Binding) -> None:
        """A binding between durable things is gone."""

    def held(self, vhost: str, exchange: Exchange, entry: Entry) -> None:
        """A delayed exchange holds a persistent message; sets the entry's row."""


@dataclass(slots=True)
class Publication:
    """What became of a published message.

    Attributes:
        routed: at least one queue was meant to have it.
        accepted: none of them refused it.
        stored: it is being written to disk; the publisher's confirm has to wait for that.
    """

    routed: bool
    accepted: bool
    stored: bool


class VirtualHost:
    """A name space of exchanges and queues.

    Attributes:
        exchanges, queues: by name.
    """

    def __init__(self, name: str, clock: Clock, ledger: Definitions) -> None:
        self.name = name
        self.description = ""
        self._clock = clock
        self._ledger = ledger
        self.queues: dict[str, Queue] = {}
        self.exchanges = {
            exchange: Exchange(exchange, kind, predeclared=True) for exchange, kind in PREDECLARED.items()
        }
        self.exchanges[TRACE_EXCHANGE] = Exchange(TRACE_EXCHANGE, "topic", internal=True, predeclared=True)
        self._delayed: dict[str, Delayed] = {}
        self._dying: deque[tuple[Queue, Message, str]] = deque()
        self._burying = False

    # -- declarations

    def add_exchange(self, exchange: Exchange) -> Exchange:
        """Add an exchange that has been checked."""
        self.exchanges[exchange.name] = exchange
        if exchange.delayed:
            self._delayed[exchange.name] = Delayed(self._clock, lambda entry: self._release(exchange, entry))
        if exchange.durable and not exchange.key:
            self._ledger.exchange_declared(self.name, exchange)
        return exchange

    def delete_exchange(self, exchange: Exchange) -> None:
        """Delete an exchange, its bindings, and what it holds back."""
        del self.exchanges[exchange.name]
        for binding in [*exchange.bindings, *exchange.inbound]:
            self.unbind(binding.source, binding.destination, binding.routing_key, binding.arguments)
        if exchange.delayed:
            for entry in self._delayed.pop(exchange.name).clear():
                self._let_go(entry)
        if exchange.durable:
            self._ledger.exchange_deleted(self.name, exchange)

    def new_queue_name(self) -> str:
        """A name for a queue that a client leaves to the broker to name."""
        return f"amq.gen-{secrets.token_urlsafe(16)}"

    def add_queue(
        self, name: str, *, durable: bool, auto_delete: bool, owner: object | None, arguments: Table, key: int = 0
    ) -> Queue:
        """Add a queue that has been checked; `key` is the storage's for one that it remembers."""
        queue = Queue(
            name,
            self.name,
            self._clock,
            self._ledger,
            self._dead_letter,
            self.delete_queue,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner,
            arguments=arguments,
            key=key,
        )
        self.queues[name] = queue
        if queue.stored and not key:
            self._ledger.queue_declared(queue)
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """Delete a queue and its bindings; returns how many messages were ready in it."""
        if queue.deleted:
            return 0
        del self.queues[queue.name]
        for binding in list(queue.inbound):
            self.unbind(binding.source, queue, binding.routing_key, binding.arguments)
        count = queue.delete()
        if queue.stored:
            self._ledger.queue_deleted(queue)
        return count

    def bind(self, source: Exchange, destination: Queue | Exchange, routing_key: str, arguments: Table) -> None:
        """Bind; there being such a binding already is fine."""
        binding = source.bind(destination, routing_key, arguments)
        if binding is not None and _outlives(binding):
            self._ledger.bound(self.name, binding)

    def unbind(self, source: Exchange, destination: Queue | Exchange, routing_key: str, arguments: Table) -> None:
        """Unbind; there being no such binding is fine. An auto-delete exchange goes with its last binding."""
        binding = source.unbind(destination, routing_key, arguments)
        if binding is None:
            return
        if _outlives(binding):
            self._ledger.unbound(self.name, binding)
        if source.auto_delete and not source.in_use and source.name in self.exchanges:
            self.delete_exchange(source)

    def bindings(self) -> Iterator[Binding]:
        """All bindings, without those that every queue has to the default exchange."""
        for exchange in self.exchanges.values():
            yield from exchange.bindings

    # -- messages

    def publish(self, exchange: Exchange, message: Message) -> Publication:
        """Route a message and put it in the queues."""
        exchange.published_in += 1
        if exchange.delayed and (delay := delay_of(message)):
            return self._hold(exchange, message, delay)
        if exchange.name == "" and "CC" not in message.headers and "BCC" not in message.headers:
            queue = self.queues.get(message.routing_key)
            if queue is None:
                return Publication(routed=False, accepted=True, stored=False)
            accepted, row = queue.publish(message)
            return Publication(routed=True, accepted=accepted, stored=row != 0)
        queues = self.route(exchange, message)
        if "BCC" in message.headers:
            headers = {name: value for name, value in message.headers.items() if name != "BCC"}
            message = message.replace(headers=headers)
        return self._enqueue(queues, message)

    def _enqueue(self, queues: Collection[Queue], message: Message) -> Publication:
        publication = Publication(routed=bool(queues), accepted=True, stored=False)
        for queue in queues:
            accepted, row = queue.publish(message)
            publication.accepted = publication.accepted and accepted
            publication.stored = publication.stored or row != 0
        return publication

    def route(self, exchange: Exchange, message: Message) -> Collection[Queue]:
        """The queues that a message published to an exchange goes to, each once."""
        headers = message.headers
        keys = [message.routing_key]
        for name in ("CC", "BCC"):
            more = headers.get(name)
            if isinstance(more, list):
                keys += [key for key in more if isinstance(key, str)]
        queues: dict[Queue, None] = {}
        seen = {exchange}
        todo = [exchange]
        while todo:
            current = todo.pop()
            matched = False
            for key in keys:
                for destination in self._matches(current, key, message):
                    matched = True
                    if isinstance(destination, Queue):
                        queues[destination] = None
                    elif destination not in seen:
                        seen.add(destination)
                        todo.append(destination)
            if not matched and current.alternate is not None:
                alternate = self.exchanges.get(current.alternate)
                if alternate is not None and alternate not in seen:
                    seen.add(alternate)
                    todo.append(alternate)
        return queues

    def _matches(self, exchange: Exchange, key: str, message: Message) -> Collection[Queue | Exchange]:
        if exchange.name == "":
            queue = self.queues.get(key)
            return () if queue is None else (queue,)
        return exchange.match(key, message.headers)

    # -- dead letters

    def _dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        """Publish a message again, to the queue's dead-letter exchange.

        One may cause another, through any number of queues: they wait for their turn instead of recursing.
        """
        self._dying.append((queue, message, reason))
        if self._burying:
            return
        self._burying = True
        try:
            while self._dying:
                self._bury(*self._dying.popleft())
        finally:
            self._burying = False

    def _bury(self, queue: Queue, message: Message, reason: str) -> None:
        name, key = queue.options.dead_letter_exchange, queue.options.dead_letter_routing_key
        exchange = self.exchanges.get(name) if name is not None else None
        if exchange is None:
            return
        dead = dead_letter(message, queue.name, reason, exchange.name, key, self._clock.now() // 1000)
        if exchange.delayed and (delay := delay_of(dead)):
            self._hold(exchange, dead, delay)
            return
        queues = self.route(exchange, dead)
        if reason != "rejected":
            queues = [target for target in queues if not would_cycle(dead, target.name)]
        self._enqueue(queues, dead)

    # -- delayed messages

    def _hold(self, exchange: Exchange, message: Message, delay: int) -> Publication:
        entry = Entry(message, 0, self._clock.now() + delay)
        self._ledger.grew(len(message.body) + ENTRY_OVERHEAD)
        if exchange.durable and message.persistent:
            self._ledger.held(self.name, exchange, entry)
        self._delayed[exchange.name].hold(entry)
        # The plugin cannot know now who will be bound then: to a mandatory publisher it says that nobody is.
        return Publication(routed=False, accepted=True, stored=entry.row != 0)

    def hold_again(self, exchange: str, entry: Entry) -> None:
        """Hold a message that was being held before a restart."""
        self._ledger.grew(len(entry.message.body) + ENTRY_OVERHEAD)
        self._delayed[exchange].hold(entry)

    def held(self, exchange: Exchange) -> int:
        """How many messages a delayed exchange holds back."""
        return len(self._delayed[exchange.name])

    def _release(self, exchange: Exchange, entry: Entry) -> None:
        message = released(entry.message)
        self._enqueue(self.route(exchange, message), message)
        self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        self._ledger.grew(-len(entry.message.body) - ENTRY_OVERHEAD)
        if entry.row:
            self._ledger.removed(entry)


def _outlives(binding: Binding) -> bool:
    """Whether a binding outlives the process: both its ends have to."""
    destination = binding.destination
    return binding.source.durable and (destination.stored if isinstance(destination, Queue) else destination.durable)
