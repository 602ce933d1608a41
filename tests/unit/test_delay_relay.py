"""`delayed relay`: what it declares and publishes, when it acknowledges a message, and which wait queues it avoids."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, cast

import pytest

from mqtool.amqp import Receiving
from mqtool.delays.wait_queues import LONGEST_IN_QUEUES
from mqtool.errors import BadData, DeclaredDifferently, HeadersTooLarge, NotConfirmed, NotFound, Unavailable
from mqtool.message import DUE, Confirmation, Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue
from mqtool.work.delay_relay import Relay, RelayNames, WaitQueueChecks
from mqtool.work.transfer import NotMoved

#: The time of the tests, in seconds since 1970.
NOW = 1_700_000_000.0
NAMES = RelayNames.of("tasks")
WAIT = "tasks.relayed.exchange.delay.5s"


class FakeBroker:
    """A broker, its connections and their channels, which behave as one.

    Attributes:
        answer: returns the broker's response to a message.
        fits: the most headers that a message with the body "large" can have.
        is_slow: confirm messages only when there is nothing more to publish.
        has_looked: set once the relay has waited for an answer.
        leader: returns what basic.get finds in a queue. Raises NotConfirmed if the queue has no leader.
        published, acknowledged, rejected: the messages, and the tags of deliveries, in order.
        patience: how long the relay has waited for deliveries, each time.
    """

    def __init__(self, *deliveries: Delivery, broker: str = "the embedded broker") -> None:
        self.connection = self
        self.broker_to_show = self.broker = broker
        self.waiting = [*deliveries]
        self.answer: Callable[[Message], Confirmation] = lambda _: Confirmation.CONFIRMED
        self.leader: Callable[[str], object] = lambda _: None
        self.published: list[Message] = []
        self.acknowledged: list[int] = []
        self.rejected: list[int] = []
        self.patience: list[float] = []
        self.declared: list[Any] = []
        self.connections = 0
        self.closed = 0
        self.is_open = True
        self.is_slow = False
        self.fits = 1
        self.has_looked = threading.Event()

    def consumer(self, queue: Queue, receiving: Receiving) -> "FakeBroker":
        assert (queue, receiving) == (NAMES.intake, Receiving(200, acknowledge=False))
        return self

    def deliveries(self) -> Iterator[Delivery]:
        while self.waiting:
            yield self.waiting.pop(0)

    def arrives(self, patience: float) -> bool:
        """True if there is a delivery, or if the relay waits for nothing else and is stopped now."""
        self.patience.append(patience)
        if patience == 0.005:
            self.has_looked.set()
        return bool(self.waiting) or patience == 1.0

    def publish(self, messages: Iterator[Message | None], *, mandatory: bool, window: int) -> Iterator[Receipt]:
        assert (mandatory, window) == (True, 200)
        unconfirmed: list[Receipt] = []
        sequence = 0
        for message in messages:
            if message is not None:
                if message.body == b"cannot be encoded":
                    raise BadData("no")
                if message.body == b"large" and len(message.properties["headers"] or ()) > self.fits:
                    raise HeadersTooLarge("too large")
                self.published.append(message)
                sequence += 1
                unconfirmed.append(Receipt(message, self.answer(message), "why", sequence))
            if message is None or not self.is_slow:
                yield from unconfirmed
                unconfirmed.clear()

    def acknowledge(self, *deliveries: Delivery) -> None:
        self.acknowledged += [each.delivery_tag for each in deliveries]

    def reject(self, delivery: Delivery) -> None:
        self.rejected.append(delivery.delivery_tag)

    @contextmanager
    def beside(self) -> Iterator["FakeBroker"]:
        self.connections += 1
        yield self
        self.closed += 1

    def channel(self) -> "FakeBroker":
        return self

    def close(self) -> None:
        """Do nothing."""

    def depth_of(self, _: str) -> int:
        return 0

    def get(self, queue: str, within: float) -> object:
        assert within == 10.0
        return self.leader(queue)

    def declare(self, thing: Any, **how: bool) -> Any:
        self.declared.append((thing, how))
        return thing

    def bind(self, *things: Any, **how: Any) -> None:
        self.declared.append((*things, how))

    def ask(self, request: Any) -> None:
        request(self, None)


def job(tag: int, body: bytes = b"job", key: str = "eu", message_id: str | None = "m", **headers: Any) -> Delivery:
    """A message in the relay's queue; `x_delay` stands for the header x-delay."""
    named = {name.replace("x_", "x-"): value for name, value in headers.items()}
    properties = {"headers": named or None, "message_id": message_id, "type": "t"}
    return Delivery(body, "tasks", key, "tasks.relay", False, properties, tag)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)


