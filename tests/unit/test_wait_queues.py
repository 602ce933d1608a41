"""Wait queues: what mqtool declares to delay a message, how it publishes the message, and what it later reads from the
name and the arguments of a wait queue.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from mqtool.amqp import Channel
from mqtool.delays.destinations import Destination
from mqtool.delays.wait_queues import (
    LONGEST_IN_QUEUES,
    RELAY,
    ThroughQueues,
    WaitQueue,
    expiration_until_due,
    is_numbered,
    is_retry_queue,
    step_of,
    wait_queue_of,
)
from mqtool.errors import BadData, DeclaredDifferently, NotFound, UsageError
from mqtool.message import DUE, Delivery, Message
from mqtool.topology import Exchange, Queue

_JOBS, _LOGS = Queue("jobs", durable=True), Exchange("logs", "topic", durable=True)
_CLASSIC, _QUORUM, _EXCHANGE = Destination(_JOBS, is_classic=True), Destination(_JOBS), Destination(_LOGS)
_HOUR = 3_600_000
_AT_LEAST_ONCE = {
    "x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
}  # fmt: skip


class FakeBroker:
    """A broker without messages, and one channel to it. Each declaration of a queue takes 10 ms.

    Attributes:
        queues: their arguments, by name.
        exchanges: the types of the exchanges that mqtool has declared, by name.
        bindings: (source, destination, value of the header mqtool-then).
        remembered: what is declared and bound again after a reconnection.
        is_old: the broker refuses queues that dead-letter at least once, as RabbitMQ before 3.10 does.
        refused: the number of refused declarations.
        now: the time on a clock that only this broker advances. The computer was started half a second ago.
    """

    def __init__(self) -> None:
        self.queues: dict[str, Mapping[str, Any]] = {}
        self.exchanges: dict[str, str] = {}
        self.bindings: set[tuple[str, str, str | None]] = set()
        self.remembered: list[object] = []
        self.is_old = False
        self.refused = 0
        self.now = 0.5
        self.connection = self

    def forget(self) -> tuple[object, object, object]:
        """Delete, and return, all queues, exchanges and bindings."""
        deleted = (self.queues, self.exchanges, self.bindings)
        self.queues, self.exchanges, self.bindings = {}, {}, set()
        return deleted

    def channel(self) -> "FakeBroker":
        return self

    def close(self) -> None:
        """Do nothing."""

    def declare(self, thing: Any, *, remember: bool = True, exactly: bool = False) -> Any:
        assert thing.durable
        if isinstance(thing, Exchange):
            assert thing.auto_delete, "the exchange would remain when it is of no more use"
            self.exchanges[thing.name] = thing.type
        else:
            self.now += 0.01
            if self.is_old and "x-dead-letter-strategy" in thing.arguments:
                self.refused += 1
                raise UsageError("no")
            if exactly and self.queues.get(thing.name, thing.arguments) != thing.arguments:
                raise DeclaredDifferently("another TTL")
            self.queues[thing.name] = thing.arguments
        if remember:
            self.remembered.append(thing.name)
        return thing

    def bind(
        self,
        to: Queue | Exchange,
        exchange: Exchange,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        *,
        remember: bool = True,
    ) -> None:
        assert to.name in self.queues or to is _LOGS
        assert exchange.name in self.exchanges
        assert routing_key == ""
        assert arguments is None or arguments["x-match"] == "all"
        binding = (exchange.name, to.name, (arguments or {}).get("mqtool-then"))
        self.bindings.add(binding)
        if remember:
            self.remembered.append(binding)

    def ask(self, request: Any) -> None:
        request(self, None)

    def queue_unbind(self, queue: str, exchange: str, routing_key: str, arguments: Any, **_: object) -> None:
        assert routing_key == ""
        assert arguments["x-match"] == "all"
        self.bindings.discard((exchange, queue, arguments["mqtool-then"]))

    def queue_declare(self, name: str, **_: object) -> None:
        if name not in self.queues:
            raise NotFound("no queue")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    found = FakeBroker()
    monkeypatch.setattr("time.monotonic", lambda: found.now)
    return found


def through(
    broker: FakeBroker, destination: Destination = _QUORUM, avoided: set[str] | None = None
) -> tuple[ThroughQueues, list[str]]:
    """Return an object that delays messages in wait queues, and the list to which it adds its warnings."""
    warnings: list[str] = []
    channel = cast(Channel, broker)
    return ThroughQueues(channel, destination, warnings.append, set() if avoided is None else avoided), warnings


def arguments(ttl: int, exchange: str, key: str | None = None, unused: int = 0, **more: str) -> dict[str, Any]:
    """Return the arguments of a wait queue that expires an hour after `ttl` or `unused` ms, whichever is longer."""
    to = {"x-dead-letter-exchange": exchange} | ({} if key is None else {"x-dead-letter-routing-key": key})
    return {"x-message-ttl": ttl, "x-expires": max(ttl, unused) + _HOUR, **to, **more}


_NOWHERE = {"logs.nowhere": {"x-max-length": 0, "x-expires": 2**32 - 1}}


@pytest.mark.parametrize(
    ("destination", "delay", "queues", "exchanges", "bindings"),
    [
        (_CLASSIC, 5000, {"jobs.delay.5s.classic": arguments(5000, "", "jobs")}, {}, set()),
        (_QUORUM, 5000, {"jobs.delay.5s": arguments(5000, "", "jobs", **_AT_LEAST_ONCE)}, {}, set()),
        (
            _CLASSIC,
            5310,
            {
                "jobs.delay.5s.more.classic": arguments(5000, "jobs.delay.classic", "jobs"),
                "jobs.delay.325ms.classic": arguments(325, "", "jobs", 60_000),
            },
            {"jobs.delay.classic": "headers"},
            {("jobs.delay.classic", "jobs.delay.325ms.classic", "325ms")},
        ),
        (
            Destination(Exchange("logs", "fanout")),
            5000,
            {"logs.exchange.delay.5s.classic": arguments(5000, "logs")},
            {"logs.exchange.delay.5s.classic": "fanout"},
            {("logs.exchange.delay.5s.classic", "logs.exchange.delay.5s.classic", None)},
        ),
        (
            _EXCHANGE,
            61_100,
            {
                "logs.exchange.delay.1m.more": arguments(60_000, "logs.exchange.delay", **_AT_LEAST_ONCE),
                "logs.exchange.delay.1s125ms.5m": arguments(1125, "logs.due", None, 300_000, **_AT_LEAST_ONCE),
                **_NOWHERE,
            },
            {"logs.exchange.delay.1m.more": "fanout", "logs.exchange.delay": "headers", "logs.due": "fanout"},
            {
                ("logs.exchange.delay.1m.more", "logs.exchange.delay.1m.more", None),
                ("logs.exchange.delay", "logs.exchange.delay.1s125ms.5m", "1s125ms.5m"),
                ("logs.due", "logs", None),
                ("logs.due", "logs.nowhere", None),
            },
        ),
    ],
    ids=["classic queue", "quorum queue", "two waits", "transient exchange", "durable exchange, two waits"],
)
def test_the_wait_queues_for_a_delay_have_fixed_names_and_arguments(
    broker: FakeBroker,
    destination: Destination,
    delay: int,
    queues: dict[str, Any],
    exchanges: dict[str, str],
    bindings: set[tuple[str, str, str | None]],
) -> None:
    """For each delay and destination, mqtool declares wait queues and exchanges with fixed names, arguments and
    bindings. Otherwise, the broker could refuse the declarations of another version of mqtool, because wait queues
    outlive the command that declared them. After a reconnection, mqtool declares all of them again.
    """
    delays, warnings = through(broker, destination)
    place = delays.place(Message(b""), lambda: delay)
    assert (broker.queues, broker.exchanges, broker.bindings) == (queues, exchanges, bindings)
    assert sorted(map(str, broker.remembered)) == sorted(map(str, [*queues, *exchanges, *bindings]))
    assert [*place.queues] == [name for name in queues if name != "logs.nowhere"]
    assert warnings == []


@pytest.mark.parametrize(
    ("destination", "delay", "exchange", "key", "expiration", "total", "then"),
    [
        (_CLASSIC, 5000, "", "jobs.delay.5s.classic", "5001", 5000, {}),
        (_QUORUM, 310, "", "jobs.delay.325ms", "311", 325, {}),
        (_QUORUM, 5310, "", "jobs.delay.5s.more", "4986", 5325, {"mqtool-then": "325ms"}),
        (_EXCHANGE, 5000, "logs.exchange.delay.5s", None, "5001", 5000, {}),
    ],
    ids=["queue", "short delay", "two waits", "exchange"],
)
def test_a_delayed_message_is_published_to_its_first_wait_queue_directly_or_through_an_exchange(
    broker: FakeBroker,
    destination: Destination,
    delay: int,
    exchange: str,
    key: str | None,
    expiration: str,
    total: int,
    then: dict[str, str],
) -> None:
    """A delayed message for a queue is published directly to its first wait queue, through the default exchange. A
    delayed message for an exchange keeps its own routing key, and is published to an exchange that leads to its first
    wait queue. The message's expiration is its time in this queue, and the header mqtool-then selects the second wait
    queue, if any. Other properties and headers are kept, except x-death and x-delay, which could make the broker drop
    the message or delay it again.
    """
    headers = {"x-death": [{"queue": "jobs"}], "x-delay": 1, "a": 2}
    message = Message(b"", properties={"type": "t", "headers": headers})
    place = through(broker, destination)[0].place(message, lambda: delay)
    assert (place.exchange, place.routing_key) == (exchange, key)
    assert place.properties == {"type": "t", "expiration": expiration, "headers": {"a": 2, **then}}
    assert place.milliseconds == total


def test_the_time_for_declaring_wait_queues_is_part_of_the_delay(broker: FakeBroker) -> None:
    """A message's due time is fixed before mqtool declares wait queues. Once they are declared, the message waits only
    for the time that is left, and for at least 1 ms. For the next message with this delay, the wait queues exist, so
    mqtool sends no request to the broker.
    """
    due = broker.now + 5.31
    delays, _ = through(broker)
    message = Message(b"")
    place = delays.place(message, lambda: round((due - broker.now) * 1000))
    assert place.properties["expiration"] == str(5310 - 20 + 1 - 325)
    assert place.since == broker.now == 0.52
    broker.now = due
    again = delays.place(message, lambda: round((due - broker.now) * 1000), 5310)
    assert again.queues == ("jobs.delay.5s.more", "jobs.delay.325ms")
    assert again.properties["expiration"] == "1"
    assert (again.since, broker.now) == (0.52, due)


def test_a_wait_queue_is_declared_again_after_ten_minutes(broker: FakeBroker) -> None:
    """A wait queue expires an hour after its last use, and only a declaration counts as use. If mqtool publishes a
    message more than 600 s after the last declaration, it therefore declares the wait queue again, with the exchanges
    in front of it and behind it. After a reconnection, mqtool declares each of these queues and exchanges only once.
    """
    delays, _ = through(broker, _EXCHANGE)
    first = delays.place(Message(b""), lambda: 5310)
    declared, remembered = broker.forget(), [*broker.remembered]
    last = broker.now
    for seconds, again in [(599.0, ({}, {}, set())), (601.0, declared), (1200.0, ({}, {}, set())), (1202.0, declared)]:
        broker.now = last + seconds
        place = delays.place(Message(b""), lambda: 5310)
        assert broker.forget() == again
        assert (place.since, broker.remembered) == (first.since, remembered)
    delays.place(Message(b""), lambda: 6000)
    assert [*broker.queues] == [*broker.exchanges] == ["logs.exchange.delay.6s"]


def test_a_delay_that_is_too_long_for_a_wait_queue_is_refused(broker: FakeBroker) -> None:
    """A wait queue must outlive its messages by an hour, and RabbitMQ limits the expiry of a queue to 2^32 - 1 ms,
    which is 49d17h2m47s295ms. A delay of more than 49d16h2m47s295ms, an hour less, is therefore refused, and the hint
    says that `--via plugin` allows an hour more. The longest possible delay is accepted.
    """
    delays, _ = through(broker)
    with pytest.raises(BadData) as error:
        delays.place(Message(b""), lambda: LONGEST_IN_QUEUES + 1)
    assert str(error.value) == "a delay of 49d16h2m47s296ms is too long for a wait queue"
    assert error.value.hint == "at most 49d16h2m47s295ms; --via plugin takes an hour more"
    assert broker.queues == {}
    assert delays.place(Message(b""), lambda: LONGEST_IN_QUEUES).milliseconds == LONGEST_IN_QUEUES


def test_one_warning_says_that_messages_lose_their_expiration_in_wait_queues(broker: FakeBroker) -> None:
    """If delayed messages have an expiration, mqtool warns once that they lose it in a wait queue."""
    delays, warnings = through(broker)
    for properties in ({}, {"expiration": None}, {"expiration": "1000"}, {"expiration": "2000"}):
        place = delays.place(Message(b"", properties=properties), lambda: 5000)
        assert place.properties["expiration"] in ("5001", "5000")
    assert warnings == ["messages lose their property expiration in a wait queue"]


def test_no_wait_queue_is_declared_for_a_message_to_a_missing_queue(broker: FakeBroker) -> None:
    """If a message names its own destination queue, and this queue does not exist, delaying the message raises
    NotFound, and mqtool declares no wait queue for it.
    """
    delays, _ = through(broker)
    with pytest.raises(NotFound):
        delays.place(Message(b"", "other"), lambda: 5000)
    assert broker.queues == {}
    broker.queues["other"] = {}
    assert delays.place(Message(b"", "other"), lambda: 5000).queues == ("other.delay.5s",)


def test_a_delay_is_refused_if_its_wait_queue_exists_with_other_arguments(broker: FakeBroker) -> None:
    """If a wait queue exists with other arguments than those that mqtool declares, delaying a message raises
    DeclaredDifferently. The hint contains the command that deletes the queue.
    """
    for destination, name in ((_QUORUM, "jobs.delay.5s"), (_CLASSIC, "jobs.delay.5s.classic")):
        broker.queues[name] = {"x-message-ttl": 1}
        with pytest.raises(DeclaredDifferently) as error:
            through(broker, destination)[0].place(Message(b""), lambda: 5000)
        assert str(error.value) == "another TTL"
        hint = f"messages might never leave {name}; once it is empty: mqtool queue delete {name}"
        assert error.value.hint == hint


def test_a_warning_says_that_an_old_broker_may_lose_waiting_messages(broker: FakeBroker) -> None:
    """RabbitMQ before 3.10 does not support at-least-once dead-lettering, and refuses to declare queues that need it.
    After the first refusal, mqtool declares only wait queues that do not need it. One warning says that a restart of
    the broker may lose waiting messages.
    """
    broker.is_old = True
    delays, warnings = through(broker)
    delays.place(Message(b""), lambda: 5310)
    assert broker.queues["jobs.delay.5s.more"] == arguments(5000, "jobs.delay", "jobs")
    assert broker.queues["jobs.delay.325ms"] == arguments(325, "", "jobs", 60_000)
    assert [name for name in broker.remembered if name in broker.queues] == [*broker.queues]
    assert broker.refused == 1
    assert warnings == [
        "this broker's queues cannot dead-letter at least once: a broker restart may lose waiting messages"
    ]


def test_mqtool_can_find_out_whether_a_delayed_message_needs_a_new_wait_queue(broker: FakeBroker) -> None:
    """Before mqtool publishes a delayed message, it can find out whether the first wait queue that the message passes
    through already exists, or would have to be declared.
    """
    broker.queues["other"] = {}
    delays, _ = through(broker)
    message = Message(b"", "other")
    assert delays.is_new(message, 5310) is True
    delays.place(message, lambda: 5310)
    assert delays.is_new(message, 5310) is False
    assert delays.is_new(message, 6310) is True
    assert delays.is_new(Message(b""), 5310) is True
    avoiding, _ = through(broker, avoided={"other.delay.5s.more"})
    assert avoiding.is_new(message, 5310) is True


@pytest.mark.parametrize(
    ("avoided", "queues"),
    [
        ({"jobs.delay.6s"}, ("jobs.delay.5s.more", "jobs.delay.325ms")),
        ({"jobs.delay.5s.more"}, ("jobs.delay.5s.more.2", "jobs.delay.325ms")),
        ({"jobs.delay.325ms"}, ("jobs.delay.5s.more", "jobs.delay.325ms.2")),
        ({"jobs.delay.325ms", "jobs.delay.325ms.2"}, ("jobs.delay.5s.more", "jobs.delay.325ms.3")),
    ],
    ids=["other delay", "first", "second", "second twice"],
)
def test_a_message_waits_in_a_numbered_queue_instead_of_one_without_a_leader(
    broker: FakeBroker, avoided: set[str], queues: tuple[str, str]
) -> None:
    """If a wait queue has no leader, mqtool declares another wait queue, with the same arguments and a number at the
    end of its name. New messages wait in the numbered queue instead.
    """
    delays, _ = through(broker, avoided=avoided)
    place = delays.place(Message(b""), lambda: 5310)
    assert place.queues == queues
    assert place.properties["headers"] == {"mqtool-then": queues[1].removeprefix("jobs.delay.")}
    assert broker.queues == {
        queues[0]: arguments(5000, "jobs.delay", "jobs", **_AT_LEAST_ONCE),
        queues[1]: arguments(325, "", "jobs", 60_000, **_AT_LEAST_ONCE),
    }


def test_messages_that_wait_for_a_second_queue_without_a_leader_are_redirected(broker: FakeBroker) -> None:
    """If the second of the two wait queues for a delay has no leader, mqtool redirects messages that later leave the
    first queue to an additional second queue. New messages wait in an additional first queue, because the original
    one may be blocked by a message that was already on its way to the queue without a leader.
    """
    avoided: set[str] = set()
    delays, _ = through(broker, avoided=avoided)
    delays.place(Message(b""), lambda: 5310)
    assert broker.bindings == {("jobs.delay", "jobs.delay.325ms", "325ms")}
    avoided.add("jobs.delay.325ms")
    assert delays.place(Message(b""), lambda: 5310).queues == ("jobs.delay.5s.more.2", "jobs.delay.325ms.2")
    redirected = ("jobs.delay", "jobs.delay.325ms.2", "325ms")
    assert broker.bindings == {redirected, ("jobs.delay", "jobs.delay.325ms.2", "325ms.2")}
    assert redirected not in broker.remembered
    assert delays.place(Message(b""), lambda: 6000).queues == ("jobs.delay.6s",)
    avoided.add("jobs.delay.5s.more.2")
    assert delays.place(Message(b""), lambda: 5310).queues[0] == "jobs.delay.5s.more.3"


@pytest.mark.parametrize(
    ("longest", "step"),
    [("1m", 25), ("5m", 125), ("30m", 750), ("2h", 3000), ("12h", 15_000), ("2d", 90_000), ("8d", 360_000)],
)
def test_delays_are_rounded_up_to_a_multiple_of_a_step(longest: str, step: int) -> None:
    """mqtool rounds each delay up to a multiple of a step. The step is 25 ms for delays of at most a minute, and larger
    for longer delays, for example 6 minutes for a delay of 8 days.
    """
    milliseconds = int(longest[:-1]) * {"m": 60_000, "h": _HOUR, "d": 24 * _HOUR}[longest[-1]]
    assert step_of(milliseconds) == step
    assert step_of(milliseconds + 1) > step


@pytest.mark.parametrize(
    ("name", "is_retry"),
    [
        ("jobs.wait.1s", True),
        ("jobs.wait.1m30s", True),
        ("jobs.delay.1s", False),
        ("other.wait.1s", False),
        ("jobs", False),
        ("jobs.wait.1s.wait.1s", False),
    ],
)
def test_a_retry_queue_is_recognized_by_its_name(name: str, is_retry: bool) -> None:
    """mqtool recognizes a queue in which messages of `worker` wait for a retry by its name, QUEUE.wait.DELAY, where
    QUEUE is the work queue.
    """
    assert is_retry_queue(name, "jobs") is is_retry
    assert is_retry_queue("a.wait.b.wait.1s", "a.wait.b")


@pytest.mark.parametrize(
    ("name", "numbered"), [("jobs.delay.5s.2", True), ("jobs.delay.5s", False), ("jobs.2", False), ("jobs", False)]
)
def test_a_wait_queue_that_replaces_one_without_a_leader_has_a_number(name: str, numbered: bool) -> None:
    """mqtool recognizes a wait queue that replaces one without a leader by the number at the end of its name, as in
    `jobs.delay.5s.2`.
    """
    assert is_numbered(name) is numbered


# What is read from a queue's name and arguments


def view(name: str, ttl: object = 5000, expires: object = 5000 + _HOUR, **more: object) -> dict[str, Any]:
    """Return the management API's description of a wait queue; its dead letters go to exchange `to`, with `key`."""
    dead = {"to": "x-dead-letter-exchange", "key": "x-dead-letter-routing-key"}
    arguments = {argument: more[word] for word, argument in dead.items() if word in more}
    return {"name": name, "arguments": {"x-message-ttl": ttl, "x-expires": expires, **arguments}}


