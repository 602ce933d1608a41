"""A virtual host: its exchanges, queues, bindings and policies, and the routing of messages."""

import secrets
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from mqtool.broker.embedded.model import event_exchange
from mqtool.broker.embedded.model.amqp_errors import (
    RESOURCE_ERROR,
    ChannelException,
    ConnectionException,
    FailureLog,
    precondition_failed,
)
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, Copies, carbon_copies
from mqtool.broker.embedded.model.applied_policies import Policies
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.clock import TURN_SECONDS, Clock, TurnQueue
from mqtool.broker.embedded.model.consumers import Watcher
from mqtool.broker.embedded.model.dead_lettering import DeadLettered, DeadLetters, would_cycle
from mqtool.broker.embedded.model.declarations import check_headers_binding, check_local_random_binding, check_weight
from mqtool.broker.embedded.model.deletions import Deletions
from mqtool.broker.embedded.model.event_exchange import EVENT_EXCHANGE, EVENT_VHOST, Announce
from mqtool.broker.embedded.model.exchange import (
    CONSISTENT_HASH,
    LOCAL_RANDOM,
    MOST_STEPS,
    PREDECLARED,
    TRACE_EXCHANGE,
    BrokerBinding,
    BrokerDestination,
    BrokerExchange,
    DelayedMessages,
    abs_delay_of,
    binding_names,
    delay_of,
    negate_delay,
    save_binding,
    save_exchange,
)
from mqtool.broker.embedded.model.footprint import of_exchange, of_queue
from mqtool.broker.embedded.model.ledger import Ledger, encode_definition
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.totals import no_traffic
from mqtool.codecs.field_tables import Table

#: A message's routing keys (CC and BCC) are looked up at most this many times, in all exchanges on its way together.
#: RabbitMQ has no such limit.
_MOST_LOOKUPS = 50_000

#: This many comparisons of words in topic exchanges take about as long as a lookup.
_STEPS_OF_LOOKUP = 5

#: How many milliseconds later a delayed message is published for which there is no memory.
_RETRY_RELEASE = 1000


#: A message for more queues than this is added to them in steps of this size, so that others are served meanwhile.
_QUEUES_AT_ONCE = 1000


@dataclass(slots=True)
class Routing:
    """A message and the queues that it is routed to.

    Attributes:
        queues: the queues that get the message now, without duplicates.
        stored: True if the message is being written to disk because an x-delayed-message exchange holds it back.
        source: the origin of the message, for a watcher: a channel, a connection, DeadLettered, ReleasedQueue or None.
            Channels leave out the source if the watcher skips the message.
        publisher: see BrokerQueue.publish().
        deliveries: see DeadLettered.
    """

    message: BrokerMessage
    queues: Collection[BrokerQueue]
    stored: bool = False
    source: object = None
    publisher: object = None
    deliveries: int = 0

    @property
    def takes_turns(self) -> bool:
        """True if the message goes to more queues than one turn has time for."""
        return len(self.queues) > _QUEUES_AT_ONCE


class ReleasedQueue(NamedTuple):
    """The source of a message whose delay is over: the name of its delayed exchange, and its position there."""

    exchange: str
    position: int


class Publication(NamedTuple):
    """The outcome of a publish.

    Attributes:
        routed: True if the message was routed to at least one queue.
        accepted: True if no queue refused the message.
        stored: True if the message is being written to disk. Its confirm must wait until this is done.
        is_partial: True if a classic queue refused the message, so that a transaction with it fails.
    """

    routed: bool
    accepted: bool
    stored: bool
    is_partial: bool = False


#: What almost all publishes result in. Making a tuple for each message would take 4 % of the time to publish it.
_STORED = Publication(routed=True, accepted=True, stored=True)
_IN_MEMORY = Publication(routed=True, accepted=True, stored=False)


class VhostLabels(NamedTuple):
    """Metadata of a virtual host.

    Attributes:
        default_queue_type: the type of queues that are declared without one, if it allows their other properties; ""
            for none.
        is_protected: True if the virtual host cannot be deleted.
    """

    tags: tuple[str, ...] = ()
    default_queue_type: str = ""
    is_protected: bool = False