class Relayed:
    """The warnings and counts of `delayed relay`, after the command has relayed the messages of a broker."""

    def __init__(self, broker: FakeBroker, dead: set[str] | None = None, **options: bool) -> None:
        self.warnings: list[str] = []
        self.counts = Counter({"delayed": 10})
        channel: Any = broker
        self.dead = set() if dead is None else dead
        self.relay = Relay(channel, channel, NAMES, "me", self.warnings.append, self.counts, self.dead, **options)

    def run(self) -> "Relayed":
        self.relay.run()
        assert self.relay.counts is self.counts
        return self


# What a relay declares


def test_delayed_relay_has_a_fanout_exchange_a_queue_and_an_exchange_for_due_messages() -> None:
    """`delayed relay tasks` uses the fanout exchange `tasks`, the quorum queue `tasks.relay` with the largest possible
    delivery limit, and the exchange `tasks.relayed`, of the requested type, for due messages. With --to, an existing
    exchange takes the place of `tasks.relayed`. The queue dead-letters to the queue `tasks.relay.dlq` with the strategy
    at-least-once.
    """
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2**31 - 1,
        "x-dead-letter-exchange": "tasks.relay.dlq",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert RelayNames(
        Exchange("tasks", "fanout", durable=True),
        Queue("tasks.relay", durable=True, arguments={**arguments, "x-mqtool-relay": "tasks.relayed"}),
        Exchange("tasks.relayed", "direct", durable=True),
        is_ours=True,
    ) == RelayNames.of("tasks")
    assert RelayNames.of("tasks").dead_letters == Queue("tasks.relay.dlq", durable=True)
    other = RelayNames.of("tasks", "topic", "due")
    assert (other.out, other.is_ours) == (Exchange("due", "topic", durable=True), False)
    assert other.intake.arguments["x-mqtool-relay"] == "due"


class Declaring(FakeBroker):
    """A broker that has some exchanges already, and refuses to declare others."""

    def __init__(self, *has: str, refuses: str = "") -> None:
        super().__init__()
        self.has, self.refuses = has, refuses

    def declare(self, thing: Any, **how: bool) -> Any:
        if thing.name == self.refuses:
            raise DeclaredDifferently("another type")
        return super().declare(thing, **how)

    def exchange_declare(self, name: str, *_: object, **__: object) -> None:
        if name not in self.has:
            raise NotFound(f"no exchange {name}")


HOW = {"remember": False, "exactly": True}
DEAD_LETTERS = Exchange("tasks.relay.dlq", "fanout", durable=True)
DECLARED = [
    (NAMES.entrance, HOW),
    (NAMES.intake, HOW),
    (DEAD_LETTERS, HOW),
    (NAMES.dead_letters, HOW),
    (NAMES.dead_letters, DEAD_LETTERS, {"remember": False}),
    (NAMES.intake, NAMES.entrance, {"remember": False}),
]