def nowhere(exchange: str) -> set[str]:
    """Return the names of what is bound to the exchange: nothing."""
    return set()


_LONG = "a" * 300


@pytest.mark.parametrize(
    ("queue", "found"),
    [
        (view("jobs.delay.5s", key="jobs"), WaitQueue("jobs.delay.5s", "", "jobs", 5.0, "delay")),
        (view("jobs.delay.5s", expires=_HOUR, ttl=1, key="jobs"), None),
        (view("jobs.wait.5s", key="jobs"), WaitQueue("jobs.wait.5s", "", "jobs", 5.0, "retry")),
        (view("logs.exchange.delay.5s"), WaitQueue("logs.exchange.delay.5s", "logs", None, 5.0, "delay")),
        (
            view("mqtool.logs.exchange.delay.5s"),
            WaitQueue("mqtool.logs.exchange.delay.5s", "mqtool.logs", None, 5.0, "delay"),
        ),
        (
            view("logs.exchange.delay.5s.more", key="logs.exchange"),
            WaitQueue("logs.exchange.delay.5s.more", "", "logs.exchange", 5.0, "delay"),
        ),
        (view("jobs.delay.5s", key="victim"), None),
        (view("jobs.delay.5s", key=5), None),
        (view("jobs.delay.5s"), None),
        (view("jobs", key="jobs"), None),
        (view("jobs.delay.5s", ttl="5000", key="jobs"), None),
        (view("jobs.delay.5s", expires="3605000", key="jobs"), None),
        (view("jobs.delay.5s", expires=4999 + _HOUR, key="jobs"), None),
        ({"name": "jobs.delay.5s"}, None),
        ({"name": "jobs.delay.5s", "arguments": {"x-message-ttl": 5000}}, None),
        ({"name": "jobs.delay.5s", "arguments": {"x-expires": _HOUR}}, None),
    ],
    ids=[
        "delay", "expires an hour too early", "retry", "exchange", "exchange named mqtool.logs",
        "queue whose name ends with .exchange", "another queue's name", "key is a number", "no key", "other name",
        "TTL is text", "expiry is text", "expires too early", "no arguments", "no expiry", "no TTL",
    ],
)  # fmt: skip
def test_a_wait_queue_is_recognized_by_its_name_and_its_expiry(queue: dict[str, Any], found: WaitQueue | None) -> None:
    """Anyone with permission to declare a queue can name any destination in the queue's arguments. mqtool therefore
    treats a queue as a wait queue for a destination only if the queue has the name that mqtool gives to wait queues
    for this destination, and an x-expires that is at least an hour longer than its x-message-ttl.
    """
    assert wait_queue_of(queue, nowhere) == found
    if found is not None:
        assert found.to == (found.exchange or found.routing_key)


