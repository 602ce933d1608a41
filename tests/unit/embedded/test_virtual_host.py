"""A virtual host of the embedded broker: routing, what is stored, memory, and messages that wait for their delay."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.event_exchange import EVENT_EXCHANGE
from mqtool.broker.embedded.model.exchange import PREDECLARED, TRACE_EXCHANGE, BrokerExchange, binding_names
from mqtool.broker.embedded.model.ledger import Ledger, decode_definition, definition_key
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.stream_queue import StreamQueue
from mqtool.broker.embedded.model.virtual_host import ReleasedQueue, Routing, VirtualHost, limit_of
from mqtool.codecs.field_tables import Int32, Table
from tests.unit.embedded.test_limits_of_queues import Watching
from tests.unit.embedded.test_queue import BusyClock, FakeClock, FakeConsumer, add_queue, bodies, message

DELAYED: Table = {"x-delayed-type": "fanout"}


class Storing(Ledger):
    """A ledger that keeps what it was asked to store.

    Attributes:
        definitions: the definitions, by kind and key.
        forgotten: the kinds and names of the definitions that were deleted.
        added_to: the keys of the queues and exchanges to which messages were added.
        refuses: True to refuse all definitions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.definitions: dict[tuple[str, bytes], Table] = {}
        self.forgotten: list[tuple[str, tuple[str | bytes, ...]]] = []
        self.added_to: list[int] = []
        self.keys = 0

    def new_key(self) -> int:
        self.keys += 1
        return self.keys

    def write_definition(self, kind: str, key: bytes, value: bytes) -> None:
        self.definitions[kind, key] = decode_definition(value)

    def forget(self, kind: str, names: Any) -> None:
        self.definitions.pop((kind, definition_key(names)), None)
        self.forgotten.append((kind, tuple(names)))

    def added(self, holder: int, entry: Any) -> None:
        entry.row = entry.position
        self.added_to.append(holder)


@pytest.fixture
def ledger() -> Storing:
    return Storing()


def names_of(routing: Routing) -> list[str]:
    return [queue.name for queue in routing.queues]


def add_exchange(vhost: VirtualHost, name: str = "x", kind: str = "fanout", **properties: Any) -> BrokerExchange:
    exchange = BrokerExchange(name, kind, **properties)
    vhost.add_exchange(exchange)
    return exchange


def publish(vhost: VirtualHost, exchange: str, sent: BrokerMessage) -> tuple[bool, bool, bool]:
    return vhost.enqueue(vhost.route(vhost.exchanges[exchange], sent))[:3]  # type: ignore[return-value]


def test_a_new_virtual_host_has_the_predeclared_exchanges(vhost: VirtualHost) -> None:
    """A new virtual host has only the predeclared exchanges, of which those whose names begin with amq.rabbitmq are
    internal. It has no queues, limits, labels or description, and message tracing is off.
    """
    assert (vhost.name, vhost.description, vhost.limits, vhost.tracing, vhost.watcher) == ("/", "", {}, False, None)
    assert (vhost.queues, tuple(vhost.labels)) == ({}, ((), "", False))
    assert {name: exchange.kind for name, exchange in vhost.exchanges.items()} == {
        **PREDECLARED,
        TRACE_EXCHANGE: "topic",
        EVENT_EXCHANGE: "topic",
    }
    assert {each for each, exchange in vhost.exchanges.items() if exchange.internal} == {TRACE_EXCHANGE, EVENT_EXCHANGE}
    assert all(each.predeclared and each.name == name for name, each in vhost.exchanges.items())
    first, second = vhost.new_queue_name(), vhost.new_queue_name()
    assert first != second
    assert first.startswith("amq.gen-")
    assert len(first) == 30