@pytest.mark.parametrize(
    ("has", "keep_type", "first"),
    [
        ((), True, [(NAMES.out, HOW)]),
        ((), False, [(NAMES.out, HOW)]),
        (("tasks.relayed",), True, []),
        (("tasks.relayed",), False, [(NAMES.out, HOW)]),
    ],
)
def test_delayed_relay_declares_its_exchanges_and_its_queue(
    has: tuple[str, ...], *, keep_type: bool, first: Any
) -> None:
    """`delayed relay` declares the exchange that clients publish to, the exchange that routes due messages, its own
    queue, and an exchange and a queue for dead letters. It also binds both queues. If the exchange that routes due
    messages already exists, and --type is not given, the command uses this exchange, whatever its type.
    """
    broker = Declaring(*has)
    NAMES.declare(cast(Any, broker), keep_type=keep_type)
    assert broker.declared == [*first, *DECLARED]


def test_delayed_relay_does_not_declare_the_exchange_given_with_to() -> None:
    """`delayed relay --to EXCHANGE` routes due messages through EXCHANGE, and does not declare EXCHANGE. If EXCHANGE
    does not exist, NotFound is raised, and nothing is declared.
    """
    names = RelayNames.of("tasks", to="due")
    broker = Declaring("due")
    names.declare(cast(Any, broker), keep_type=False)
    assert [thing.name for thing, *_ in broker.declared] == [thing.name for thing, *_ in DECLARED]
    broker = Declaring()
    with pytest.raises(NotFound):
        names.declare(cast(Any, broker), keep_type=True)
    assert broker.declared == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "tasks",
            "name another exchange, to which clients then publish; for one of the plugin, see 'mqtool delayed migrate "
            "--help'",
        ),
        ("tasks.relay", "does it relay to another exchange? Once it is empty: mqtool queue delete tasks.relay"),
    ],
)
def test_delayed_relay_says_what_to_do_if_its_exchange_or_queue_was_declared_differently(name: str, hint: str) -> None:
    """If the exchange that `delayed relay` declares exists with another type or other properties, the error's hint
    suggests another exchange. If the command's queue exists with other properties or arguments, the hint contains the
    command that deletes the queue.
    """
    with pytest.raises(DeclaredDifferently) as refused:
        NAMES.declare(cast(Any, Declaring(refuses=name)), keep_type=True)
    assert (str(refused.value), refused.value.hint) == ("another type", hint)


# What a relay publishes


def test_delayed_relay_publishes_a_message_without_x_delay_immediately() -> None:
    """`delayed relay` immediately publishes a message without the header x-delay to the exchange for due messages, with
    the message's own routing key and properties. The command removes headers that the broker has added, and headers
    that mqtool has added for an earlier delay.
    """
    headers = {"x_delivery-count": 1, "x_acquired-count": 2, DUE: 3, "mqtool-then": "4", "a": 5}
    broker = FakeBroker(job(7, **headers), job(8))
    relayed = Relayed(broker).run()
    first, second = broker.published
    assert (first.body, first.routing_key, first.exchange, first.message_id) == (b"job", "eu", "tasks.relayed", "m")
    assert first.properties == {"type": "t", "user_id": None, "headers": {"a": 5}}
    assert second.properties == {"type": "t", "user_id": None, "headers": None}
    assert broker.acknowledged == [7, 8]
    assert (relayed.counts, relayed.warnings) == ({"delayed": 10, "at once": 2}, [])
    assert set(broker.patience) == {1.0}
    assert broker.connections == 0


@pytest.mark.parametrize(("user_id", "kept"), [("me", "me"), ("you", None), (None, None)])
def test_delayed_relay_removes_the_user_id_of_another_user(user_id: str | None, kept: str | None) -> None:
    """If a message's user_id names a user other than the one that `delayed relay` logs in as, the command removes the
    user_id before it publishes the message. The broker would otherwise refuse the message.
    """
    delivery = job(1)
    cast(dict[str, Any], delivery.properties)["user_id"] = user_id
    broker = FakeBroker(delivery)
    Relayed(broker).run()
    assert broker.published[0].properties["user_id"] == kept