_WAIT, _DUE, _ROUTER = (f"mqtool.amq.topic.{suffix}" for suffix in ("exchange.delay.5s", "due", "exchange.delay"))
_BOUND = {_DUE: {"amq.topic"}}


@pytest.mark.parametrize(
    ("queue", "onward", "to", "place"),
    [
        (view(_WAIT), _BOUND, "amq.topic", (None, None)),
        (view(_WAIT, to="x"), {**_BOUND, "x": {_DUE, "amq.topic"}}, "amq.topic", (None, None)),
        (view(_WAIT, to=_DUE), _BOUND, "amq.topic", ("amq.topic", None)),
        (view(_WAIT, to=_DUE), {_DUE: {"x"}}, "amq.topic", (None, None)),
        (view(f"{_WAIT}.classic", to="amq.topic"), {}, "amq.topic", ("amq.topic", None)),
        (view(f"{_WAIT}.more", to=_ROUTER), _BOUND | {_ROUTER: {_DUE}}, "amq.topic", ("amq.topic", None)),
        (view(f"{_WAIT}.more", to=_ROUTER), _BOUND, "amq.topic", (None, None)),
        (view(f"{_WAIT}.more", to=_ROUTER), _BOUND | {_ROUTER: {"x"}, "x": {_DUE}}, "amq.topic", (None, None)),
        (view(f"{_WAIT}.more", to=_ROUTER), {_ROUTER: {_DUE}}, "amq.topic", (None, None)),
        (
            view(f"{_WAIT}.more.classic", to=f"{_ROUTER}.classic"),
            {f"{_ROUTER}.classic": {"amq.topic"}}, "amq.topic", ("amq.topic", None),
        ),
        (view("mqtool.amq.gen-1.delay.5s", to="", key="amq.gen-1"), {}, "amq.gen-1", ("", "amq.gen-1")),
        (view("mqtool.amq.gen-1.delay.5s", to="mqtool.x", key="amq.gen-1"), {}, "amq.gen-1", (None, None)),
        (view("mqtool.amq.gen-1.delay.5s", key="amq.gen-1"), {}, "amq.gen-1", (None, None)),
    ],
    ids=[
        "no dead-letter exchange", "another dead-letter exchange", "due exchange", "due exchange is not bound",
        "classic", "router", "router without queues", "router with another queue", "router, due exchange is not bound",
        "router, classic", "default exchange", "another exchange for a queue", "queue, no proof",
    ],
)  # fmt: skip
def test_a_wait_queue_proves_an_amq_destination_only_if_it_dead_letters_there(
    queue: dict[str, Any], onward: dict[str, set[str]], to: str, place: tuple[str | None, str | None]
) -> None:
    """The name `mqtool.amq.topic.exchange.delay.5s` does not prove that the user who declared this wait queue has
    permission to write to `amq.topic`. mqtool trusts that the queue's messages go to `amq.topic` only if the queue
    dead-letters to this exchange, directly or through mqtool's exchanges and second wait queues, because the broker
    has then checked the permission at each step. Even without this proof, `delayed ls` shows the destination
    `amq.topic` and the delay.
    """
    found = wait_queue_of(queue, lambda exchange: onward.get(exchange, set()))
    assert found is not None
    assert ((found.exchange, found.routing_key), found.to) == (place, to)
    assert (found.name, found.seconds, found.kind) == (queue["name"], 5.0, "delay")