def test_durable_queues_exchanges_and_bindings_are_stored_until_they_are_deleted(
    vhost: VirtualHost, ledger: Storing
) -> None:
    """A durable queue, exchange or binding is stored on disk from its declaration to its deletion. A transient one is
    not stored. Queues and exchanges that the broker recovers at its start are not written to disk again.
    """
    queue = add_queue(vhost, durable=True, auto_delete=True, x_max_length=Int32(5))
    exchange = add_exchange(vhost, "x", "headers", internal=True)
    vhost.bind(exchange, queue, "k", {"a": Int32(1)})
    (binding,) = vhost.bindings()
    names = binding_names("/", binding)
    assert ledger.definitions == {
        ("queue", definition_key(["/", "q"])): {
            "vhost": "/", "name": "q", "auto_delete": True, "key": 1, "arguments": queue.arguments,
        },
        ("exchange", definition_key(["/", "x"])): {
            "vhost": "/", "name": "x", "kind": "headers", "auto_delete": False, "internal": True, "arguments": {},
            "key": 2,
        },
        ("binding", definition_key(names)): {
            "vhost": "/", "source": "x", "destination": "q", "to_queue": True, "routing_key": "k",
            "arguments": {"a": 1},
        },
    }  # fmt: skip
    vhost.delete_queue(queue)
    vhost.delete_exchange(exchange)
    assert ledger.definitions == {}
    assert ledger.forgotten == [
        ("binding", names),
        ("queue", ("/", "q")),
        ("delivering", ("1",)),
        ("exchange", ("/", "x")),
    ]
    transient, other = add_queue(vhost, "t"), add_exchange(vhost, "t", durable=False)
    vhost.bind(other, transient, "", {})
    vhost.add_queue(QueueDeclaration("r", {}, durable=True), key=9)
    add_exchange(vhost, "r", key=8)
    assert (vhost.queues["r"].key, vhost.exchanges["r"].key) == (9, 8)
    vhost.delete_queue(transient)
    vhost.delete_exchange(other)
    assert ledger.definitions == {}
    assert len(ledger.forgotten) == 4


def test_all_memory_of_definitions_is_freed_when_they_are_deleted(vhost: VirtualHost, ledger: Storing) -> None:
    """Each queue, exchange and binding counts towards the memory use of definitions. It no longer counts once it has
    been deleted, whether alone or together with its virtual host.
    """
    counts = [ledger.definition_bytes]
    queue = add_queue(vhost)
    counts.append(ledger.definition_bytes)
    exchange = add_exchange(vhost, arguments={"alternate-exchange": "none"})
    counts.append(ledger.definition_bytes)
    vhost.bind(exchange, queue, "", {})
    vhost.bind(exchange, queue, "", {})
    counts.append(ledger.definition_bytes)
    vhost.unbind(exchange, queue, "", {})
    vhost.unbind(exchange, queue, "", {})
    assert ledger.definition_bytes == counts[2]
    vhost.delete_exchange(exchange)
    vhost.delete_exchange(exchange)
    assert ledger.definition_bytes == counts[1]
    assert (vhost.delete_queue(queue), vhost.delete_queue(queue)) == (0, 0)
    assert ledger.definition_bytes == counts[0] == 0
    assert counts == sorted({*counts})
    vhost.delete_queue(add_queue(vhost, "s", durable=True, x_queue_type="stream"))
    assert ledger.definition_bytes == 0

    add_queue(vhost).publish(message())
    delayed = add_exchange(vhost, kind="x-delayed-message", arguments=DELAYED)
    other = add_exchange(vhost, "other")
    for source in (delayed, other, vhost.exchanges["amq.fanout"]):
        vhost.bind(source, vhost.queues["q"], "", {})
    vhost.bind(delayed, other, "", {})
    publish(vhost, "x", message(headers={"x-delay": Int32(1000)}))
    vhost.delete_contents()
    assert (ledger.definition_bytes, ledger.held_bytes) == (0, 0)
    assert ledger.forgotten[-1] == ("vhost", ("/",))


def test_declarations_are_refused_while_definitions_take_too_much_memory(vhost: VirtualHost, ledger: Storing) -> None:
    """Once queues, exchanges and bindings take more memory than their limit, the broker refuses further declarations.
    The error says what was refused, how much memory the definitions take, and what the limit is. When the broker
    restarts, it recovers all stored definitions, even if they take more memory than the limit.
    """
    queue = add_queue(vhost)
    exchange = add_exchange(vhost)
    ledger.most_definition_bytes = ledger.definition_bytes
    vhost.bind(exchange, queue, "", {})
    taken, most = ledger.definition_bytes, ledger.most_definition_bytes
    declarations: list[tuple[str, Any]] = [
        ("queue 'more'", lambda: add_queue(vhost, "more")),
        ("exchange 'more'", lambda: add_exchange(vhost, "more")),
        ("binding", lambda: vhost.bind(exchange, queue, "k", {})),
    ]
    for what, declare in declarations:
        with pytest.raises(ChannelException) as error:
            declare()
        assert error.value.code == 406
        assert str(error.value.text).endswith(
            f"cannot declare {what}: queues, exchanges, bindings and global parameters take {taken} bytes, which is "
            f"more than {most}"
        )
    assert ("more" in vhost.queues, "more" in vhost.exchanges, len([*vhost.bindings()])) == (False, False, 1)
    vhost.add_queue(QueueDeclaration("restored", {}, durable=True), key=1)
    add_exchange(vhost, "restored", key=2)
    assert ledger.definition_bytes > taken