def test_delayed_relay_removes_the_address_for_direct_replies() -> None:
    """If a message that was published over AMQP 1.0 has the reply_to amq.rabbitmq.reply-to, `delayed relay` removes
    this property: the broker would otherwise close the channel.
    """
    delivery = job(1)
    cast(dict[str, Any], delivery.properties)["reply_to"] = "amq.rabbitmq.reply-to"
    broker = FakeBroker(delivery)
    Relayed(broker).run()
    assert "reply_to" not in broker.published[0].properties


def test_delayed_relay_publishes_a_message_with_x_delay_to_a_wait_queue() -> None:
    """If a message has the header x-delay, `delayed relay` publishes it to a wait queue, in which it stays until it
    is due. In the published message, another header contains the time at which the message is due, and x-delay
    contains the negative delay, as with the delayed message plugin.
    """
    broker = FakeBroker(job(7, x_delay=5000, a=1))
    relayed = Relayed(broker).run()
    [message] = broker.published
    assert (message.body, message.routing_key, message.exchange, message.message_id) == (b"job", "eu", WAIT, "m")
    headers = {"a": 1, DUE: int(NOW * 1000) + 5000, "x-delay": -5000}
    assert message.properties == {"type": "t", "user_id": None, "headers": headers, "expiration": "5001"}
    assert broker.acknowledged == [7]
    assert relayed.counts == {"delayed": 11}
    assert (broker.connections, broker.closed) == (1, 1)


def test_delayed_relay_checks_every_5_ms_whether_a_wait_queue_has_answered() -> None:
    """Before `delayed relay` publishes messages to a wait queue, it checks whether the queue has a leader. Until the
    queue has answered, the command waits for deliveries for at most 5 ms at a time, so that it soon notices the answer.
    """
    broker = FakeBroker(job(7, x_delay=5000))
    broker.leader = lambda _: broker.has_looked.wait(30)
    Relayed(broker).run()
    assert set(broker.patience) == {1.0, 0.005}
    assert len(broker.published) == 1


def test_delayed_relay_waits_50_ms_for_more_messages_before_it_waits_for_confirms() -> None:
    """While messages that it has published are unconfirmed, `delayed relay` waits up to 50 ms for the next delivery. If
    no delivery arrives in this time, it waits for the confirms.
    """
    broker = FakeBroker(job(1), job(2))
    broker.is_slow = True
    Relayed(broker).run()
    assert broker.patience == [1.0, 0.05, 0.05, 1.0]
    assert broker.acknowledged == [1, 2]


def test_delayed_relay_checks_a_wait_queue_once_for_several_messages() -> None:
    """Messages with the same delay wait in the same queue. `delayed relay` checks only once for all of them whether
    this queue has a leader.
    """
    asked: list[str] = []
    broker = FakeBroker(*[job(tag, x_delay=5000) for tag in range(3)])
    broker.leader = lambda queue: asked.append(queue)
    Relayed(broker).run()
    assert asked == [WAIT]
    assert sorted(broker.acknowledged) == [0, 1, 2]