@pytest.mark.parametrize(
    ("name", "out", "exchange"),
    [("tasks.relay", "tasks.relayed", "tasks.relayed"), ("tasks.relay", "victim", None), ("tasks.relay", 5, None)],
    ids=["proven", "another exchange", "number"],
)
def test_the_exchange_of_a_relay_queue_is_trusted_only_if_it_matches_the_queues_name(
    name: str, out: object, exchange: str | None
) -> None:
    """The queue NAME.relay of `delayed relay` contains messages for the exchange NAME.relayed, which the queue's
    arguments name. Anyone with permission to declare a queue can name another exchange in these arguments. mqtool
    shows this other exchange to the user, but does not trust it, and treats the exchange of the messages as unknown.
    """
    queue = wait_queue_of({"name": name, "arguments": {RELAY: out}}, nowhere)
    assert queue is not None
    assert (queue.name, queue.exchange, queue.routing_key) == (name, exchange, None)
    assert (queue.seconds, queue.kind, queue.to) == (0.0, "relay", str(out))
    assert wait_queue_of({"name": "tasks", "arguments": {RELAY: "tasks.relayed"}}, nowhere) is None


def waiting(headers: dict[str, Any], **properties: Any) -> Delivery:
    return Delivery(b"x", "in", "key", "q", False, {**properties, "headers": headers}, 1)