@pytest.mark.parametrize(("limit", "is_refused"), [(2, True), (1, True), (3, False), (-1, False), (None, False)])
def test_a_virtual_host_has_no_more_queues_than_its_limit(
    vhost: VirtualHost, limit: int | None, *, is_refused: bool
) -> None:
    """If the virtual host already has as many queues as `max-queues` allows, the broker refuses a new queue with
    error 406 (PRECONDITION_FAILED). A negative value means that there is no limit.
    """
    for name in "ab":
        add_queue(vhost, name)
    if limit is not None:
        vhost.limits["max-queues"] = limit
    assert limit_of(vhost.limits, "max-queues") == (None if limit in (None, -1) else limit)
    assert limit_of({"max-connections": 0}, "max-connections") == 0
    if is_refused:
        with pytest.raises(ChannelException) as error:
            vhost.check_queue_limit("c")
        assert error.value.code == 406
        assert str(error.value.text).endswith(
            f"cannot declare queue 'c': queue limit in vhost '/' ({limit}) is reached"
        )
    else:
        vhost.check_queue_limit("c")


@pytest.mark.parametrize(
    ("headers", "expected", "left"),
    [
        ({}, ["q"], []),
        ({"CC": ["a", "b", "q", "missing"]}, ["q", "a", "b"], ["CC"]),
        ({"BCC": ["a"], "x": "y"}, ["q", "a"], ["x"]),
        ({"CC": ["b"], "BCC": ["a"]}, ["q", "b", "a"], ["CC"]),
    ],
)
@pytest.mark.parametrize("exchange", ["", "amq.direct", "amq.topic"])
def test_a_message_goes_to_the_queues_of_all_its_routing_keys(
    vhost: VirtualHost, exchange: str, headers: Table, expected: list[str], left: list[str]
) -> None:
    """A message goes once to each queue that is bound with the message's routing key, or with one of the keys in its
    headers CC and BCC. The header BCC is removed before the message is delivered.
    """
    for name in ("q", "a", "b", "other"):
        queue = add_queue(vhost, name)
        if exchange:
            vhost.bind(vhost.exchanges[exchange], queue, name, {})
    routing = vhost.route(vhost.exchanges[exchange], message(headers=headers))
    assert sorted(names_of(routing)) == sorted(expected)
    assert [*routing.message.headers] == left
    assert names_of(vhost.route(vhost.exchanges[exchange], message(key="missing"))) == []


def test_a_message_passes_through_each_bound_exchange_once(vhost: VirtualHost) -> None:
    """If exchanges are bound to each other, even in a cycle, a message passes through each of them once, and goes to
    each queue once. If an exchange has no binding that matches, the message goes to its alternate exchange.
    """
    one, two = add_exchange(vhost, "one"), add_exchange(vhost, "two", "direct", arguments={"alternate-exchange": "alt"})
    alternate = add_exchange(vhost, "alt")
    queues = [add_queue(vhost, name) for name in "abc"]
    vhost.bind(one, two, "", {})
    vhost.bind(two, one, "q", {})
    vhost.bind(two, queues[0], "q", {})
    three = add_exchange(vhost, "three")
    vhost.bind(two, three, "q", {})
    vhost.bind(three, two, "", {})
    vhost.bind(one, queues[0], "", {})
    vhost.bind(one, queues[1], "", {})
    vhost.bind(alternate, queues[2], "", {})
    assert sorted(names_of(vhost.route(one, message()))) == ["a", "b"]
    assert sorted(names_of(vhost.route(one, message(key="k")))) == ["a", "b", "c"]
    del vhost.exchanges["alt"]
    assert sorted(names_of(vhost.route(one, message(key="k")))) == ["a", "b"]