@pytest.mark.parametrize(
    ("published", "option", "left"),
    [
        (NOW * 1000 - 2000, True, 3000),
        (NOW * 1000 - 2000, False, 5000),
        (NOW * 1000 + 9000, True, 5000),
        ("soon", True, 5000),
        (NOW * 1000 - 90_000, True, 1),
    ],
)
def test_with_by_timestamps_a_delay_counts_from_the_time_of_publication(
    published: Any, option: bool, left: int
) -> None:
    """With `delayed relay --by-timestamps`, a message's delay starts at the time in the header timestamp_in_ms. If
    the delay is already over, the message gets the shortest delay, 1 ms. If the header is not a number or contains a
    time in the future, the delay starts when the command receives the message, as it does without --by-timestamps.
    """
    given = int(published) if isinstance(published, float) else published
    broker = FakeBroker(job(7, x_delay=5000, timestamp_in_ms=given))
    Relayed(broker, by_timestamps=option).run()
    [message] = broker.published
    begun = given if option and isinstance(given, int) and given < NOW * 1000 else int(NOW * 1000)
    assert message.properties["headers"][DUE] == begun + 5000
    assert message.properties["expiration"] == str(left + 1)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("soon", ": 'soon'"),
        (Decimal("100.5"), ": Decimal('100.5')"),
        (True, " up to 4294967295: True"),
        ([5], " up to 4294967295: [5]"),
        (2**32, " up to 4294967295: 4294967296"),
    ],
)
def test_delayed_relay_ignores_an_invalid_x_delay_with_a_warning(value: Any, told: str) -> None:
    """If a message's x-delay is not an integer or is larger than 4,294,967,295 (the largest 32-bit number), `delayed
    relay` publishes the message immediately, without a delay, and prints a warning that names the message.
    """
    broker = FakeBroker(job(7, x_delay=value))
    relayed = Relayed(broker).run()
    assert broker.published[0].exchange == "tasks.relayed"
    assert broker.published[0].properties["headers"] == {"x-delay": value}
    assert relayed.warnings == [f"message m is not delayed: x-delay is not a number of milliseconds{told}"]


@pytest.mark.parametrize("more", [0, 1])
def test_a_delay_that_is_too_long_for_a_wait_queue_is_shortened_with_a_warning(more: int) -> None:
    """A message can wait in wait queues for up to 49d16h2m47s295ms, an hour less than the largest x-delay. If its delay
    is longer, `delayed relay` shortens the delay to this time, and prints a warning that names the message.
    """
    broker = FakeBroker(job(7, x_delay=LONGEST_IN_QUEUES + more))
    relayed = Relayed(broker).run()
    assert broker.published[0].properties["headers"][DUE] == int(NOW * 1000) + LONGEST_IN_QUEUES
    longest = "49d16h2m47s295ms"
    assert relayed.warnings == ([f"message m is delayed by {longest}, the longest possible delay"] if more else [])


def test_delayed_relay_rejects_a_message_that_it_cannot_encode() -> None:
    """If `delayed relay` has received a message that it cannot encode, and so cannot publish again, it rejects the
    message, so that the broker dead-letters it. The command prints a warning that names the dead-letter queue, and
    relays the messages that follow.
    """
    broker = FakeBroker(job(1), job(2, b"cannot be encoded"), job(3))
    relayed = Relayed(broker).run()
    assert (broker.acknowledged, broker.rejected) == ([1, 3], [2])
    assert relayed.warnings == ["message m is dead-lettered to 'tasks.relay.dlq': no"]
    assert relayed.counts["at once"] == 2


@pytest.mark.parametrize("headers", [{"x_delay": 5000}, {"x_delay": 5000, "x_death": [{"queue": "q" * 200}]}])
def test_a_message_whose_headers_leave_no_room_for_a_delay_is_published_immediately(headers: dict[str, Any]) -> None:
    """To delay a message, `delayed relay` adds headers to it. If these do not fit into a frame together with the
    message's own headers, or leave too little room for the headers that the broker adds to a dead letter, the command
    publishes the message immediately, without a delay. It prints a warning and acknowledges the message.
    """
    broker = FakeBroker(job(1, b"large", **headers), job(2))
    relayed = Relayed(broker).run()
    assert [(each.exchange, each.properties["headers"]) for each in broker.published if each.body == b"large"] == [
        ("tasks.relayed", {"x-delay": 5000})
    ]
    assert sorted(broker.acknowledged) == [1, 2]
    assert relayed.warnings == ["message m is not delayed: too large"]