_TO_QUEUE, _TO_EXCHANGE = (
    WaitQueue("q", exchange, key, 5.0, "delay") for exchange, key in (("", "jobs"), ("logs", None))
)


@pytest.mark.parametrize(
    ("header", "due"),
    [(0, 0.0), (1_700_000_000_500, 1_700_000_000.5), (-1, None), ("1", None), (253_402_214_399_000, 253_402_214_399.0),
     (253_402_214_399_001, None)],
)  # fmt: skip
def test_the_due_time_of_a_delayed_message_is_in_a_header(header: object, due: float | None) -> None:
    """The header mqtool-due of a delayed message contains its due time in milliseconds since 1970. If the header is
    missing, negative, not a number, or later than Python can convert in every time zone, mqtool knows no due time. If a
    message waits for a retry, mqtool ignores the header.
    """
    assert _TO_QUEUE.due_of(waiting({DUE: header})) == due
    assert _TO_QUEUE.due_of(waiting({})) is None
    assert _TO_QUEUE._replace(kind="retry").due_of(waiting({DUE: header})) is None


def test_a_waiting_message_is_shown_as_it_will_be_delivered() -> None:
    """`delayed show` shows a message in a wait queue with the exchange, routing key and properties that it will have
    when it is due: without its expiration and user id, and without headers that the broker or the delay has added. If
    the message was delayed for a queue, CC and BCC are also left out, because the broker removes them when it
    dead-letters the message to this queue. If mqtool cannot verify to which exchange the wait queue leads, the
    message is instead shown with the exchange through which it was published to the wait queue.
    """
    added = {"x-delivery-count": 1, "x-acquired-count": 1, "mqtool-then": "325ms"}
    copies = {"CC": ["a"], "BCC": ["b"]}
    delivery = waiting({**added, **copies, "a": 1}, expiration="5001", user_id="me", type="t", message_id="m")
    found = _TO_QUEUE.original(delivery)
    assert found == Message(b"x", "jobs", "", {"type": "t", "headers": {"a": 1}}, "m")
    found = _TO_EXCHANGE.original(delivery)
    assert found == Message(b"x", "key", "logs", {"type": "t", "headers": {**copies, "a": 1}}, "m")
    request = waiting({}, reply_to="amq.rabbitmq.reply-to")  # over AMQP 1.0; the broker would refuse it
    assert _TO_QUEUE.original(request).properties == {"headers": {}}
    unproven = _TO_EXCHANGE._replace(exchange=None)
    assert unproven.original(waiting({})) == Message(b"x", "key", "in", {"headers": {}})
    assert unproven.to == ""