def test_a_message_with_too_many_routing_keys_for_its_exchanges_is_refused(
    vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker limits how many lookups it makes to route one message. A direct or topic exchange needs one lookup
    for each routing key of the message, and any other exchange needs one. If the exchanges that a message passes
    through need more lookups than the limit, the broker closes the channel with error 406 (PRECONDITION_FAILED).
    """
    monkeypatch.setattr("mqtool.broker.embedded.model.virtual_host._MOST_LOOKUPS", 7)
    fanout, direct, topic = (
        add_exchange(vhost, "f"),
        add_exchange(vhost, "d", "direct"),
        add_exchange(vhost, "t", "topic"),
    )
    vhost.bind(fanout, direct, "", {})
    vhost.bind(fanout, topic, "", {})
    three = message(headers={"CC": ["a", "b"]})
    assert names_of(vhost.route(fanout, three)) == []
    four = message(headers={"CC": ["a", "b", "c"]})
    with pytest.raises(ChannelException) as error:
        vhost.route(fanout, four)
    assert error.value.code == 406
    assert str(error.value.text).endswith("too many exchanges on the way of a message with 4 routing keys")


def test_enqueue_returns_whether_the_queues_accepted_the_message(vhost: VirtualHost) -> None:
    """VirtualHost.enqueue() adds a routed message to its queues. It returns whether the message was routed to any
    queue, whether all these queues accepted it, and whether it must be on disk before it is confirmed. Queues that were
    deleted after the message was routed are ignored.
    """
    add_queue(vhost)
    add_queue(vhost, "stored", durable=True, x_queue_type="quorum")
    add_queue(vhost, "full", x_max_length=Int32(0), x_overflow="reject-publish")
    assert publish(vhost, "", message(key="missing")) == (False, True, False)
    assert publish(vhost, "", message()) == (True, True, False)
    assert publish(vhost, "", message(key="stored")) == (True, True, True)
    assert publish(vhost, "", message(key="full")) == (True, False, False)
    assert publish(vhost, "", message(key="full", headers={"CC": ["q", "stored"]})) == (True, False, True)
    routing = vhost.route(vhost.exchanges[""], message(headers={"CC": ["stored"]}))
    vhost.delete_queue(vhost.queues["stored"])
    assert vhost.enqueue(routing)[:3] == (True, True, False)
    vhost.delete_queue(vhost.queues["q"])
    assert vhost.enqueue(routing)[:3] == (False, True, False)
    assert vhost.deleted_traffic["quorum"].published == 2
    assert vhost.deleted_traffic["classic"].published == 3


def test_a_topic_binding_key_with_more_than_two_hash_wildcards_is_refused_from_4_3_on() -> None:
    """With `broker up --like 4.3` or later, the broker refuses a binding key with more than two `#` for a topic
    exchange. Binding keys of other exchanges have no such limit.
    """
    for like, is_refused in ((Like.V4_2, False), (Like.V4_3, True)):
        vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[like])
        queue = add_queue(vhost, durable=True)
        vhost.bind(vhost.exchanges["amq.topic"], queue, "#.a.#", {})
        vhost.bind(vhost.exchanges["amq.direct"], queue, "#.a.#.#", {})
        if is_refused:
            with pytest.raises(ChannelException) as error:
                vhost.bind(vhost.exchanges["amq.topic"], queue, "#.a.#.#", {})
            assert str(error.value.text).endswith("key '#.a.#.#' uses 3 '#' wildcards, at most 2 are allowed")
        else:
            vhost.bind(vhost.exchanges["amq.topic"], queue, "#.a.#.#", {})
        assert len([*vhost.bindings()]) == 3 - is_refused


def test_bindings_that_are_invalid_for_the_type_of_the_exchange_are_refused(vhost: VirtualHost) -> None:
    """If a client binds a queue to a headers exchange with an unknown x-match, or to an x-local-random exchange with a
    routing key, the broker refuses the binding with an error, and does not add it.
    """
    queue = add_queue(vhost)
    local = add_exchange(vhost, kind="x-local-random")
    for exchange, key, arguments in ((vhost.exchanges["amq.headers"], "", {"x-match": "no"}), (local, "k", {})):
        with pytest.raises(ChannelException):
            vhost.bind(exchange, queue, key, cast(Table, arguments))
    vhost.bind(vhost.exchanges["amq.direct"], queue, "k", {"x-match": "no"})
    assert len([*vhost.bindings()]) == 1


def test_an_auto_delete_exchange_is_deleted_with_its_last_binding(vhost: VirtualHost) -> None:
    """An auto-delete exchange is deleted when its last binding is removed. An exchange without auto-delete is kept."""
    queue = add_queue(vhost)
    for name, auto_delete in (("auto", True), ("other", False)):
        exchange = add_exchange(vhost, name, auto_delete=auto_delete)
        for key in "ab":
            vhost.bind(exchange, queue, key, {})
        vhost.unbind(exchange, queue, "a", {})
        assert name in vhost.exchanges
        vhost.unbind(exchange, queue, "b", {})
        assert (name in vhost.exchanges) != auto_delete


def test_new_queues_and_exchanges_have_the_policies_that_match_them(vhost: VirtualHost) -> None:
    """A new queue or exchange has the policy whose pattern matches its name. A new queue also has the properties of its
    declaration. If it is declared without a type, its argument x-queue-type is `classic` with `broker up --like 4.0` or
    later. With `--like 3.10`, the queue does not have this argument.
    """
    vhost.policies.put(USER, Policy("p", "^q$", {"max-length": Int32(1)}, 0, "queues"))
    vhost.policies.put(USER, Policy("e", "^x$", {"alternate-exchange": "alt"}, 0, "exchanges"))
    owner = object()
    queue = vhost.add_queue(QueueDeclaration("q", {}, durable=True, auto_delete=True, owner=owner))
    assert (queue.policy.policy, queue.options.max_length, add_exchange(vhost).alternate) == ("p", 1, "alt")
    assert (queue.vhost, queue.durable, queue.auto_delete, queue.owner) == ("/", True, True, owner)
    old = VirtualHost("v", FakeClock(), Ledger(), PROFILES[Like.V3_10])
    assert "x-queue-type" not in add_queue(old).arguments
    assert old.queues["q"].profile is PROFILES[Like.V3_10]
    assert isinstance(add_queue(vhost, "s", durable=True, x_queue_type="stream"), StreamQueue)
    for like in (Like.V4_0, Like.V4_3):
        new = VirtualHost("/", FakeClock(), Ledger(), PROFILES[like])
        assert add_queue(new).arguments["x-queue-type"] == "classic"


def test_a_policy_is_refused_if_the_patterns_of_a_vhosts_policies_become_too_large(vhost: VirtualHost) -> None:
    """The broker matches each new queue and exchange with the patterns of all policies of its virtual host. To limit
    the time that this takes, it refuses a policy that would make these patterns too large in total. It still accepts
    a policy that replaces another policy with the same name. Once another policy is deleted, the broker accepts new
    policies again.
    """

    def put(*numbers: int) -> None:
        for number in numbers:
            policy = Policy(f"p{number}", rf"(?i)(\pL){{100}}({number}|x)y", {"max-length": Int32(1)})
            vhost.policies.put(USER, policy)

    with pytest.raises(ChannelException, match="too many policies in vhost '/', or too large patterns"):
        put(*range(50))
    assert len(vhost.policies.by_kind[USER]) > 10
    put(0)
    vhost.policies.delete(USER, "p1")
    put(50)


def test_a_policy_is_applied_to_many_queues_step_by_step(ledger: Storing) -> None:
    """In a virtual host with many queues, the broker applies a policy to a few queues in each turn of its event loop.
    If the policy is changed between these turns, the changed policy applies to all queues.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[DEFAULT])
    queues = [add_queue(vhost, f"q{number}") for number in range(30)]
    vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(1)}))
    assert {queue.options.max_length for queue in queues} == {None}
    clock.pass_by(3)
    vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(2)}))
    vhost.delete_queue(queues[-1])
    clock.pass_by(15)
    assert {queue.options.max_length for queue in queues} == {None, 2}
    clock.pass_by(1000)
    assert {queue.options.max_length for queue in queues[:-1]} == {2}
    assert queues[-1].options.max_length is None
    vhost.policies.delete(USER, "p")
    clock.pass_by(1000)
    assert {queue.options.max_length for queue in queues} == {None}