def test_delayed_relay_rejects_a_message_that_can_never_be_published() -> None:
    """If the headers of a message do not fit into a frame, even without those that `delayed relay` adds for the delay,
    the command prints warnings and rejects the message, so that the broker dead-letters it.
    """
    broker = FakeBroker(job(1, b"large", x_delay=5000), job(2))
    broker.fits = 0
    relayed = Relayed(broker).run()
    assert (broker.acknowledged, broker.rejected) == ([2], [1])
    assert relayed.warnings == [
        "message m is not delayed: too large",
        "message m is dead-lettered to 'tasks.relay.dlq': too large",
    ]


# The broker's responses


def test_an_unroutable_due_message_is_dropped_and_counted() -> None:
    """If a message that is due is unroutable, `delayed relay` drops and counts the message, as the delayed message
    plugin does.
    """
    broker = FakeBroker(job(7))
    broker.answer = lambda _: Confirmation.RETURNED
    relayed = Relayed(broker).run()
    assert relayed.counts == {"delayed": 10, "unroutable": 1}
    assert broker.acknowledged == [7]


@pytest.mark.parametrize("delayed", [False, True])
def test_a_due_message_that_a_queue_rejects_is_delayed_for_another_second(*, delayed: bool) -> None:
    """If a queue rejects a message that is due, `delayed relay` publishes the message to a wait queue, in which it
    stays for 1 s, and acknowledges the delivery. If the message has the header x-delay, this header is set to -1000, as
    after any delay of 1 s. Otherwise, the header is not added.
    """
    broker = FakeBroker(job(7, **({"x_delay": 0} if delayed else {})))
    broker.answer = lambda message: (
        Confirmation.NACKED if message.exchange == "tasks.relayed" else Confirmation.CONFIRMED
    )
    relayed = Relayed(broker).run()
    assert [message.exchange for message in broker.published] == ["tasks.relayed", "tasks.relayed.exchange.delay.1s"]
    again = {DUE: int(NOW * 1000) + 1000, **({"x-delay": -1000} if delayed else {})}
    assert broker.published[1].properties["headers"] == again
    assert broker.published[1].properties["expiration"] == "1001"
    assert broker.acknowledged == [7]
    assert relayed.counts == {"delayed": 11}


@pytest.mark.parametrize("confirmation", [Confirmation.NACKED, Confirmation.RETURNED])
def test_delayed_relay_ends_if_a_message_does_not_reach_its_wait_queue(confirmation: Confirmation) -> None:
    """If a wait queue rejects a delayed message, or the broker returns the message as unroutable, `delayed relay` ends
    with an error. The message stays in the command's queue.
    """
    broker = FakeBroker(job(7, x_delay=5000))
    broker.answer = lambda _: confirmation
    with pytest.raises(NotMoved) as refused:
        Relayed(broker).run()
    assert str(refused.value) == "'eu' did not take message m: why"
    assert broker.acknowledged == []
    assert broker.closed == broker.connections == 1