class VirtualHost:
    """A virtual host: a namespace of exchanges and queues.

    Attributes:
        exchanges, queues: the exchanges and queues, by name.
        profile: the version of RabbitMQ to behave like.
        labels: tags, default queue type, and protection from deletion.
        policies: the policies for exchanges and queues.
        limits: the limits, by the names in `broker.OF_VHOSTS`.
        tracing: True if the firehose (message tracing) is on.
        failures: logs failures to process messages.
        dead_letters: publishes the messages that queues dead-letter.
        deletions: deletes queues and exchanges in turns.
        requeueing: the queues into which messages are being put back, or whose purged messages are being dropped.
        watcher: the observer that message events are reported to, if any. Set by watch().
        deleted_traffic: the message counts of deleted queues by queue type, so that totals include them.
    """

    def __init__(
        self, name: str, clock: Clock, ledger: Ledger, profile: Profile, announce: Announce = lambda _, **__: None
    ) -> None:
        self.name = name
        self._announce = announce
        self.profile = profile
        self.description = ""
        self.labels = VhostLabels()
        self.limits: dict[str, int] = {}
        self.tracing = False
        self.watcher: Watcher | None = None
        self.failures = FailureLog()
        self.deleted_traffic = no_traffic()
        self._clock = clock
        self._ledger = ledger
        self.queues: dict[str, BrokerQueue] = {}
        self._applying: Iterator[None] | None = None
        self.policies = Policies(name, ledger, self._apply_policies)
        self.exchanges = {name: BrokerExchange(name, kind, predeclared=True) for name, kind in PREDECLARED.items()}
        self.exchanges[TRACE_EXCHANGE] = BrokerExchange(TRACE_EXCHANGE, "topic", internal=True, predeclared=True)
        if name == EVENT_VHOST:
            self.exchanges[EVENT_EXCHANGE] = BrokerExchange(EVENT_EXCHANGE, "topic", internal=True, predeclared=True)
        for exchange in self.exchanges.values():
            exchange.follow(profile)
        self._delayed = DelayedMessages(clock, self._release)
        self.dead_letters = DeadLetters(self._publish_dead, clock, self.failures, trusts_deaths=profile.trusts_deaths)

        def work(queue: BrokerQueue) -> None:
            try:
                has_more = queue.work_some()
            except Exception as error:
                # A failure must not keep the other messages in line for ever, or close the connection of any client.
                self.failures.report(f"messages of queue '{queue.name}' cannot be requeued or dropped", error)
                has_more = True
            if has_more:
                self.requeueing.add(queue)

        self.requeueing: TurnQueue[BrokerQueue] = TurnQueue(clock, work)
        self.deletions = Deletions(clock, self._unbind, self.delete_queue, self.delete_exchange)
        self._replaying: TurnQueue[Iterator[None]] = TurnQueue(clock, lambda steps: steps)

    def watch(self, watcher: Watcher | None) -> None:
        """Start to report message events to a watcher, in place of any previous one. None ends the reporting."""
        self.watcher = watcher
        for queue in self.queues.values():
            queue.watcher = watcher

    def _changed(self) -> None:
        if self.watcher is not None:
            self.watcher.changed()

    def add_exchange(self, exchange: BrokerExchange) -> None:
        """Add an exchange whose declaration is valid. Raises AmqpException if it cannot be stored."""
        encode_definition(exchange.arguments)
        if not exchange.key:
            check_room(self._ledger, f"exchange '{exchange.name}'")
        if exchange.durable and not exchange.key:
            save_exchange(self._ledger, self.name, exchange)
        exchange.follow(self.profile)
        exchange.apply(self.policies.applied_to(exchange.name, "exchange"))
        self.exchanges[exchange.name] = exchange
        self._ledger.hold_bytes(of_exchange(exchange.name, exchange.arguments), definition=True)
        self._changed()
        self._announce("exchange.created", vhost=self.name, **event_exchange.of_exchange(exchange))

    def delete_exchange(self, exchange: BrokerExchange) -> None:
        """Delete an exchange and its bindings. Its delayed messages stay, for a later exchange of the same name.

        If there are many bindings, this takes long: see Deletions.
        """
        if self.exchanges.get(exchange.name) is not exchange:
            return
        del self.exchanges[exchange.name]
        exchange.forget_history(self._ledger)
        self._ledger.hold_bytes(-of_exchange(exchange.name, exchange.arguments), definition=True)
        self._changed()
        for binding in [*exchange.bindings, *exchange.inbound]:
            self._unbind(binding)
        if exchange.durable:
            self._ledger.forget("exchange", (self.name, exchange.name))
        self._announce("exchange.deleted", vhost=self.name, name=exchange.name)

    def new_queue_name(self) -> str:
        """Return a random name for a queue that a client declares without a name."""
        return f"amq.gen-{secrets.token_urlsafe(16)}"

    def check_queue_limit(self, name: str, count: int = 1) -> None:
        """Raise ChannelException 406 if `count` more queues would exceed the queue limit. The error mentions `name`."""
        limit = limit_of(self.limits, "max-queues")
        if limit is not None and len(self.queues) + count > limit:
            raise precondition_failed(
                f"cannot declare queue '{name}': queue limit in vhost '{self.name}' ({limit}) is reached"
            )

    def add_queue(self, declared: QueueDeclaration, key: int = 0) -> BrokerQueue:
        """Add a queue whose declaration is valid. Raises AmqpException if it cannot be stored.

        Args:
            declared: the properties of the queue.
            key: the number of the queue in the data directory, if it is already stored there.
        """
        name, arguments = declared.name, declared.arguments
        encode_definition(arguments)
        if not key:
            check_room(self._ledger, f"queue '{name}'")
        if self.profile.lists_type:
            arguments = {"x-queue-type": "classic", **arguments}
        kind = _stream_type() if arguments.get("x-queue-type") == "stream" else BrokerQueue
        queue = kind(
            name,
            self.name,
            self._clock,
            self._ledger,
            self.dead_letters.add,
            self.requeueing.add,
            self.deletions.soon,
            durable=declared.durable,
            auto_delete=declared.auto_delete,
            owner=declared.owner,
            arguments=arguments,
            key=key,
            profile=self.profile,
        )
        if queue.stored and not key:
            _save_queue(self._ledger, queue)
        self.queues[name] = queue
        self._ledger.hold_bytes(of_queue(queue.kind, name, queue.arguments), definition=True)
        queue.watcher = self.watcher
        self._changed()
        queue.apply(self.policies.applied_to(name, queue.kind))
        queue.touch()
        self._announce("queue.created", **event_exchange.of_queue(queue))
        return queue

    def _apply_policies(self) -> None:
        """Apply the policies to all exchanges and queues: at once if that is quick, otherwise in turns."""

        def go_on() -> None:
            until = self._clock.elapsed() + TURN_SECONDS
            assert self._applying is not None
            for _ in self._applying:
                if self._clock.elapsed() > until:
                    self._clock.take_turn(go_on)
                    return
            self._applying = None

        self._changed()
        is_waiting, self._applying = self._applying is not None, self._apply_each()
        if not is_waiting:
            go_on()

    def _apply_each(self) -> Iterator[None]:
        for exchange in list(self.exchanges.values()):
            exchange.apply(self.policies.applied_to(exchange.name, "exchange"))
            yield
        # A new limit may dead-letter messages to other queues of this virtual host.
        for queue in list(self.queues.values()):
            if not queue.deleted:
                queue.apply(self.policies.applied_to(queue.name, queue.kind))
            yield

    def delete_queue(self, queue: BrokerQueue) -> int:
        """Delete a queue and its bindings, and return the number of messages that BrokerQueue.delete() reports.

        If there are many bindings, this takes long: see Deletions.
        """
        if queue.deleted:
            return 0
        del self.queues[queue.name]
        self._ledger.hold_bytes(-of_queue(queue.kind, queue.name, queue.arguments), definition=True)
        self._changed()
        self.deleted_traffic[queue.kind].add(queue.traffic)
        for binding in list(queue.inbound):
            self._unbind(binding)
        self._announce("queue.deleted", vhost=self.name, name=queue.name, type=f"rabbit_{queue.kind}_queue")
        if queue.stored:
            self._ledger.forget("queue", (queue.vhost, queue.name))
            self._ledger.forget("delivering", (str(queue.key),))
        return queue.delete()

    def bind(self, source: BrokerExchange, destination: BrokerDestination, routing_key: str, arguments: Table) -> None:
        """Add a binding, unless it exists already. Raises AmqpException if it is not valid or cannot be stored."""
        encode_definition(arguments)
        if source.routed_as == "headers":
            check_headers_binding(arguments)
        if source.routed_as == CONSISTENT_HASH:
            check_weight(routing_key)
        if source.routed_as == LOCAL_RANDOM:
            check_local_random_binding(routing_key, destination)
        most = self.profile.most_wildcards
        if source.routed_as == "topic" and most is not None and (found := routing_key.split(".").count("#")) > most:
            raise precondition_failed(
                f"Topic binding key '{routing_key}' uses {found} '#' wildcards, at most {most} are allowed"
            )
        if source.find(destination, routing_key, arguments) is not None:
            return
        check_room(self._ledger, "binding")
        binding = BrokerBinding(source, destination, routing_key, arguments)
        if binding.stored:
            save_binding(self._ledger, self.name, binding)
        source.add(binding)
        self._ledger.hold_bytes(binding.footprint, definition=True)
        self._changed()
        self._announce("binding.created", vhost=self.name, **event_exchange.of_binding(binding))
        if source.history:
            self._replaying.add(self._replay([*source.history], destination))

    def _replay(self, history: list[BrokerMessage], destination: BrokerDestination) -> Iterator[None]:
        """Publish the history of an x-recent-history exchange to a new destination, in steps."""
        # As in RabbitMQ, an exchange gets the newest message first.
        for message in history if isinstance(destination, BrokerQueue) else reversed(history):
            try:
                if self._ledger.held_bytes > self._ledger.most_bytes:
                    raise ChannelException(RESOURCE_ERROR, "no memory for recent messages")
                if isinstance(destination, BrokerQueue):
                    self.enqueue(Routing(_without_bcc(message), (destination,)))
                elif isinstance(destination, BrokerExchange):
                    yield from enqueue_in_steps(self, self.route(destination, message))
            except Exception as error:
                self.failures.report(f"a recent message cannot be published to '{destination.name}'", error)
            yield

    def unbind(
        self, source: BrokerExchange, destination: BrokerDestination, routing_key: str, arguments: Table
    ) -> None:
        """Remove a binding, if it exists."""
        binding = source.find(destination, routing_key, arguments)
        if binding is not None:
            self._unbind(binding)

    def _unbind(self, binding: BrokerBinding) -> None:
        """Remove a binding. An auto-delete exchange is deleted with its last binding."""
        source = binding.source
        # When an exchange that is bound to itself is deleted, this method is called twice with that binding.
        if not source.remove(binding):
            return
        self._ledger.hold_bytes(-binding.footprint, definition=True)
        self._changed()
        self._announce("binding.deleted", vhost=self.name, **event_exchange.of_binding(binding))
        if binding.stored:
            self._ledger.forget("binding", binding_names(self.name, binding))
        if source.auto_delete and not source.in_use and source.name in self.exchanges:
            self.deletions.soon(source)

    def bindings(self) -> Iterator[BrokerBinding]:
        """Yield all bindings except the implicit ones of the default exchange."""
        for exchange in self.exchanges.values():
            yield from exchange.bindings

    def delete_contents(self) -> None:
        for queue in list(self.queues.values()):
            self.delete_queue(queue)
        for exchange in self.exchanges.values():
            exchange.forget_history(self._ledger)
            of_itself = 0 if exchange.predeclared else of_exchange(exchange.name, exchange.arguments)
            self._ledger.hold_bytes(
                -of_itself - sum(binding.footprint for binding in exchange.bindings), definition=True
            )
        for entry in self._delayed.clear():
            self._ledger.drop(entry)
        self._ledger.forget("vhost", (self.name,))

    def enqueue(self, routing: Routing) -> Publication:
        """Add a message to the queues that it was routed to, except those that have been deleted since."""
        _report_published(self.watcher, routing)
        return _add(self.watcher, routing, routing.queues, stored=routing.stored)

    def route(
        self, exchange: BrokerExchange, message: BrokerMessage, *, is_changed: bool = False, is_due: bool = False
    ) -> Routing:
        """Find the queues for a message. Any x-delayed-message exchange on the way holds the message back.

        Args:
            exchange: the exchange that the message is published to.
            message: the message.
            is_changed: True if the broker has changed the headers sent by the publisher.
            is_due: True if the delay of the message is over.

        Raises:
            ChannelException: 406, the message has many routing keys, and there are many exchanges on the way; or
                there are too many topic bindings with wildcards.
            ConnectionException: 541, there is an x-delayed-message exchange on the way, but `x-delay` is not a number.
        """
        headers = message.headers
        keys = [message.routing_key]
        if message.copies is not None or "CC" in headers or "BCC" in headers:
            keys = message.keys()
        elif exchange.name == "":
            queue = self.queues.get(message.routing_key)
            return Routing(message, () if queue is None else (queue,))
        queues: dict[BrokerQueue, None] = {}
        routing = Routing(message, queues)
        seen = {exchange}
        todo = [exchange]
        lookups = 0
        while todo:
            current = todo.pop()
            lookups += len(keys) if current.routed_as in ("direct", "topic") else 1
            if lookups > _MOST_LOOKUPS:
                raise precondition_failed(f"too many exchanges on the way of a message with {len(keys)} routing keys")
            if current.delayed and not is_due and (delay := delay_of(message)):
                routing.stored |= self._hold(current, message, delay, is_changed=is_changed)
                destinations: Collection[BrokerDestination] = ()
            else:
                destinations = self._matches(current, keys, message)
                lookups += current.steps // _STEPS_OF_LOOKUP
            # A message that is held back also goes to the alternate exchange, like one that matches no binding.
            if not destinations and current.alternate in self.exchanges:
                destinations = [self.exchanges[current.alternate]]
            for destination in destinations:
                if isinstance(destination, BrokerQueue):
                    queues[destination] = None
                elif isinstance(destination, BrokerExchange) and destination not in seen:
                    seen.add(destination)
                    todo.append(destination)
        routing.message = _without_bcc(message)
        return routing

    def _matches(
        self, exchange: BrokerExchange, keys: Collection[str], message: BrokerMessage
    ) -> Collection[BrokerDestination]:
        if exchange.name == "":
            return [self.queues[key] for key in keys if key in self.queues]
        if exchange.history is not None:
            exchange.remember(message, self._ledger)
        found = exchange.match(keys, message.headers, message.properties)
        if exchange.steps > MOST_STEPS:
            raise precondition_failed(
                f"exchange '{exchange.name}' has too many bindings with wildcards for the routing key"
            )
        return found

    def _publish_dead(self, message: BrokerMessage, source: DeadLettered) -> Generator[None, None, bool]:
        """Publish a dead letter in steps. Returns True if at least one queue accepted it and none refused it."""
        exchange = self.exchanges.get(message.exchange)
        if exchange is None:
            return False
        try:
            routing = self.route(exchange, message, is_changed=True)
        except ConnectionException:  # the delay cannot be read: publish without it
            routing = self.route(exchange, message, is_due=True)
        routing.source, routing.deliveries = source, source.deliveries
        routing.publisher = source.queue if source.queue.options.at_least_once else None
        if source.reason != "rejected":
            routing.queues = [target for target in routing.queues if not would_cycle(message, target.name)]
        if not _has_room(self._ledger, routing):
            if source.queue.options.at_least_once:
                return False  # its queue keeps the message, and tries again later
            raise ChannelException(RESOURCE_ERROR, f"no memory for {len(routing.queues)} copies of a message")
        publication = yield from enqueue_in_steps(self, routing)
        return publication.routed and publication.accepted

    def _hold(self, exchange: BrokerExchange, message: BrokerMessage, delay: int, *, is_changed: bool) -> bool:
        """Hold a message back for its delay. Returns True if the message is being written to disk.

        The plugin negates `x-delay` when it releases a message. Up to RabbitMQ 3.12, consumers see this only if the
        broker has changed the headers for another reason; otherwise they get the headers that the publisher sent.
        """
        held = negate_delay(message, delay) if is_changed or "BCC" in message.headers else message
        entry = self._ledger.enter(held, self._clock.now() + delay)
        if exchange.durable:
            self._ledger.added(exchange.key, entry)
        self._delayed.hold(exchange.name, entry)
        if self.watcher is not None:
            self.watcher.delayed(exchange, entry)
        return entry.row != 0

    def hold_again(self, exchange: BrokerExchange, entry: BacklogEntry) -> None:
        """Hold back a message that was held back before a restart, but no longer than its delay."""
        if entry.expires_at is not None and (delay := abs_delay_of(entry.message)):
            entry.expires_at = min(entry.expires_at, self._clock.now() + delay)
        self._ledger.hold(entry)
        self._delayed.hold(exchange.name, entry)

    def held(self, exchange: BrokerExchange) -> int:
        """Return the number of messages that an x-delayed-message exchange holds back."""
        return self._delayed.count(exchange.name)

    def first_held(self, count: int) -> list[tuple[str, BacklogEntry]]:
        """Return the delayed messages that are due first, each with the name of its exchange."""
        return self._delayed.first(count)

    def _release(self, name: str, entry: BacklogEntry) -> Iterator[None]:
        """Publish a message whose delay is over, in steps; drop it if its exchange is gone, set it aside on a failure.

        If there is no memory for several copies, hold it back for another second.
        """
        exchange = self.exchanges.get(name)
        try:
            if exchange is not None:
                routing = self.route(exchange, entry.message, is_due=True)
                if not _has_room(self._ledger, routing):
                    entry.expires_at = self._clock.now() + _RETRY_RELEASE
                    self._delayed.hold(name, entry)
                    return
                routing.source = ReleasedQueue(name, entry.position)
                yield from enqueue_in_steps(self, routing)
        except Exception as error:
            self.failures.report(f"a delayed message of exchange '{name}' cannot be published", error)
            self._ledger.set_aside(entry)
        else:
            self._ledger.drop(entry)