@pytest.mark.parametrize("like", [Like.V3_10, Like.V4_2])
def test_a_delayed_message_is_stored_if_its_exchange_is_durable(ledger: Storing, clock: FakeClock, like: Like) -> None:
    """If an x-delayed-message exchange is durable, each message that it holds back is written to disk, and is
    confirmed only after that. When a message is due, the broker reports to a live display, such as `mqtool ui`, which
    exchange delayed the message.
    """
    vhost = VirtualHost("/", clock, ledger, PROFILES[like])
    watcher = Watching()
    vhost.watch(cast(Any, watcher))
    for name, durable in (("x", True), ("t", False)):
        exchange = add_exchange(vhost, name, "x-delayed-message", durable=durable, arguments=DELAYED)
        queue = add_queue(vhost, f"q{name}")
        vhost.bind(exchange, queue, "", {})
        assert publish(vhost, name, message(name.encode(), headers={"x-delay": Int32(1000)})) == (False, True, durable)
    assert ledger.added_to == [vhost.exchanges["x"].key]
    assert [each for each in watcher.told if each[0] == "delayed"] == [
        ("delayed", vhost.exchanges["x"], b"x"),
        ("delayed", vhost.exchanges["t"], b"t"),
    ]
    sources = []
    watcher.published = lambda routing: sources.append(routing.source)  # type: ignore[method-assign]
    clock.pass_by(1000)
    assert sources == [ReleasedQueue("x", 1), ReleasedQueue("t", 2)]
    assert [bodies(vhost.queues[name]) for name in ("qx", "qt")] == [[b"x"], [b"t"]]