class Monotonic:
    """A monotonic clock that advances only while something sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 500.0
        self.slept: list[float] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("broker_name", ["RabbitMQ 4.2", "the embedded broker"])
def test_a_message_is_acknowledged_only_1_5_s_after_the_declaration_of_its_new_wait_queue(
    monkeypatch: pytest.MonkeyPatch, broker_name: str
) -> None:
    """If RabbitMQ is killed just after it has declared a quorum queue, it may lose the queue with its messages. When
    `delayed relay` declares a wait queue and publishes a message to it, the command therefore acknowledges the
    original message only 1.5 s after the declaration, even if the command is being stopped. With the embedded broker,
    which does not lose such a queue, the command does not wait.
    """
    clock = Monotonic(monkeypatch)
    broker = FakeBroker(job(7, x_delay=5000), job(8), broker=broker_name)
    acknowledged: list[tuple[float, int]] = []
    monkeypatch.setattr(
        broker, "acknowledge", lambda *given: acknowledged.extend((clock.now, each.delivery_tag) for each in given)
    )
    Relayed(broker).run()
    later = 501.5 if broker_name == "RabbitMQ 4.2" else 500.0
    assert sorted(acknowledged, key=lambda each: each[1]) == [(later, 7), (500.0, 8)]
    assert sum(clock.slept) == later - 500


# Wait queues without a leader


def checking(broker: FakeBroker, dead: set[str]) -> tuple[WaitQueueChecks, list[str]]:
    """The checks of wait queues, and their warnings."""
    warnings: list[str] = []
    return WaitQueueChecks(cast(Any, broker), dead, warnings.append), warnings


def wait_for_changes(checks: WaitQueueChecks) -> None:
    """Wait until queues have answered, on another thread."""
    deadline = time.perf_counter() + 30
    while not checks.have_changed(is_pressed=False):
        assert time.perf_counter() < deadline, "no queue has answered"


def test_a_wait_queue_is_used_only_after_it_has_answered_a_check_for_a_leader() -> None:
    """A wait queue without a leader would not confirm messages. Before `delayed relay` publishes messages to a wait
    queue, it therefore checks that the queue has a leader, and waits for the queue's answer. It checks each queue
    only once.
    """
    asked: list[str] = []
    broker = FakeBroker()
    broker.leader = lambda queue: asked.append(queue)
    checks, warnings = checking(broker, set())
    with checks:
        assert not checks.are_outstanding
        assert not checks.have_changed(is_pressed=False)
        assert not checks.have_answered(["a", "b"])
        assert not checks.have_answered(["a"])
        assert checks.are_outstanding
        while checks.are_outstanding:
            wait_for_changes(checks)
        assert checks.have_answered(["a", "b"])
        assert not checks.have_changed(is_pressed=False)
    assert sorted(asked) == ["a", "b"]
    assert (warnings, checks.avoided) == ([], set())
    assert broker.connections == broker.closed == 1


def no_leader(_: str) -> object:
    raise NotConfirmed("no answer")


def test_a_wait_queue_without_a_leader_is_avoided_with_a_warning() -> None:
    """A wait queue without a leader would not confirm messages, so `delayed relay` does not use it, not even after a
    reconnection. A warning contains the command that deletes the queue.
    """
    broker, dead = FakeBroker(), {"known"}
    broker.leader = no_leader
    checks, warnings = checking(broker, dead)
    assert checks.avoided == {"known"}
    with checks:
        checks.have_answered(["a"])
        wait_for_changes(checks)
        assert not checks.have_answered(["a"])
    assert checks.avoided == dead == {"known", "a"}
    assert warnings == [
        "wait queue 'a' has no leader, so messages wait in another queue; if RabbitMQ was killed just after it had "
        "declared 'a', it is empty, and can only be deleted: mqtool queue delete a"
    ]


def test_a_wait_queue_that_has_been_deleted_passes_the_check_of_delayed_relay() -> None:
    """Before `delayed relay` first publishes to a wait queue, it checks that the queue has a leader, because a queue
    without one confirms nothing. A wait queue that has been deleted passes this check without a warning. This is
    harmless, because the broker returns a message for a deleted queue as unroutable.
    """
    broker = FakeBroker()

    def deleted(_: str) -> object:
        raise NotFound("no queue")

    broker.leader = deleted
    checks, warnings = checking(broker, set())
    with checks:
        checks.have_answered(["a"])
        wait_for_changes(checks)
        assert checks.have_answered(["a"])
    assert warnings == []


def test_delayed_relay_opens_another_connection_if_the_one_for_checks_is_closed() -> None:
    """`delayed relay` checks its wait queues over a separate connection. If RabbitMQ closes this connection during a
    check, the command opens a new one for the checks, and repeats the check. When the command ends, it also closes
    the new connection.
    """
    broker = FakeBroker()
    lost = [Unavailable("lost")]

    def answers(_: str) -> object:
        if lost:
            raise lost.pop()
        return None

    broker.leader = answers
    checks, _ = checking(broker, set())
    with checks:
        checks.have_answered(["a"])
        wait_for_changes(checks)
        assert checks.have_answered(["a"])
        assert (broker.connections, broker.closed) == (2, 1)
    assert broker.closed == 2


@pytest.mark.parametrize(
    ("pressed", "seconds", "avoided"), [(False, 3.0, False), (False, 3.1, True), (True, 0.5, False), (True, 0.6, True)]
)
def test_a_slow_wait_queue_is_avoided_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, *, pressed: bool, seconds: float, avoided: bool
) -> None:
    """Before `delayed relay` first publishes to a wait queue, it checks that the queue has a leader. If there is no
    answer for more than 3 s, or for more than 0.5 s while many messages wait for such checks, the command avoids the
    queue until it answers. Meanwhile, it uses an additional wait queue, whose name ends in `.2`, even if the
    additional queue also answers slowly.
    """
    clock = Monotonic(monkeypatch)
    may_answer = threading.Event()
    broker = FakeBroker()
    broker.leader = lambda _: may_answer.wait(30)
    checks, warnings = checking(broker, set())
    with checks:
        checks.have_answered(["jobs.delay.5s", "jobs.delay.5s.2"])
        clock.now += seconds
        assert checks.have_changed(is_pressed=pressed) is avoided
        assert checks.avoided == ({"jobs.delay.5s"} if avoided else set())
        assert not checks.have_changed(is_pressed=pressed)
        may_answer.set()
        while checks.are_outstanding:
            wait_for_changes(checks)
        assert checks.avoided == set()
    assert warnings == []


def test_a_check_that_is_running_when_delayed_relay_ends_opens_no_connection() -> None:
    """If `delayed relay` ends during a check of a wait queue, it closes the connection for checks without waiting for
    the check to end. The check then fails because its connection is closed, and does not open a new one.
    """
    started, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()
    broker = FakeBroker()

    def lost(_: str) -> object:
        started.set()
        may_go_on.wait(30)
        ended.set()
        raise Unavailable("lost")

    broker.leader = lost
    checks, _ = checking(broker, set())
    with checks:
        checks.have_answered(["a"])
        assert started.wait(30)
    assert broker.closed == 1
    may_go_on.set()
    assert ended.wait(30)
    with pytest.raises(Unavailable) as refused:
        wait_for_changes(checks)
    assert str(refused.value) == "the connection is closed"
    assert broker.connections == 1


def test_a_message_waits_in_another_queue_if_its_wait_queue_has_no_leader() -> None:
    """All messages with the same delay wait in the same wait queue. If this queue has no leader, `delayed relay`
    publishes them to an additional wait queue. Messages without a delay, and messages with other delays, are relayed as
    usual.
    """
    broker = FakeBroker(job(1, x_delay=5000), job(2), job(3, x_delay=2000))
    broker.leader = lambda queue: no_leader(queue) if queue == WAIT else None
    relayed = Relayed(broker).run()
    assert {message.exchange for message in broker.published} == {
        "tasks.relayed",
        "tasks.relayed.exchange.delay.2s",
        f"{WAIT}.2",
    }
    assert sorted(broker.acknowledged) == [1, 2, 3]
    assert relayed.dead == {WAIT}
    assert len(relayed.warnings) == 1


def test_delayed_relay_does_not_use_a_wait_queue_that_an_earlier_run_found_without_a_leader() -> None:
    """If an earlier run of `delayed relay` found that a wait queue has no leader, a later run neither uses nor checks
    this queue, but uses an additional wait queue instead.
    """
    asked: list[str] = []
    broker = FakeBroker(job(1, x_delay=5000))
    broker.leader = lambda queue: asked.append(queue)
    Relayed(broker, {WAIT}).run()
    assert asked == [f"{WAIT}.2"]