@pytest.mark.parametrize(
    ("queue", "headers", "own", "expiration"),
    [
        ("jobs.delay.5m", {DUE: 1_060_000}, "300000", 60_001),
        ("logs.exchange.delay.5m.2.classic", {DUE: 1_060_000}, "300000", 60_001),
        # A message in the second queue has no expiration, but still the header that selected the queue.
        ("jobs.delay.3m.2h", {DUE: 1_060_000, "mqtool-then": "3m.2h"}, None, 60_001),
        ("jobs.delay.5m.more", {DUE: 1_060_000, "mqtool-then": "20s.30m.2"}, "300000", 40_001),
        ("jobs.delay.5m.more.classic", {DUE: 1_060_000, "mqtool-then": "3m"}, "300000", 1),
        ("jobs.delay.5m.more", {DUE: 1_060_000, "mqtool-then": "9" * 400 + "d"}, "300000", 60_001),
        ("jobs.delay.5m.more", {DUE: 1_060_000, "mqtool-then": b"x"}, "300000", 60_001),
        ("jobs.delay.5m", {DUE: 253_402_214_399_000}, None, 2**32 - 1),
        ("jobs.delay.5m", {DUE: 1_060_000}, "60001", None),
        ("jobs.delay.5m", {DUE: 999_000}, "300000", 1),
        ("jobs.delay.5m", {DUE: 1_000_000}, None, None),
        ("jobs.delay.5m", {DUE: "1060000"}, "300000", None),
        ("jobs.delay.5m", {}, "300000", None),
        ("jobs.wait.5m", {DUE: 1_060_000}, None, None),
        ("jobs", {DUE: 1_060_000}, "300000", None),
    ],
)
def test_a_delayed_message_published_to_its_wait_queue_again_waits_no_longer_than_before(
    monkeypatch: pytest.MonkeyPatch, queue: str, headers: dict[str, Any], own: str | None, expiration: int | None
) -> None:
    """If mqtool publishes a delayed message to its wait queue again, it sets the expiration so that the message still
    arrives at the due time in its header mqtool-due. It never makes the expiration longer. A message that is already
    due and has no expiration does not get one: it may already be in its destination, an ordinary queue with a name
    like that of a wait queue, where it must not expire.
    """
    monkeypatch.setattr("time.time", lambda: 1000.0)
    delivery = replace(waiting(headers, expiration=own), queue=queue)
    assert expiration_until_due(delivery) == expiration