@pytest.mark.parametrize(
    ("is_changed", "headers", "delay"), [(True, {}, -1000), (False, {}, 1000), (False, {"BCC": ["b"]}, -1000)]
)
def test_the_delay_of_a_message_whose_headers_the_broker_has_changed_is_negated(
    vhost: VirtualHost, clock: FakeClock, headers: Table, delay: int, *, is_changed: bool
) -> None:
    """RabbitMQ's delayed message plugin negates the x-delay of a message that it has delayed. As in RabbitMQ 3.12,
    consumers of the embedded broker see the negated value, such as -1000, only if the broker has changed other
    headers of the message, such as BCC. Otherwise, they see the x-delay that the publisher sent.
    """
    exchange = add_exchange(vhost, "x", "x-delayed-message", arguments=DELAYED)
    queue = add_queue(vhost)
    vhost.bind(exchange, queue, "", {})
    changed: Any = {"is_changed": True} if is_changed else {}
    routing = vhost.route(exchange, message(headers={"x-delay": Int32(1000), **headers}), **changed)
    assert not routing.queues
    clock.pass_by(1000)
    assert queue.backlog.head().message.headers == {"x-delay": delay}


def test_a_delayed_message_waits_for_memory_for_its_copies(
    vhost: VirtualHost, clock: FakeClock, ledger: Storing
) -> None:
    """If a delayed message for several queues is due, but there is not enough memory for its copies, its exchange
    holds the message back and tries again every second. A message for only one queue is not copied, so it is released
    even if memory is short. If the exchange has been deleted by the time a message is due, the message is dropped and
    its memory is freed.
    """
    exchange = add_exchange(vhost, "x", "x-delayed-message", arguments=DELAYED)
    queues = [add_queue(vhost, name) for name in "ab"]
    for queue in queues:
        vhost.bind(exchange, queue, "", {})
    publish(vhost, "x", message(headers={"x-delay": Int32(1000)}))
    ledger.most_bytes = 0
    clock.pass_by(1999)
    assert (vhost.held(exchange), len(queues[0])) == (1, 0)
    ledger.most_bytes = ledger.held_bytes
    clock.pass_by(1)
    assert (vhost.held(exchange), [len(queue) for queue in queues]) == (0, [1, 1])
    vhost.unbind(exchange, queues[1], "", {})
    publish(vhost, "x", message(headers={"x-delay": Int32(1000)}))
    ledger.most_bytes = 0
    clock.pass_by(1000)
    assert [len(queue) for queue in queues] == [2, 1]
    held = ledger.held_bytes - ledger.definition_bytes
    publish(vhost, "x", message(headers={"x-delay": Int32(1000)}))
    vhost.delete_exchange(exchange)
    clock.pass_by(1000)
    assert ledger.held_bytes - ledger.definition_bytes == held


