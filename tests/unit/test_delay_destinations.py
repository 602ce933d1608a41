"""Where a delayed message goes when it is due, and the names of the wait queues and exchanges for it."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from mqtool.amqp import Channel
from mqtool.delays.destinations import Destination, derived_name, name_for
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently, NotFound
from mqtool.message import Message
from mqtool.topology import DEFAULT_EXCHANGE, Exchange, Queue

_LOGS, _HELLO = Exchange("logs", "fanout"), Queue("hello", arguments={"x-queue-type": "quorum"})
_DURABLE = Queue("hello", durable=True)
_CLASSIC, _QUORUM, _LIMIT = {"x-queue-type": "classic"}, {"x-queue-type": "quorum"}, {"x-max-length": 5}


class FakeConnection:
    """A connection to a broker with one queue at most; a queue that names no type gets the broker's default type.

    Attributes:
        channels: the channels that were opened, besides the one of the command.
    """

    def __init__(self, existing: Queue | None = None, default: str = "classic") -> None:
        self.existing, self.default = existing, {"x-queue-type": default}
        self.channels: list[FakeChannel] = []

    def channel(self) -> "FakeChannel":
        self.channels.append(FakeChannel(self))
        return self.channels[-1]


@dataclass
class FakeChannel:
    """A channel that the broker closes after an error. It refuses to declare a queue of the name "forbidden"."""

    connection: FakeConnection
    is_open: bool = True

    def declare(self, queue: Queue, *, remember: bool = True, exactly: bool = False) -> Queue:
        assert self.is_open
        assert exactly, "a queue that exists with other settings would be accepted"
        assert not remember, "the queue would be declared again after each reconnection"
        broker = self.connection
        if queue.name == "forbidden":
            self.is_open = False
            raise AccessRefused("no")
        typed = queue._replace(arguments=broker.default | dict(queue.arguments))
        assert queue.durable or typed.arguments != _QUORUM, "RabbitMQ refuses a quorum queue that is not durable"
        if broker.existing not in (None, typed):
            self.is_open = False
            raise DeclaredDifferently("no")
        broker.existing = typed
        return queue

    def ask(self, request: Any) -> None:
        """Look for a queue or an exchange; `request` sends the method."""
        request(self, None)

    def queue_declare(self, name: str, *, passive: bool, **_: object) -> None:
        assert passive
        if self.connection.existing is None or self.connection.existing.name != name:
            self.is_open = False
            raise NotFound("no")

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(
    ("to", "exchange", "key", "found"),
    [
        (_HELLO, None, None, _HELLO),
        (_HELLO, None, "hello", _HELLO),
        (_HELLO, None, "other", Queue("other")),
        (_HELLO, "", "other", Queue("other")),
        (_HELLO, "logs", "hello", Exchange("logs", durable=True)),
        (_LOGS, None, "key", _LOGS),
        (_LOGS, "logs", "key", _LOGS),
        (_LOGS, "audit", "key", Exchange("audit", durable=True)),
        (_LOGS, "", "hello", Queue("hello")),
        (_LOGS, "", None, Queue("")),
        (DEFAULT_EXCHANGE, None, "hello", Queue("hello")),
        (DEFAULT_EXCHANGE, None, None, Queue("")),
    ],
    ids=[
        "queue",
        "queue and its key",
        "queue and other key",
        "queue and default exchange",
        "queue and exchange",
        "exchange and key",
        "exchange, same exchange",
        "exchange, other exchange",
        "exchange, queue",
        "exchange, default exchange without a key",
        "default exchange and key",
        "default exchange without a key",
    ],
)
def test_a_delayed_message_goes_where_it_would_go_without_a_delay(
    to: Exchange | Queue, exchange: str | None, key: str | None, found: Exchange | Queue
) -> None:
    """When a delayed message is due, it is published to the exchange named on its input line, with the routing key
    named there. If the line omits either, it is taken from the destination on the command line, which is an exchange or
    a queue. With the default exchange, the message goes to the queue that the routing key names.
    """
    assert Destination(to).of(Message(b"", key, exchange)) == found


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_delayed_message_to_several_queues_is_refused(header: str) -> None:
    """If a delayed message is sent to a queue, and has the header CC or BCC, BadData is raised, because only one of
    the queues would receive the message. A delayed message to a named exchange can have these headers.
    """
    message = Message(b"", None, None, {"headers": {header: ["a", "b"], "x": 1}})
    with pytest.raises(BadData, match="CC or BCC") as error:
        Destination(_HELLO).of(message)
    assert str(error.value) == "a message to a queue cannot be delayed if it has a header CC or BCC"
    assert error.value.hint == "send it to each queue separately"
    assert Destination(_LOGS).of(message) == _LOGS
    assert Destination(_HELLO).of(Message(b"", None, None, {"headers": {"x": 1}})) == _HELLO


def test_mqtool_knows_the_queue_in_which_delayed_messages_arrive() -> None:
    """Destination.queue is the queue in which a command's delayed messages arrive: the queue to which the command
    publishes, or the queue that it binds to its exchange. If the command binds no queue to its exchange,
    Destination.queue is None.
    """
    assert Destination(_HELLO).queue == _HELLO
    assert Destination(_LOGS).queue is None
    assert Destination(_LOGS, leads_to=_HELLO).queue == _HELLO


@pytest.mark.parametrize(
    ("to", "is_classic", "may"),
    [
        (_HELLO, True, False),
        (_HELLO, False, True),
        (_HELLO, None, True),
        (Exchange("logs", durable=True), None, True),
        (Exchange("logs", durable=False), None, False),
    ],
    ids=["classic queue", "other queue", "unknown queue", "durable exchange", "transient exchange"],
)
def test_mqtool_assumes_that_messages_may_reach_a_quorum_queue_unless_it_knows_otherwise(
    to: Exchange | Queue, is_classic: bool | None, may: bool
) -> None:
    """mqtool assumes that delayed messages may reach a quorum queue. It therefore prefers wait queues, because the
    delayed message plugin can lose messages for a quorum queue in a restart. The exceptions are messages for a queue
    that mqtool knows to be classic, and messages for a transient exchange, whose bindings do not survive a restart
    anyway.
    """
    destination = Destination(to, is_classic=is_classic)
    assert destination.may_lead_to_quorum_queue(to) is may
    assert destination.may_lead_to_quorum_queue(Queue("another"))


@pytest.mark.parametrize(
    ("declared", "existing", "default", "is_classic"),
    [
        (_DURABLE, None, "classic", True),
        (_DURABLE, None, "quorum", False),
        (_DURABLE, _DURABLE._replace(arguments=_CLASSIC), "classic", True),
        (_DURABLE, _DURABLE._replace(arguments=_QUORUM), "classic", False),
        (_DURABLE._replace(arguments=_CLASSIC), None, "quorum", True),
        (_DURABLE._replace(arguments=_LIMIT), None, "classic", True),
        (_DURABLE._replace(arguments=_LIMIT), None, "quorum", False),
        (Queue("hello"), None, "classic", True),
        (Queue("hello"), _DURABLE._replace(arguments=_QUORUM), "classic", False),
        (Queue("forbidden", durable=True), None, "classic", False),
    ],
    ids=[
        "new, classic by default",
        "new, quorum by default",
        "existing classic queue",
        "existing quorum queue",
        "declared as classic",
        "limited, classic by default",
        "limited, quorum by default",
        "new transient queue",
        "transient but existing quorum queue",
        "no permission",
    ],
)
def test_a_queue_is_treated_as_classic_only_if_the_broker_accepts_its_declaration_as_classic(
    declared: Queue, existing: Queue | None, default: str, is_classic: bool
) -> None:
    """mqtool treats the destination of delayed messages as a classic queue only if the broker accepts a declaration of
    the queue as classic. It asks the broker once, on a separate channel, because the broker closes a channel on which a
    declaration fails.
    """
    broker = FakeConnection(existing, default)
    ours = FakeChannel(broker)
    destination = Destination(declared)
    for _ in range(2):
        destination.look(cast(Channel, ours))
        assert destination.is_classic is is_classic
    assert ours.is_open
    assert len(broker.channels) == 1
    if existing is None and declared.name != "forbidden":
        assert broker.existing == declared._replace(arguments={"x-queue-type": default, **declared.arguments})


@pytest.mark.parametrize(
    ("to", "known", "is_classic"),
    [
        (Queue("mine", exclusive=True), None, True),
        (_HELLO, None, False),
        (_LOGS, None, False),
        (_HELLO, True, True),
        (_HELLO._replace(arguments=_CLASSIC), False, False),
    ],
    ids=["exclusive queue", "quorum queue", "exchange", "known to be classic", "known not to be classic"],
)
def test_the_broker_is_not_asked_for_the_type_of_a_destination_if_the_type_is_known(
    to: Exchange | Queue, known: bool | None, is_classic: bool
) -> None:
    """Before mqtool publishes a delayed message, it asks the broker whether the destination is a classic queue, unless
    it knows the answer. It knows the answer for an exchange, an exclusive queue (always classic), a queue that the
    command declares as a quorum queue, and a queue whose type it has already asked for.
    """
    broker = FakeConnection()
    destination = Destination(to, is_classic=known)
    destination.look(cast(Channel, FakeChannel(broker)))
    assert destination.is_classic is is_classic
    assert broker.channels == []


def test_queues_and_exchanges_for_delayed_messages_are_named_after_the_destination() -> None:
    """The queues and exchanges that mqtool declares for delayed messages are named after the messages' destination,
    with a suffix for the purpose: `.delay` in `hello.delay`, `.delayed` in `amqp.delayed`. If the destination's name
    begins with `amq.`, mqtool adds the prefix `mqtool.`, because clients cannot declare such names:
    `mqtool.amq.topic.delayed` for `amq.topic`.
    """
    assert name_for(_HELLO, "delay") == "hello.delay"
    assert name_for(Exchange("amq.topic"), "delayed") == "mqtool.amq.topic.delayed"
    assert name_for(Exchange("amqp"), "delayed") == "amqp.delayed"


@pytest.mark.parametrize("letter", ["a", "é", "語"])
def test_the_name_of_a_wait_queue_is_truncated_to_255_bytes(letter: str) -> None:
    """A wait queue for delayed messages is named after the messages' destination. However long the destination's name
    is, the wait queue's name has at most 255 bytes and keeps its suffix. Different destinations have wait queues with
    different names.
    """
    size = len(letter.encode())
    longest = letter * (249 // size) + "b" * (249 % size)
    assert derived_name(longest, "delay") == f"{longest}.delay"
    assert len(derived_name(longest, "delay").encode()) == 255
    one, other = (derived_name(longest + last, "delay") for last in "bc")
    assert one != other
    assert one == derived_name(longest + "b", "delay")
    for name in (one, other):
        assert name.endswith(".delay")
        assert "~" in name
        assert 255 - size < len(name.encode()) <= 255
        assert longest.startswith(name.partition("~")[0])


def test_the_name_of_a_wait_queue_is_the_same_in_each_version() -> None:
    """The wait queue for a long queue name has the same name in each version of mqtool, because wait queues outlive the
    command that declared them.
    """
    assert derived_name("a" * 300, "delay") == "a" * 232 + "~8b397aa4c75429a2.delay"


def test_a_wait_queue_can_be_named_after_a_queue_whose_name_is_not_utf_8() -> None:
    """mqtool can name a wait queue after a queue whose name is not valid UTF-8, even if that name is long."""
    assert derived_name("a\udcff", "delay") == "a\udcff.delay"
    assert derived_name("a\udcff" * 200, "delay").startswith("aaa")