def test_a_message_that_other_messages_hold_up_in_a_wait_queue_is_reported_as_late() -> None:
    """Only the message at the head of a wait queue can expire, so a message with a short expiration may have to wait
    for those in front of it. If they delay it by more than a second, mqtool reports it as late. For long delays,
    which mqtool rounds more coarsely, this limit is higher. mqtool does not report a message whose expiration is
    about as long as the queue's TTL, because no message in front of it can stay longer than the TTL.
    """

    def late(queue: WaitQueue, *headers: tuple[float, str | None], expiration: str = "1") -> list[bool]:
        tables = [{DUE: int(due * 1000), "mqtool-then": then} for due, then in headers]
        deliveries = [replace(waiting(each, expiration=expiration), queue=queue.name) for each in tables]
        return [is_late for _, is_late in queue.with_order(deliveries)]

    short = WaitQueue("jobs.delay.5s", "", "jobs", 5.0, "delay")
    assert late(short, (10, None), (14, None), (13.5, None), (12.5, None), (14, None)) == [False] * 3 + [True, False]
    long = short._replace(name="jobs.delay.2h.more", seconds=7200.0)
    assert late(long, (1010, "10s"), (1000, "10s"), (900, "10s")) == [False, False, True]
    assert late(long, (2000, "1000s"), (1060, "60s")) == [False, False]
    assert late(long, (2000, "60s"), (1060, "60s")) == [False, True]
    assert late(short._replace(kind="retry"), (20, None), (10, None)) == [False, False]
    assert late(short._replace(seconds=1e9), (10**8, None), (10, None)) == [False, True]
    forged, honest = (time.time() + 1e9, None), (time.time() + 1, None)
    assert late(short, forged, honest) == [False, True]
    assert late(short, forged, honest, expiration="4001") == [False, False]
    assert late(short, forged, (time.time() + 4.9, None)) == [False, False]
    deliveries = [waiting({DUE: 10_000}), waiting({})]
    assert [*short.with_order(deliveries)] == [(each, False) for each in deliveries]