def test_a_delayed_message_that_cannot_be_published_stays_on_disk(
    vhost: VirtualHost,
    clock: FakeClock,
    ledger: Storing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If an error occurs when the broker publishes a delayed message that is due, the broker logs the error, and
    publishes the other messages. The failed message stays on disk, but not in memory.
    """
    exchange = add_exchange(vhost, "x", "x-delayed-message", arguments=DELAYED)
    queue = add_queue(vhost)
    vhost.bind(exchange, queue, "", {})
    for body in (b"bad", b"good"):
        publish(vhost, "x", message(body, headers={"x-delay": Int32(1000)}))
    removed: list[int] = []
    monkeypatch.setattr(ledger, "removed", removed.append)
    accept = queue.publish

    def fail(sent: BrokerMessage, *details: Any) -> tuple[bool, bool]:
        if sent.body == b"bad":
            raise RuntimeError("broken")
        return accept(sent, *details)

    monkeypatch.setattr(queue, "publish", fail)
    with caplog.at_level(logging.ERROR):
        clock.pass_by(1000)
    assert (bodies(queue), removed) == ([b"good"], [2])
    assert str(caplog.records[0].exc_info[1]) == "broken"  # type: ignore[index]
    assert caplog.messages[0].startswith("a delayed message of exchange 'x' cannot be published: ")
    queue.purge()
    assert ledger.held_bytes == ledger.definition_bytes


def dead_lettering(vhost: VirtualHost, exchange: str, **arguments: Any) -> Any:
    """Return a queue that dead-letters to an exchange, after one of its messages was rejected."""
    queue = add_queue(vhost, "source", x_dead_letter_exchange=exchange, **arguments)
    queue.publish(message())
    queue.reject(queue.get(no_ack=False))
    return queue


@pytest.mark.parametrize("x_delay", [Int32(1000), "soon"])
def test_a_dead_letter_is_delayed_unless_its_delay_cannot_be_read(
    vhost: VirtualHost, clock: FakeClock, x_delay: Any
) -> None:
    """A dead letter that is published to an x-delayed-message exchange is held back for its x-delay. If the x-delay is
    not a number, the dead letter is published immediately.
    """
    exchange = add_exchange(vhost, "x", "x-delayed-message", arguments=DELAYED)
    dead = add_queue(vhost, "dead")
    vhost.bind(exchange, dead, "", {})
    source = add_queue(vhost, x_dead_letter_exchange="x")
    source.publish(message(headers={"x-delay": x_delay}))
    source.reject(source.get(no_ack=False))  # type: ignore[arg-type]
    assert len(dead) == (x_delay == "soon")
    clock.pass_by(1000)
    assert len(dead) == 1
    assert dead.backlog.head().message.headers["x-delay"] == ("soon" if x_delay == "soon" else -1000)


@pytest.mark.parametrize("strategy", ["at-most-once", "at-least-once"])
def test_a_dead_letter_needs_memory_for_its_copies(
    vhost: VirtualHost, ledger: Storing, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    """A dead letter for several queues needs memory for its copies. If there is not enough, the dead-letter strategy
    decides: with at-least-once, the original queue keeps the dead letter; with at-most-once, the broker drops it and
    logs the reason. A dead letter for only one queue is not copied, and is published even if memory is short.
    """
    for name in "ab":
        vhost.bind(vhost.exchanges["amq.fanout"], add_queue(vhost, name), "", {})
    ledger.most_bytes = 0
    to: Table = {"x_queue_type": "quorum", "x_dead_letter_strategy": strategy, "x_overflow": "reject-publish"}
    with caplog.at_level(logging.ERROR):
        queue = dead_lettering(vhost, "amq.fanout", durable=True, **to)
    assert len(queue.dead_letters) == (strategy == "at-least-once")
    assert [len(vhost.queues[name]) for name in "ab"] == [0, 0]
    if strategy == "at-most-once":
        assert str(caplog.records[0].exc_info[1]).endswith(  # type: ignore[index]
            "no memory for 2 copies of a message"
        )
    else:
        assert caplog.records == []
    vhost.delete_queue(vhost.queues["b"])
    vhost.delete_queue(queue)
    dead_lettering(vhost, "amq.fanout", durable=True, **to)
    assert len(vhost.queues["a"]) == 1


@pytest.mark.parametrize("strategy", ["at-most-once", "at-least-once"])
def test_a_dead_letter_that_cannot_be_delivered_is_kept_only_with_at_least_once(
    vhost: VirtualHost, strategy: str
) -> None:
    """A dead letter cannot be delivered if its exchange is missing, if no queue is bound to the exchange, or if the
    bound queue is full. With the strategy at-least-once, the original queue then keeps the dead letter. With
    at-most-once, the dead letter is dropped.
    """
    vhost.bind(
        vhost.exchanges["amq.fanout"], add_queue(vhost, "full", x_max_length=0, x_overflow="reject-publish"), "", {}
    )
    to: Table = {"x_queue_type": "quorum", "x_dead_letter_strategy": strategy, "x_overflow": "reject-publish"}
    for exchange in ("missing", "amq.direct", "amq.fanout"):
        queue = dead_lettering(vhost, exchange, durable=True, **to)
        assert len(queue.dead_letters) == (strategy == "at-least-once")
        vhost.delete_queue(queue)


def test_an_expired_message_is_not_dead_lettered_back_to_its_own_queue(vhost: VirtualHost, clock: FakeClock) -> None:
    """If a message expires, and its dead letter is routed to its original queue and to others, only the others get
    the dead letter. If a consumer rejects the message instead, the original queue also gets the dead letter.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000), x_dead_letter_exchange="amq.fanout")
    other = add_queue(vhost, "other")
    for each in (queue, other):
        vhost.bind(vhost.exchanges["amq.fanout"], each, "", {})
    queue.publish(message())
    clock.pass_by(1000)
    assert (len(queue), len(other)) == (0, 1)
    queue.publish(message())
    queue.reject(queue.get(no_ack=False))  # type: ignore[arg-type]
    assert (len(queue), len(other)) == (1, 2)