def enqueue_in_steps(vhost: VirtualHost, routing: Routing) -> Generator[None, None, Publication]:
    """Do what VirtualHost.enqueue() does in short steps, one for each thousand queues.

    As in RabbitMQ, the other clients can find the message in some queues before it is in the others. The publisher's
    next message must wait for the last step.
    """
    if not routing.takes_turns:
        return vhost.enqueue(routing)
    _report_published(vhost.watcher, routing)
    whole = Publication(routed=False, accepted=True, stored=routing.stored)
    queues = iter(routing.queues)
    while some := [*islice(queues, _QUEUES_AT_ONCE)]:
        part = _add(vhost.watcher, routing, some, stored=False)
        whole = Publication(
            whole.routed or part.routed,
            whole.accepted and part.accepted,
            whole.stored or part.stored,
            whole.is_partial or part.is_partial,
        )
        yield
    return whole


def _report_published(watcher: Watcher | None, routing: Routing) -> None:
    if watcher is not None and (routing.source is not None or routing.message.address not in watcher.skipped):
        watcher.published(routing)


def _add(watcher: Watcher | None, routing: Routing, queues: Iterable[BrokerQueue], *, stored: bool) -> Publication:
    message, publisher, deliveries = routing.message, routing.publisher, routing.deliveries
    routed, accepted, is_partial = False, True, False
    for queue in queues:
        if not queue.deleted:
            routed = True
            taken, written = queue.publish(message, publisher, deliveries)
            if not taken:
                is_partial |= queue.kind == "classic"
                if watcher is not None:
                    watcher.refused(queue, message)
            accepted, stored = accepted and taken, stored or written
    if routed and accepted:
        return _STORED if stored else _IN_MEMORY
    return Publication(routed, accepted, stored, is_partial)


