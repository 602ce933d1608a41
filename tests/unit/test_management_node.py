"""AMQP 1.0's management node: requests, responses, and what is declared, with a broker in place of a connection."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mqtool.amqp.administration import Depth
from mqtool.amqp.consumer import TEMPORARY_QUEUE_LOST
from mqtool.amqp10.management_node import ManagedTopology
from mqtool.amqp10.refusals import ClosedByBroker, Lost
from mqtool.codecs.amqp10_frames import SETTLED, Attach, Source, Target
from mqtool.codecs.amqp10_message import DATA, Amqp10Message, BareProperties, sections, value_section
from mqtool.codecs.amqp10_values import Symbol, encode, section
from mqtool.errors import AccessRefused, DeclaredDifferently, MqtoolError, NotFound, Unavailable, UsageError
from mqtool.topology import Exchange, Queue

NODE = "/management"
WHY = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/'"
DIFFERENT = 409, value_section(f"{WHY}: received 'true' but current is 'false'")
MISSING = 404, value_section("no queue 'q'")
COUNTS = 200, value_section({"message_count": 17, "consumer_count": 2})
Q, X = Queue("q"), Exchange("x", "topic")
#: The settings of Q in a request.
SETTINGS = {"durable": False, "auto_delete": False, "arguments": {}, "exclusive": False}


class Broker:
    """The broker at the other end of a session's links.

    Attributes:
        attached: the frames that attached links.
        flows: the handle, the delivery count and the credit of each flow frame.
        requests: the method, the path and the body of each request.
        answers: the status and the encoded body of the next responses. Others have status 200 and no body.
        epoch: how many times the connection was reopened.
        loses: the number of requests for whose response the connection is lost.
        stray: True if a response to an earlier request arrives before and after each response.
        sends_from: the broker's delivery count when it attaches its link.
        lacks: the terminus that is missing when it attaches its own link.
    """

    def __init__(self) -> None:
        self.attached: list[Attach] = []
        self.flows: list[tuple[int, int, int]] = []
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: list[tuple[int | None, bytes]] = []
        self.changed = threading.Condition()
        self.epoch = self.loses = 0
        self.stray = False
        self.sends_from = 0
        self.lacks: str | None = None
        self.set_up: Callable[[], str | None] | None = None
        self._halves: dict[bool, Any] = {}

    # The methods of LinkConnection.

    def retrying(self, request: Callable[[], Any]) -> Any:
        while True:
            try:
                return request()
            except Lost:
                self.epoch += 1
                for half in self._halves.values():
                    half.is_attached = False
                assert self.set_up is not None
                self.set_up()
            except ClosedByBroker as refusal:
                raise refusal.translated() from refusal

    def attach(self, half: Any) -> None:
        if half.is_attached:
            return
        told = half.attach(40 + len(self.attached))
        assert (half.handle, half.name, half.is_attached, half.is_kept) == (told.handle, told.name, False, False)
        assert [half.is_for(role) for role in (told.role, not told.role)] == [False, True]
        self.attached.append(told)
        self._halves[told.role] = half
        answer = Attach(told.name, 0, not told.role, source=Source(NODE), target=Target(NODE))
        if told.role:
            answer = answer._replace(initial_delivery_count=self.sends_from)
            if self.lacks:
                answer = answer._replace(**{self.lacks: None})
        if not half.attached(answer):
            raise ClosedByBroker("amqp:not-found", "no such node")

    def send_flow(self, handle: int, delivery_count: int, credit: int) -> None:
        self.flows.append((handle, delivery_count, credit))

    def send_request(self, handle: int, data: bytes, epoch: int, patience: float) -> None:
        assert (handle, epoch, patience) == (self._halves[False].handle, self.epoch, math.inf)
        request = Amqp10Message.decode(data)
        number, path, method = request.properties.message_id, request.properties.to, request.properties.subject
        assert request.properties == BareProperties(message_id=number, to=path, subject=method, reply_to="$me")
        [body] = sections(request.body)
        self.requests.append((str(method), str(path), body.value))
        if self.loses:
            self.loses -= 1
            self._halves[True].take(None, b"the beginning of a response", settled=True, more=True)
            return
        status, content = self.answers.pop(0) if self.answers else (200, b"")
        if self.stray:
            self._respond("0", 200, value_section("stray"))
        self._respond(number, status, content)
        if self.stray:
            self._respond("0", 200, value_section("stray"))

    def _respond(self, number: str, status: int | None, content: bytes) -> None:
        properties = BareProperties(subject=None if status is None else str(status), correlation_id=number)
        data = Amqp10Message(properties=properties, body=content).encode()
        for piece, more in ((data[:9], True), (data[9:], False)):
            self._halves[True].take(None, piece, settled=True, more=more)

    def until(self, done: Callable[[], bool], epoch: int, patience: float) -> None:
        assert epoch == self.epoch
        assert patience == 20
        if not done():
            raise Lost


@pytest.fixture
def broker() -> Broker:
    return Broker()


def topology(broker: Broker, *, strict: bool = False, notices: list[str] | None = None) -> ManagedTopology:
    links: Any = broker
    return ManagedTopology(links, strict=strict, notice=([] if notices is None else notices).append)


def test_requests_go_over_a_pair_of_links_that_is_attached_once(broker: Broker) -> None:
    """Before the first request over AMQP 1.0, mqtool attaches a pair of links to the management node. All requests use
    these links. If the broker refuses one of the two links, the next request attaches this link again.
    """
    session = topology(broker)
    for broker.lacks in ("source", "target"):
        with pytest.raises(NotFound, match="no such node"):
            session.declare(Q)
    broker.lacks = None
    session.declare(Q)
    session.declare(Q)
    pair = Attach(
        "mqtool-management", 40, False, snd_settle_mode=SETTLED, source=Source(NODE, expiry_policy="link-detach"),
        target=Target(NODE), initial_delivery_count=0, properties={Symbol("paired"): True},
    )  # fmt: skip
    other = pair._replace(role=True, initial_delivery_count=None)
    assert broker.attached == [pair, *(other._replace(handle=handle) for handle in (41, 42, 43))]
    assert {type(name) for each in broker.attached for name in each.properties or ()} == {Symbol}
    assert {handle for handle, _, _ in broker.flows} == {43}


def test_each_management_request_grants_the_broker_credit_for_responses(broker: Broker) -> None:
    """With each request to the AMQP 1.0 management node, mqtool grants the broker credit for 100 responses. The
    delivery-count in the flow frame restarts at 0 after 0xFFFFFFFF.
    """
    broker.sends_from = 0xFFFF_FFFE
    session = topology(broker)
    for _ in range(4):
        session.declare(Q)
    assert broker.flows == [(41, count, 100) for count in (0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1)]


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (199, b"", MqtoolError, "status 199"),
        (200, b"", None, ""),
        (299, b"", None, ""),
        (300, b"", MqtoolError, "status 300"),
        (None, b"", MqtoolError, "status 0"),
        (403, value_section("no permission"), AccessRefused, "no permission"),
        (404, section(DATA, encode(b"data")), NotFound, "status 404"),
    ],
)
def test_a_response_whose_status_is_not_2xx_is_an_error(
    broker: Broker, status: int | None, body: bytes, kind: type[MqtoolError] | None, words: str
) -> None:
    """If the status of a response from the AMQP 1.0 management node is not between 200 and 299, the request raises an
    error with the text of the response or, if it has none, with the status.
    """
    broker.answers = [(status, body)]
    session = topology(broker)
    if kind is None:
        assert session.declare(Q) == Q
    else:
        with pytest.raises(kind) as caught:
            session.declare(Q)
        assert str(caught.value) == words


@pytest.mark.parametrize("body", [b"", value_section([1]), value_section({"message_count": "many"})])
def test_a_response_without_a_message_count_is_an_error(broker: Broker, body: bytes) -> None:
    """If the AMQP 1.0 management node's response to depth_of() or purge() contains no message count, or one that is not
    a number, the call raises Unavailable.
    """
    broker.answers = [(200, body)] * 2
    for request in (topology(broker).depth_of, topology(broker).purge):
        with pytest.raises(Unavailable, match="the broker's answer has no message_count"):
            request("q")


def test_a_late_response_is_ignored(broker: Broker) -> None:
    """If the AMQP 1.0 management node responds to a request after mqtool has stopped waiting for the response, mqtool
    ignores this response, and the next request gets its own.
    """
    broker.stray = True
    broker.answers = [COUNTS]
    assert topology(broker).depth("q") == Depth(17, 2)


def test_declarations_contain_all_properties_and_arguments(broker: Broker) -> None:
    """Over AMQP 1.0, mqtool declares queues, exchanges and bindings with all their properties and arguments, and
    generates a name for a queue without one. If a queue's name contains a line break, which the broker would remove,
    mqtool raises UsageError.
    """
    session = topology(broker)
    queue = session.declare(Queue("a/b", durable=True, arguments={"x-max-length": 9}))
    session.declare(Queue("e", exclusive=True, auto_delete=True))
    named = session.declare(Queue())
    session.declare(Exchange("x", "topic", durable=True, internal=True, arguments={"alternate-exchange": "y"}))
    session.declare(Exchange("y", "fanout", auto_delete=True))
    session.bind(queue, X, "key", {"n": 1})
    session.bind(Exchange("y"), X)
    declared = SETTINGS | {"durable": True, "arguments": {"x-max-length": 9}}
    exchange = {"durable": True, "auto_delete": False, "type": "topic", "internal": True}
    other = {"durable": False, "auto_delete": True, "type": "fanout", "internal": False, "arguments": {}}
    binding = {"source": "x", "destination_queue": "a/b", "binding_key": "key", "arguments": {"n": 1}}
    other_binding = {"source": "x", "destination_exchange": "y", "binding_key": "", "arguments": {}}
    assert broker.requests == [
        ("PUT", "/queues/a%2Fb", declared),
        ("PUT", "/queues/e", SETTINGS | {"exclusive": True, "auto_delete": True}),
        ("PUT", f"/queues/{named.name}", SETTINGS),
        ("PUT", "/exchanges/x", exchange | {"arguments": {"alternate-exchange": "y"}}),
        ("PUT", "/exchanges/y", other),
        ("POST", "/bindings", binding),
        ("POST", "/bindings", other_binding),
    ]
    assert named.name.startswith("mqtool.gen-")
    assert len(named.name) == len("mqtool.gen-") + 12
    for ask in (session.declare, session.exists):
        with pytest.raises(UsageError, match="line break"):
            ask(Queue("a\nb"))


def test_what_is_declared_is_declared_again_after_a_reconnection(broker: Broker) -> None:
    """If the connection is lost during an AMQP 1.0 management request, mqtool reconnects, and attaches a new pair of
    links. Over these, it declares its queues, exchanges and bindings again, and repeats the request. It leaves out what
    was declared with remember=False.
    """
    session = topology(broker)
    session.declare(Q)
    session.declare(X)
    session.declare(Queue("temporary"), remember=False)
    session.bind(Q, X, "key")
    session.bind(Q, X, "other", remember=False)
    broker.requests.clear()
    broker.loses, broker.answers = 1, [(200, b"")] * 3 + [COUNTS]
    assert session.depth_of("q") == 17
    assert [(method, path) for method, path, _ in broker.requests] == [
        ("GET", "/queues/q"), ("PUT", "/queues/q"), ("PUT", "/exchanges/x"), ("POST", "/bindings"),
        ("GET", "/queues/q"),
    ]  # fmt: skip
    assert broker.requests[3][2]["binding_key"] == "key"
    assert len(broker.attached) == 4


def test_a_request_is_sent_only_after_both_links_are_attached_on_the_same_connection(broker: Broker) -> None:
    """If the connection is lost and reopened after mqtool has attached one of its two links to the management node,
    mqtool sends the request only after it has attached both links on the new connection.
    """
    session, attach = topology(broker), broker.attach

    def attach_and_lose(half: Any) -> None:
        attach(half)
        broker.epoch += len(broker.attached) == 1

    broker.attach = attach_and_lose  # type: ignore[method-assign]
    broker.answers = [COUNTS]
    assert session.depth_of("q") == 17
    assert [path for _, path, _ in broker.requests] == ["/queues/q"]
    assert len(broker.attached) == 4


def test_an_exclusive_queue_gets_another_generated_name_if_its_declaration_is_repeated(broker: Broker) -> None:
    """If the connection is lost while mqtool declares an unnamed queue over AMQP 1.0, mqtool repeats the declaration
    on the next connection. An exclusive queue then gets another generated name, because the broker may still have the
    first queue, which is exclusive to the lost connection. Any other queue gets the same name, so that no unused
    queue remains. After a later reconnection, a notice says that the exclusive queue was deleted.
    """
    session = topology(broker)
    broker.loses = 1
    named = session.declare(Queue("", exclusive=True))
    first, second = (path.removeprefix("/queues/") for _, path, _ in broker.requests)
    assert first != second == named.name
    broker.requests.clear()
    assert broker.set_up is not None
    assert broker.set_up() == TEMPORARY_QUEUE_LOST
    assert [path for _, path, _ in broker.requests] == [f"/queues/{named.name}"]
    broker.requests.clear()
    broker.loses = 1
    shared = session.declare(Queue("", durable=True))
    assert [path for _, path, _ in broker.requests if path != f"/queues/{named.name}"] == [f"/queues/{shared.name}"] * 2


def test_a_queue_that_is_exclusive_to_another_connection_cannot_be_declared(broker: Broker) -> None:
    """If a queue is exclusive to another connection, declaring the queue over AMQP 1.0 raises DeclaredDifferently.
    After a connection has been lost, the broker may still reserve the session's own exclusive queue for that
    connection. An attempt to reconnect then fails with Unavailable, and mqtool can try again.
    """
    locked = 400, value_section("cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be …")
    session = topology(broker)
    for thing in (Q, Q._replace(exclusive=True)):
        broker.answers = [locked]
        with pytest.raises(DeclaredDifferently, match="locked queue 'q'"):
            session.declare(thing)
    session.declare(Q._replace(exclusive=True))
    assert broker.set_up is not None
    broker.answers = [locked]
    with pytest.raises(Unavailable, match="the broker still has queue 'q' of the lost connection"):
        broker.set_up()
    broker.set_up()
    session.declare(Q)
    broker.answers = [locked]
    with pytest.raises(ClosedByBroker, match="locked queue 'q'"):
        broker.set_up()


@pytest.mark.parametrize("exactly", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_an_existing_queue_that_was_declared_differently_is_used_with_a_notice(
    broker: Broker, *, strict: bool, exactly: bool
) -> None:
    """If a queue exists with other properties or arguments, declaring it over AMQP 1.0 uses the queue as it is, and
    prints a notice, which is not repeated after a reconnection. In a session with strict=True, or if the caller
    passes exactly=True, declaring the queue raises DeclaredDifferently instead.
    """
    notices = list[str]()
    session = topology(broker, strict=strict, notices=notices)
    broker.answers = [DIFFERENT, DIFFERENT]
    if strict or exactly:
        with pytest.raises(DeclaredDifferently):
            session.declare(Q, **({"exactly": True} if exactly else {}))
    else:
        assert session.declare(Q) == Q
        assert broker.set_up is not None
        assert broker.set_up() is None
        assert broker.answers == []
        assert [notice.partition(":")[0] for notice in notices] == [WHY]
        broker.answers = [(403, value_section("no permission"))]
        with pytest.raises(AccessRefused):
            session.declare(Q)


def test_after_accept_settings_a_queue_with_other_properties_is_used_without_a_notice(broker: Broker) -> None:
    """After the caller has called accept_settings() for a queue, declaring the queue over AMQP 1.0 uses an existing
    queue with other properties or arguments without a notice. If an exchange of the same name exists with other
    properties, declaring the exchange still prints a notice.
    """
    notices = list[str]()
    session = topology(broker, notices=notices)
    session.accept_settings(Q)
    broker.answers = [DIFFERENT, DIFFERENT]
    session.declare(Q)
    assert notices == []
    session.declare(Exchange("q"))
    assert len(notices) == 1


def test_queues_are_looked_up_and_purged(broker: Broker) -> None:
    """Over AMQP 1.0, mqtool finds out whether a queue exists, and how many ready messages and consumers it has. purge()
    returns how many messages it has removed.
    """
    session = topology(broker)
    broker.answers = [COUNTS, MISSING, COUNTS, MISSING, COUNTS]
    assert session.depth("a/b") == Depth(17, 2)
    with pytest.raises(NotFound, match="no queue 'q'"):
        session.depth_of("q")
    assert session.exists(Q) is True
    assert session.exists(Q) is False
    assert session.purge("a/b") == 17
    assert broker.requests == [
        ("GET", "/queues/a%2Fb", None), *[("GET", "/queues/q", None)] * 3, ("DELETE", "/queues/a%2Fb/messages", None),
    ]  # fmt: skip