@pytest.mark.parametrize(("like", "deaths"), [(Like.V3_10, 2), (Like.V4_2, 1)])
def test_an_x_death_header_that_a_publisher_has_set_is_kept_only_with_like_3_10(
    ledger: Storing, like: Like, deaths: int
) -> None:
    """If a publisher has set an x-death header, a dead letter keeps it with `broker up --like 3.10`, but not with
    `--like 4.2`. With either option, the broker tells a live display, such as `mqtool ui`, from which queue the message
    was dead-lettered and why, whatever the publisher's header says.
    """
    vhost = VirtualHost("/", FakeClock(), ledger, PROFILES[like])
    dead, watcher, sources = add_queue(vhost, "dead"), Watching(), []
    vhost.watch(cast(Any, watcher))
    watcher.published = lambda routing: sources.append(routing.source)  # type: ignore[method-assign]
    queue = add_queue(vhost, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    queue.publish(message(headers={"x-death": [{"queue": "old", "reason": "expired", "count": 1}]}))
    queue.reject(queue.get(no_ack=False))  # type: ignore[arg-type]
    found: Any = dead.backlog.head().message.headers["x-death"]
    assert [each["queue"] for each in found] == ["q", "old"][:deaths]
    assert [(source.queue, source.reason) for source in sources] == [(queue, "rejected")]


@pytest.mark.parametrize("first_is_durable", [True, False])
def test_a_message_that_several_exchanges_delay_is_stored_if_one_of_them_is_durable(
    vhost: VirtualHost, *, first_is_durable: bool
) -> None:
    """If a durable and a transient x-delayed-message exchange both delay a message, the message is confirmed only
    after it has been written to disk.
    """
    for name, durable in (("a", first_is_durable), ("b", not first_is_durable)):
        delaying = add_exchange(vhost, name, "x-delayed-message", durable=durable, arguments=DELAYED)
        vhost.bind(vhost.exchanges["amq.fanout"], delaying, "", {})
    assert publish(vhost, "amq.fanout", message(headers={"x-delay": Int32(1000)})) == (False, True, True)


def test_changes_and_published_messages_are_reported_to_a_live_display(vhost: VirtualHost) -> None:
    """The broker reports to a live display, such as `mqtool ui`, each change to queues, exchanges, bindings and
    policies, each published message, and each message that a queue refuses. The display can exclude messages with a
    certain exchange and routing key. Once the display is closed, the broker reports nothing.
    """
    queue = add_queue(vhost)
    watcher = Watching()
    vhost.watch(cast(Any, watcher))
    assert queue.watcher is watcher  # type: ignore[comparison-overlap]
    full = add_queue(vhost, "full", x_max_length=Int32(0), x_overflow="reject-publish")
    assert full.watcher is watcher  # type: ignore[comparison-overlap]
    exchange = add_exchange(vhost)
    vhost.bind(exchange, full, "", {})
    vhost.policies.put(USER, Policy("p", "none", {"max-length": Int32(1)}))
    vhost.delete_exchange(exchange)
    assert watcher.told == [("changed",)] * 6
    watcher.told.clear()
    published: list[Any] = []
    watcher.published = published.append  # type: ignore[method-assign]
    publish(vhost, "", message(b"1", key="full"))
    assert watcher.told == [("refused", "full", b"1")]
    watcher.skipped = {message(key="full").address}
    publish(vhost, "", message(b"2", key="full"))
    routing = vhost.route(vhost.exchanges[""], message(b"3", key="full"))
    routing.source = SimpleNamespace()
    vhost.enqueue(routing)
    assert [each.message.body for each in published] == [b"1", b"3"]
    watcher.told.clear()
    vhost.delete_queue(full)
    assert ("changed",) in watcher.told
    vhost.watch(None)
    assert (vhost.watcher, queue.watcher) == (None, None)


def test_unused_and_auto_delete_queues_are_deleted(vhost: VirtualHost, clock: FakeClock) -> None:
    """If no client uses a queue after its declaration, the queue is deleted once the time in its x-expires has passed.
    An auto-delete queue is deleted with its last consumer.
    """
    add_queue(vhost, x_expires=Int32(1000))
    clock.pass_by(1000)
    assert "q" not in vhost.queues
    queue = add_queue(vhost, auto_delete=True)
    consumer = FakeConsumer(queue=queue)
    queue.add_consumer(consumer)
    queue.remove_consumer(consumer)
    assert "q" not in vhost.queues