def check_room(ledger: Ledger, what: str) -> None:
    """Raise ChannelException 406 if definitions already take too much memory to add another."""
    if ledger.definition_bytes > ledger.most_definition_bytes:
        raise precondition_failed(
            f"cannot declare {what}: queues, exchanges, bindings and global parameters take "
            f"{ledger.definition_bytes} bytes, which is more than {ledger.most_definition_bytes}"
        )


def _has_room(ledger: Ledger, routing: Routing) -> bool:
    """Return False if there is no memory for several copies of a message that the broker publishes.

    A few messages can become millions if queues dead-letter them to several queues, which do the same. Blocking
    publishers does not prevent that. A single copy takes the place of the original.
    """
    return len(routing.queues) < 2 or ledger.held_bytes <= ledger.most_bytes


def _without_bcc(message: BrokerMessage) -> BrokerMessage:
    headers = message.headers
    if "BCC" not in headers:
        return message
    copy = message.replace(headers={name: headers[name] for name in headers if name != "BCC"})
    copy.copies = Copies(carbon_copies(headers))
    return copy


def _stream_type() -> type[BrokerQueue]:
    from mqtool.broker.embedded.model.stream_queue import StreamQueue

    return StreamQueue


def _save_queue(ledger: Ledger, queue: BrokerQueue) -> None:
    """Store a new durable queue, and set `queue.key`."""
    queue.key = ledger.new_key()
    ledger.save(
        "queue",
        (queue.vhost, queue.name),
        {
            "vhost": queue.vhost,
            "name": queue.name,
            "auto_delete": queue.auto_delete,
            "arguments": queue.arguments,
            "key": queue.key,
        },
    )


def limit_of(limits: dict[str, int], name: str) -> int | None:
    """Return a limit; None if the limit is not set or negative, which means unlimited in RabbitMQ."""
    limit = limits.get(name, -1)
    return None if limit < 0 else limit
