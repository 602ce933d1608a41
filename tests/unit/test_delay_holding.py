"""How delayed messages are rewritten so that they wait in the exchange of the delayed message plugin or in queues."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from mqtool.amqp import Channel
from mqtool.delays import LONGEST, Via, original
from mqtool.delays.delay_plugin import LOSES, PluginMissing
from mqtool.delays.destinations import Destination
from mqtool.delays.holding import Delaying, Held
from mqtool.errors import BadData, DeclaredDifferently, NotFound, UnknownExchangeType
from mqtool.message import DUE, PERSISTENT, Message
from mqtool.topology import DEFAULT_EXCHANGE, DELAYED, Exchange, Queue

#: The time of the tests, in seconds since 1970.
_NOW = 1_700_000_000.0
_JOBS, _LOGS = Queue("jobs", durable=True), Exchange("logs", "fanout")
_CLASSIC, _QUORUM = Destination(_JOBS, is_classic=True), Destination(_JOBS, is_classic=False)
_NO_PLUGIN = f"messages wait in queues: RabbitMQ 4.2 has no exchange 'mqtool.delayed' of type {DELAYED}"


class FakeBroker:
    """A broker, and one channel to it.

    Attributes:
        queues, exchanges: what exists, by name.
        declared: the names that were declared, in order.
        in_flight: the number of unconfirmed messages.
    """

    broker = broker_to_show = "RabbitMQ 4.2"

    def __init__(self, *has: Exchange | Queue, plugin: bool = True) -> None:
        self.queues = {thing.name: thing for thing in has if isinstance(thing, Queue)}
        self.exchanges = {thing.name: thing for thing in has if isinstance(thing, Exchange)}
        self.plugin = plugin
        self.declared: list[str] = []
        self.in_flight = 0
        self.connection = self

    def channel(self) -> "FakeBroker":
        return self

    @contextmanager
    def beside(self) -> Iterator["FakeBroker"]:
        yield self

    def close(self) -> None:
        """Do nothing."""

    def declare(self, thing: Any, **_: bool) -> Any:
        if isinstance(thing, Queue):
            self.queues[thing.name] = thing
        elif thing.type == DELAYED and not self.plugin:
            raise UnknownExchangeType("unknown type")
        elif self.exchanges.setdefault(thing.name, thing).type != thing.type:
            raise DeclaredDifferently("another type")
        self.declared.append(thing.name)
        return thing

    def bind(self, *_: object, **__: object) -> None:
        """Do nothing."""

    def ask(self, request: Any) -> None:
        """Look for a queue or an exchange; `request` sends the method."""
        request(self, None)

    def queue_declare(self, name: str, **_: object) -> None:
        if name not in self.queues:
            raise NotFound(f"no queue {name}")

    def exchange_declare(self, name: str, *_: object, **__: object) -> None:
        if name not in self.exchanges:
            raise NotFound(f"no exchange {name}")


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: _NOW)


def delaying(
    broker: FakeBroker, destination: Destination = _CLASSIC, via: Via = Via.AUTO
) -> tuple[Delaying, list[str], list[str]]:
    """Return the object that delays messages on a broker, with lists of its notices and its warnings."""
    notices: list[str] = []
    warnings: list[str] = []
    return Delaying(cast(Channel, broker), via, destination, notices.append, warnings.append), notices, warnings


def held(message: Message, destination: Destination = _CLASSIC, via: Via = Via.AUTO) -> Held:
    """Return a message as it is published to a broker with the plugin."""
    delays, _, _ = delaying(FakeBroker(_JOBS, _LOGS), destination, via)
    (found,) = delays.hold([message])
    assert isinstance(found, Held)
    return found


def test_messages_without_a_delay_and_the_value_none_are_passed_on_unchanged() -> None:
    """mqtool publishes messages without a delay unchanged, and declares no queue or exchange for them. While a
    command waits for input, its generator of messages yields None, which is also passed on to the publisher.
    """
    broker = FakeBroker(_JOBS)
    broker.in_flight = 1_000_000
    delays, notices, _ = delaying(broker)
    messages = [Message(b"a"), None, Message(b"b")]
    assert [*delays.hold(messages)] == messages
    assert (broker.declared, notices) == ([], [])


@pytest.mark.parametrize("given", [{"delay": 5.25}, {"due": _NOW + 5.25}], ids=["delay", "due time"])
def test_a_delayed_message_goes_to_the_plugins_exchange_with_the_delay_in_a_header(given: Any) -> None:
    """If the broker has the delayed message plugin, a message with a delay or a due time is published to the plugin's
    exchange as persistent. Its header x-delay contains the delay in milliseconds, and its header mqtool-due the due
    time. Its body, message id and other properties are unchanged.
    """
    found = held(Message(b"x", "jobs", None, {"headers": {"a": 1}, "type": "t"}, "id-1", **given))
    assert (found.body, found.message_id) == (b"x", "id-1")
    assert (found.exchange, found.routing_key) == ("mqtool.delayed", "jobs")
    due = int(_NOW * 1000) + 5250
    headers = {"a": 1, "x-delay": 5250, DUE: due}
    assert found.properties == {"type": "t", "delivery_mode": PERSISTENT, "headers": headers}
    assert (found.delay, found.due) == (None, None)


def test_a_delayed_message_in_a_wait_queue_has_an_expiration_1_ms_longer_than_its_delay() -> None:
    """With `--via ttl`, a delayed message for a queue is published to a wait queue as persistent. Its expiration is 1
    ms longer than its delay, and the header mqtool-due contains the due time.
    """
    found = held(Message(b"x", None, None, {}, None, 5.0), via=Via.TTL)
    assert (found.exchange, found.routing_key) == ("", "jobs.delay.5s.classic")
    assert found.properties["expiration"] == "5001"
    assert found.properties["delivery_mode"] == PERSISTENT
    assert found.properties["headers"] == {DUE: int(_NOW * 1000) + 5000}


@pytest.mark.parametrize("via", [Via.PLUGIN, Via.TTL])
def test_a_delayed_message_for_an_exchange_keeps_its_routing_key(via: Via) -> None:
    """A delayed message for an exchange keeps its routing key while it waits, because the exchange routes the message
    with that key when it is due.
    """
    found = held(Message(b"x", "kern.info", None, {}, None, 5.0), Destination(_LOGS), via)
    where = {Via.PLUGIN: "logs.delayed", Via.TTL: "logs.exchange.delay.5s.classic"}
    assert (found.exchange, found.routing_key) == (where[via], "kern.info")


def test_an_unconfirmed_delayed_message_is_saved_with_its_due_time() -> None:
    """If a delayed message is not confirmed, `send --failed-to` saves the message with its due time instead of its
    delay, and without the headers that mqtool added to delay it. If the saved message is sent again, it is therefore
    still due at the same time.
    """
    message = Message(b"x", "jobs", None, {"headers": {"a": 1}}, "id-1", 5.25)
    again = original(held(message))
    assert (again.delay, again.due) == (None, _NOW + 5.25)
    assert (again.body, again.routing_key, again.exchange, again.message_id) == (b"x", "jobs", None, "id-1")
    assert again.properties == {"headers": {"a": 1}}


@pytest.mark.parametrize(
    ("given", "due"),
    [({"due": _NOW - 60}, -60_000), ({"due": _NOW}, 0), ({"delay": 0.0}, 0), ({"delay": 0.0004}, 0)],
    ids=["due a minute ago", "due now", "delay of 0", "delay below half a millisecond"],
)
def test_a_message_that_is_already_due_is_published_to_its_destination(given: Any, due: int) -> None:
    """A message is already due if its due time has passed, or if its delay is less than 0.5 ms. mqtool publishes such
    a message immediately to the exchange that the message names, with the message's properties and the due time as a
    header. It declares nothing to delay the message.
    """
    broker = FakeBroker(_JOBS)
    delays, _, _ = delaying(broker)
    (found,) = delays.hold([Message(b"x", "jobs", "logs", {"type": "t"}, "id-1", **given)])
    assert found is not None
    assert (found.exchange, found.routing_key, found.message_id) == ("logs", "jobs", "id-1")
    assert found.properties == {"type": "t", "headers": {DUE: int(_NOW * 1000) + due}}
    assert broker.declared == []


@pytest.mark.parametrize(
    ("overdue", "notices"),
    [
        (0, []),
        (1, ["already due, so sent at once: 1 message"]),
        (2000, ["already due, so sent at once: 2,000 messages"]),
    ],
    ids=["none", "one", "thousands"],
)
def test_a_notice_says_how_many_messages_were_already_due(overdue: int, notices: list[str]) -> None:
    """If the due times of some messages have passed, a command that publishes delayed messages, such as `send`,
    publishes these messages immediately. At the end of its input, the command prints a notice with their number.
    Messages with a delay of 0 are not counted.
    """
    delays, found, _ = delaying(FakeBroker(_JOBS))
    messages = [Message(b"x", due=_NOW - 60)] * overdue + [Message(b"x", delay=0.0)]
    assert len([*delays.hold(messages)]) == overdue + 1
    assert found == notices


@pytest.mark.parametrize("via", [Via.AUTO, Via.PLUGIN])
def test_a_delay_of_more_than_49_days_is_refused(via: Via) -> None:
    """Sending a message with a delay of more than 2^32 - 1 ms (about 49.7 days) raises BadData. A delay of exactly 2^32
    - 1 ms is accepted.
    """
    delays, _, _ = delaying(FakeBroker(_JOBS), via=via)
    longest, longer = (Message(b"x", delay=(LONGEST + more) / 1000) for more in (0, 1))
    messages = delays.hold([longest, longer])
    assert cast(Held, next(messages)).properties["headers"]["x-delay"] == LONGEST
    with pytest.raises(BadData, match=r"^a delay of 49d17h2m47s296ms is too long$") as error:
        next(messages)
    assert error.value.hint == "at most 2^32 - 1 ms, 49 days"


@pytest.mark.parametrize("via", [Via.PLUGIN, Via.TTL])
def test_a_message_with_a_delay_of_one_millisecond_waits_on_the_broker(via: Via) -> None:
    """A message with a delay of only 1 ms waits on the broker, either in the exchange of the delayed message plugin or
    in a wait queue.
    """
    found = held(Message(b"x", delay=0.001), via=via)
    headers = {Via.PLUGIN: {"x-delay": 1}, Via.TTL: {}}
    assert found.properties["headers"] == {**headers[via], DUE: int(_NOW * 1000) + 1}


@pytest.mark.parametrize(("delay", "at_most"), [(0.001, 100), (5.0, 100), (90.0, 500), (3600.0, 12_000)])
def test_the_number_of_unconfirmed_delayed_messages_is_limited(delay: float, at_most: int) -> None:
    """If messages have a delay of up to 5 s, mqtool has at most 100 of them unconfirmed at a time, because more would
    arrive late. The limit is higher for longer delays, such as 500 messages for 90 s. At the limit, mqtool waits for
    confirms before it publishes the next message.
    """
    broker = FakeBroker(_JOBS)
    delays, _, _ = delaying(broker)
    messages = delays.hold([Message(b"x", delay=delay)])
    broker.in_flight = at_most
    assert [next(messages), next(messages)] == [None, None]
    broker.in_flight = at_most - 1
    assert isinstance(next(messages), Held)


_PLUGIN_NOTICE = f"messages wait in exchange 'mqtool.delayed': RabbitMQ 4.2 has the type {DELAYED}"
_QUORUM_NOTICE = (
    "messages wait in mqtool's wait queues, because the delay plugin can lose messages to a quorum queue "
    "('mqtool help delays')"
)


@pytest.mark.parametrize(
    ("via", "destination", "plugin", "where", "notices", "warnings"),
    [
        (Via.AUTO, _CLASSIC, True, "mqtool.delayed", [_PLUGIN_NOTICE], []),
        (Via.AUTO, _CLASSIC, False, "", [_NO_PLUGIN], []),
        (Via.AUTO, _QUORUM, True, "", [_QUORUM_NOTICE], []),
        (Via.AUTO, _QUORUM, False, "", [_QUORUM_NOTICE], []),
        (Via.TTL, _CLASSIC, True, "", [], []),
        (Via.TTL, _QUORUM, False, "", [], []),
        (Via.PLUGIN, _CLASSIC, True, "mqtool.delayed", [_PLUGIN_NOTICE], []),
        (Via.PLUGIN, _QUORUM, True, "mqtool.delayed", [_PLUGIN_NOTICE], [LOSES]),
    ],
    ids=[
        "auto, classic, plugin",
        "auto, classic, no plugin",
        "auto, quorum, plugin",
        "auto, quorum, no plugin",
        "ttl, classic, plugin",
        "ttl, quorum, no plugin",
        "plugin, classic",
        "plugin, quorum",
    ],
)
def test_the_option_via_sets_where_delayed_messages_wait(
    via: Via, destination: Destination, plugin: bool, where: str, notices: list[str], warnings: list[str]
) -> None:
    """Without `--via`, delayed messages wait in the exchange of the delayed message plugin if the broker has this
    plugin and the destination is a classic queue; otherwise, they wait in wait queues. A notice says where they wait,
    and why. `--via ttl` always uses wait queues, and prints no notice. `--via plugin` always uses the plugin's
    exchange, and prints a warning if the destination is a quorum queue, because its messages may be lost.
    """
    delays, told, warned = delaying(FakeBroker(_JOBS, plugin=plugin), destination, via)
    found = [*delays.hold([Message(b"x", delay=5.0), Message(b"y", delay=5.0), Message(b"z", delay=7.0)])]
    assert [message and message.exchange for message in found] == [where] * 3
    assert (told, warned) == (notices, warnings)


def test_the_option_via_plugin_fails_without_the_plugin() -> None:
    """With `--via plugin`, publishing a delayed message raises PluginMissing if the broker does not have the delayed
    message plugin. The error names the broker and its version.
    """
    delays, notices, _ = delaying(FakeBroker(_JOBS, plugin=False), via=Via.PLUGIN)
    with pytest.raises(PluginMissing, match=r"^RabbitMQ 4\.2 has no exchanges of type x-delayed-message"):
        [*delays.hold([Message(b"x", delay=5.0)])]
    assert notices == []


@pytest.mark.parametrize("via", [Via.AUTO, Via.PLUGIN])
def test_an_exchange_mqtool_delayed_of_another_type_is_not_used_for_delayed_messages(via: Via) -> None:
    """If the exchange mqtool.delayed exists, but is not an exchange of the delayed message plugin, delayed messages
    wait in wait queues. With `--via plugin`, an error is raised instead, and its hint contains the command that deletes
    the exchange.
    """
    delays, _, _ = delaying(FakeBroker(_JOBS, Exchange("mqtool.delayed")), via=via)
    messages = delays.hold([Message(b"x", delay=5.0)])
    if via is Via.AUTO:
        assert cast(Held, next(messages)).routing_key == "jobs.delay.5s.classic"
    else:
        with pytest.raises(DeclaredDifferently) as error:
            next(messages)
        assert "exchange delete mqtool.delayed" in (error.value.hint or "")


@pytest.mark.parametrize("existing", ["mqtool.delayed", "jobs.delay.5s.classic"])
def test_mqtool_prints_no_notice_if_the_exchange_or_wait_queue_for_delayed_messages_exists(existing: str) -> None:
    """If the exchange or wait queue for delayed messages already exists, mqtool prints no notice that says where the
    messages wait.
    """
    is_plugin = existing == "mqtool.delayed"
    there = Exchange(existing, DELAYED) if is_plugin else Queue(existing)
    delays, notices, _ = delaying(FakeBroker(_JOBS, there, plugin=is_plugin))
    for _ in delays.hold([Message(b"x", delay=5.0)]):
        pass
    assert notices == []


@pytest.mark.parametrize(("is_classic", "where"), [(True, "delayed-jobs"), (False, "delayed-jobs.exchange.delay.5s")])
def test_delayed_messages_to_a_classic_queue_wait_in_their_x_delayed_message_exchange(
    is_classic: bool, where: str
) -> None:
    """A delayed message to an x-delayed-message exchange waits in this exchange if the exchange routes to a classic
    queue. If the exchange routes to a quorum queue, the message waits in a wait queue.
    """
    to = Exchange("delayed-jobs", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})
    broker = FakeBroker(_JOBS, to)
    delays, _, _ = delaying(broker, Destination(to, leads_to=_JOBS, is_classic=is_classic))
    (found,) = delays.hold([Message(b"x", "jobs", delay=5.0)])
    assert found is not None
    assert found.exchange == where


def test_delayed_messages_wait_in_a_place_that_suits_their_destination() -> None:
    """If the broker has the delayed message plugin, messages for a queue that mqtool knows to be classic wait in the
    plugin's exchange. Messages for any other queue, which may be a quorum queue, wait in wait queues. mqtool prints one
    notice about each of these two places, however many messages it delays.
    """
    delays, notices, _ = delaying(FakeBroker(_JOBS, Queue("other")))
    keys = ["jobs", "other", "jobs", "other"]
    found = [*delays.hold([Message(b"x", key, delay=5.0) for key in keys])]
    assert [message and message.exchange for message in found] == ["mqtool.delayed", "", "mqtool.delayed", ""]
    assert notices == [_PLUGIN_NOTICE, _QUORUM_NOTICE]


@pytest.mark.parametrize(
    "message",
    [Message(b"x", "k", "audit", delay=5.0), Message(b"x", delay=5.0)],
    ids=["of the message", "of the command"],
)
def test_a_delayed_message_to_a_missing_exchange_is_refused(message: Message) -> None:
    """Publishing a delayed message to an exchange that does not exist raises NotFound, and mqtool declares no queue or
    exchange for the message.
    """
    broker = FakeBroker()
    delays, _, _ = delaying(broker, Destination(_LOGS, is_declared=False), Via.TTL)
    with pytest.raises(NotFound):
        [*delays.hold([message])]
    assert broker.declared == []


@pytest.mark.parametrize("to", [_LOGS, DEFAULT_EXCHANGE], ids=["exchange of the command", "default exchange"])
def test_wait_queues_can_be_chosen_before_the_exchange_of_their_messages_is_declared(to: Exchange) -> None:
    """A command with `--via ttl` can choose the wait queues for its delayed messages before it declares the exchange to
    which the messages will go. It is not an error that the exchange does not exist yet.
    """
    delays, _, _ = delaying(FakeBroker(), Destination(to, is_declared=to is _LOGS), Via.TTL)
    delays.choose()
    delays.choose(to)


@pytest.mark.parametrize(
    "arguments", [{"x-queue-type": "classic"}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"]
)
def test_the_plugin_is_used_if_the_broker_says_that_the_queue_is_classic(arguments: dict[str, str]) -> None:
    """If the broker has the delayed message plugin, mqtool finds out from the broker whether the command's queue is a
    classic queue. If it is, delayed messages for the queue wait in the plugin's exchange; otherwise, they wait in wait
    queues.
    """
    queue = Queue("jobs", durable=True, arguments=arguments)
    delays, _, _ = delaying(FakeBroker(), Destination(queue))
    (found,) = delays.hold([Message(b"x", delay=5.0)])
    assert found is not None
    assert (found.exchange == "mqtool.delayed") is (arguments["x-queue-type"] == "classic")


def test_a_warning_says_that_messages_lose_their_expiration_in_a_wait_queue() -> None:
    """If a message with the property `expiration` is delayed with `--via ttl`, a warning says that messages lose this
    property in a wait queue.
    """
    delays, _, warnings = delaying(FakeBroker(_JOBS), via=Via.TTL)
    for _ in delays.hold([Message(b"x", None, None, {"expiration": "1000"}, None, 5.0)]):
        pass
    assert warnings == ["messages lose their property expiration in a wait queue"]


def test_the_exchange_of_delayed_messages_is_looked_up_once() -> None:
    """When the first delayed message is sent to an exchange, mqtool checks whether the exchange exists. It does not
    check again for later messages to this exchange.
    """
    broker = FakeBroker(Exchange("audit"))
    delays, _, _ = delaying(broker, Destination(_LOGS), Via.TTL)
    delays.choose(Exchange("audit"))
    del broker.exchanges["audit"]
    delays.choose(Exchange("audit"))


def test_a_notice_says_that_many_messages_in_wait_queues_may_arrive_late() -> None:
    """When the 10,000th message is sent to wait queues, a notice says how many messages per second a broker can move
    out of wait queues, and that messages arrive late if more of them are due per second. The notice is not repeated.
    """
    delays, notices, _ = delaying(FakeBroker(_JOBS), via=Via.TTL)
    messages = delays.hold(Message(b"x", delay=5.0) for _ in range(10_001))
    for _, _message in zip(range(9_999), messages, strict=False):
        assert notices == []
    next(messages)
    expected = (
        "many messages for wait queues: a broker moves some 2,000 a second, and messages that are due faster arrive "
        "late ('mqtool help delays')"
    )
    assert notices == [expected]
    next(messages)
    assert notices == [expected]
