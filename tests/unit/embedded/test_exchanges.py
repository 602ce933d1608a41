"""The embedded broker's exchanges: types, alternate exchanges, bindings, and delayed messages."""

import asyncio
import struct
from itertools import product
from pathlib import Path
from typing import cast

import pytest

from mqtool.broker.embedded.model.amqp_errors import ConnectionException
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.exchange import (
    BrokerBinding,
    BrokerDestination,
    BrokerExchange,
    negate_delay,
    types_of,
)
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.store.database import definitions_of
from mqtool.codecs.field_tables import (
    ByteArray,
    Decimal,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    Table,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    Value,
)
from tests.unit.embedded.test_queue import FakeClock, add_queue, bodies, message
from tests.unit.embedded.test_recovery import started

_ALWAYS = {
    "direct",
    "fanout",
    "topic",
    "headers",
    "x-consistent-hash",
    "x-modulus-hash",
    "x-random",
    "x-recent-history",
}


@pytest.mark.parametrize(
    ("like", "more"),
    [
        (Like.V3_10, {"x-delayed-message"}),
        (Like.V4_2, {"x-delayed-message", "x-local-random"}),
        (Like.V4_3, {"x-local-random"}),
    ],
)
def test_a_broker_has_the_exchange_types_of_the_version_that_it_imitates(like: Like, more: set[str]) -> None:
    """The embedded broker has the exchange types of the RabbitMQ version that it imitates. With `broker up --like
    3.10`, it has x-delayed-message, but not x-local-random. With `--like 4.2`, it has both. With `--like 4.3`, it has
    only x-local-random, because there is no delayed message plugin for RabbitMQ 4.3.
    """
    assert set(types_of(PROFILES[like])) == _ALWAYS | more


def test_a_local_random_exchange_routes_each_message_to_one_queue(vhost: VirtualHost) -> None:
    """An x-local-random exchange routes each message to exactly one of the queues that are bound to it, chosen at
    random, whatever the routing key is. If no queue is bound to the exchange, the message is unroutable.
    """
    exchange = BrokerExchange("x", "x-local-random")
    vhost.add_exchange(exchange)
    assert [*vhost.route(exchange, message(key="k")).queues] == []
    queues = [add_queue(vhost, name) for name in "abc"]
    for queue in queues:
        vhost.bind(exchange, queue, "", {})
    found = [[*vhost.route(exchange, message(key="k")).queues] for _ in range(200)]
    assert {len(each) for each in found} == {1}
    assert {queue for each in found for queue in each} == set(queues)


@pytest.mark.parametrize(
    ("argument", "policy", "goes_to"),
    [
        (None, None, None),
        ("a", None, "a"),
        (None, "b", "b"),
        ("a", "b", "a"),
        ("missing", "b", None),
        (Int32(1), "b", None),
    ],
)
def test_an_unroutable_message_goes_to_the_alternate_exchange(
    vhost: VirtualHost, argument: Value, policy: str | None, goes_to: str | None
) -> None:
    """If no binding of an exchange matches a message, the message goes to the alternate exchange that is named in the
    exchange's arguments or, if none is named there, in a policy. If the alternate exchange does not exist, the message
    is unroutable.
    """
    queues = {name: add_queue(vhost, name) for name in "ab"}
    for name, queue in queues.items():
        vhost.add_exchange(BrokerExchange(name, "fanout"))
        vhost.bind(vhost.exchanges[name], queue, "", {})
    exchange = BrokerExchange("x", "direct", arguments={} if argument is None else {"alternate-exchange": argument})
    vhost.add_exchange(exchange)
    if policy is not None:
        vhost.policies.put(USER, Policy("p", "^x$", {"alternate-exchange": policy}))
    assert [*vhost.route(exchange, message(key="k")).queues] == [
        queues[name] for name in ([goes_to] if goes_to else [])
    ]
    assert exchange.policy.policy == (None if policy is None else "p")
    if policy is not None:
        vhost.policies.delete(USER, "p")
        assert exchange.alternate == (argument if isinstance(argument, str) else None)
        assert exchange.policy.policy is None


@pytest.mark.parametrize(("like", "matches"), [(Like.V3_10, True), (Like.V4_2, False)])
def test_the_version_decides_whether_a_headers_exchange_distinguishes_1_and_1_0(like: Like, *, matches: bool) -> None:
    """With `broker up --like 3.10`, the integer 1 in a headers binding matches the float 1.0 in a message, as in
    RabbitMQ 3.10. With `--like 4.2`, it does not, as in RabbitMQ 4.2.
    """
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[like])
    exchange, queue = BrokerExchange("x", "headers"), add_queue(vhost)
    for each in (exchange, vhost.exchanges["amq.headers"]):
        vhost.bind(each, queue, "", {"x-match": "all", "n": Int32(1)})
        if each is exchange:
            vhost.add_exchange(exchange)
        assert [*vhost.route(each, message(headers={"n": 1.0})).queues] == [queue] * matches


def test_a_queue_with_several_bindings_stays_bound_until_all_are_removed(vhost: VirtualHost) -> None:
    """A queue can be bound to an exchange several times, with different keys or arguments. It stays bound until all of
    these bindings are removed. Removing a binding that does not exist changes nothing.
    """
    exchange, queue = vhost.exchanges["amq.fanout"], add_queue(vhost)
    bindings: list[tuple[str, Table]] = [("", {}), ("k", {}), ("k", {"a": Int32(1)})]
    for key, arguments in bindings * 2:
        vhost.bind(exchange, queue, key, arguments)
    assert [(each.routing_key, each.arguments) for each in exchange.bindings] == bindings
    assert {(each.routing_key, len(each.arguments)) for each in queue.inbound} == {("", 0), ("k", 0), ("k", 1)}
    for key, arguments in bindings:
        assert [*exchange.match([""], {})] == [queue]
        vhost.unbind(exchange, queue, key, arguments)
        vhost.unbind(exchange, queue, key, arguments)
    assert [*exchange.match([""], {})] == []
    assert (exchange.in_use, queue.inbound) == (False, set())


def test_an_exchange_that_is_bound_to_itself_can_be_deleted(vhost: VirtualHost, ledger: Ledger) -> None:
    """An exchange that is bound to itself can be deleted. Its binding then no longer counts towards the broker's memory
    use.
    """
    before = ledger.definition_bytes
    exchange = BrokerExchange("x", "fanout")
    vhost.add_exchange(exchange)
    vhost.bind(exchange, exchange, "", {})
    vhost.delete_exchange(exchange)
    assert ledger.definition_bytes == before


def test_a_binding_survives_a_restart_if_its_exchange_and_its_destination_do(tmp_path: Path) -> None:
    """A binding survives a restart of the broker if both its exchange and its destination (a queue or an exchange)
    are durable. Other bindings are not stored.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        sources, ends = list[BrokerExchange](), list[BrokerDestination]()
        for durable, name in ((True, "durable"), (False, "transient")):
            for each in (f"{name} source", f"{name} exchange"):
                vhost.add_exchange(BrokerExchange(each, "fanout", durable=durable))
            sources.append(vhost.exchanges[f"{name} source"])
            ends += [vhost.exchanges[f"{name} exchange"], add_queue(vhost, f"{name} queue", durable=durable)]
        for source, end in product(sources, ends):
            vhost.bind(source, end, "", {})
        await storage.stored()
        assert len([*definitions_of(storage.database.db, "binding")]) == 2
        storage.close()
        storage, broker = started(tmp_path)
        assert {(each.source.name, each.destination.name) for each in broker.vhosts["/"].bindings()} == {
            ("durable source", "durable exchange"),
            ("durable source", "durable queue"),
        }
        storage.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("routing_key", "properties_key"),
    [("", "~"), ("k", "k"), ("a.#", "a.%23"), ("a~b", "a%7Eb"), ("a b", "a+b"), ("caf\udce9", "caf%E9")],
)
def test_the_properties_key_of_a_binding_is_its_percent_encoded_routing_key(
    vhost: VirtualHost, routing_key: str, properties_key: str
) -> None:
    """The properties_key of a binding without arguments is its routing key, percent-encoded for a URL, or ~ if the
    routing key is empty.
    """
    binding = BrokerBinding(vhost.exchanges["amq.topic"], add_queue(vhost), routing_key, {})
    assert binding.properties_key == properties_key


@pytest.mark.parametrize(
    ("arguments", "hashed"),
    [
        ({"n": Int8(-5)}, "tnQIpA"),
        ({"n": UInt8(200)}, "kPLA9Q"),
        ({"n": Int16(-300)}, "_sMfOw"),
        ({"n": UInt16(60000)}, "xihm5Q"),
        ({"n": Int32(1)}, "dTfaWg"),
        ({"n": UInt32(4_000_000_000)}, "J2hahQ"),
        ({"n": Int64(1)}, "hadFaw"),
        ({"n": Int64(2**62)}, "9XBilQ"),
        ({"n": Int64(-(2**60))}, "qVnObw"),
        ({"n": Timestamp(2**63 + 1)}, "n1z74g"),
        ({"n": 1.5}, "i6OcSg"),
        ({"n": -0.0}, "mQkNaA"),
        ({"n": Float32(struct.unpack(">f", struct.pack(">f", 0.1))[0])}, "lHRA1Q"),
        ({"n": True}, "jFhotQ"),
        ({"n": None}, "LmSayA"),
        ({"n": ""}, "bUVsug"),
        ({"n": "é"}, "HJqbMw"),
        ({"n": b"\xff\xfe"}, "Q9dQXQ"),
        ({"n": ByteArray(b"\0\1")}, "t1XMqg"),
        ({"n": Decimal(2, 150)}, "6NkPAg"),
        ({"n": []}, "32Gn7A"),
        ({"n": {}}, "1F5pRQ"),
        ({"n": [1, "a", Int32(2), {"z": 1, "a": [True]}]}, "M5xxOQ"),
        ({"n": {"z": Int32(1), "a": Int32(2)}}, "JRRqqQ"),
        ({"z": Int32(1), "a": "x", "m": None}, "MnqQuQ"),
        ({"x-match": "any", "type": "report", "format": "pdf"}, "Zcsvng"),
        ({"n": "x" * 100}, "MaMiNg"),
        ({"é": 1, "z": 2, "Z": 3}, "Cmdxng"),
    ],
)
def test_the_properties_key_of_a_binding_with_arguments_ends_with_rabbitmqs_hash(
    vhost: VirtualHost, arguments: Table, hashed: str
) -> None:
    """The hash of the typed arguments is the one that RabbitMQ 3.10.8, 4.0.5 and 4.3.6 showed for the same table."""
    binding = BrokerBinding(vhost.exchanges["amq.topic"], add_queue(vhost), "k", arguments)
    assert binding.properties_key == f"k~{hashed}"


def test_a_new_exchange_reports_that_no_messages_were_published_to_it() -> None:
    """A new exchange reports 0 as the number of messages that were published to it."""
    assert BrokerExchange("x", "direct").counts() == {"publish_in": 0}


def test_an_x_delay_that_is_not_a_number_closes_the_connection(vhost: VirtualHost) -> None:
    """If the x-delay of a message to an x-delayed-message exchange is a string that is not a number, the broker
    closes the connection with error 541, and does not delay the message.
    """
    exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    vhost.add_exchange(exchange)
    with pytest.raises(ConnectionException) as error:
        vhost.route(exchange, message(headers={"x-delay": "soon"}))
    assert error.value.code == 541
    assert vhost.held(exchange) == 0


def test_a_delayed_headers_exchange_routes_by_headers_when_a_message_is_due(
    vhost: VirtualHost, clock: FakeClock
) -> None:
    """An x-delayed-message exchange with the x-delayed-type `headers` routes each message by its headers when the
    message is due.
    """
    exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "headers"})
    vhost.add_exchange(exchange)
    queues = [add_queue(vhost, name) for name in "ab"]
    for queue in queues:
        vhost.bind(exchange, queue, "", {"to": queue.name})
    for name in "ab":
        vhost.route(exchange, message(name.encode(), headers={"to": name, "x-delay": Int32(1000)}))
    clock.pass_by(1000)
    assert [bodies(queue) for queue in queues] == [[b"a"], [b"b"]]


def test_each_delayed_exchange_counts_its_delayed_messages(vhost: VirtualHost, clock: FakeClock) -> None:
    """The broker counts the messages that each x-delayed-message exchange delays, and lists them in the order in
    which they are due. When a message of one exchange is released, the count of another exchange does not change.
    """
    exchanges = [
        BrokerExchange(name, "x-delayed-message", arguments={"x-delayed-type": "fanout"}) for name in ("one", "two")
    ]
    for exchange in exchanges:
        vhost.add_exchange(exchange)
    for exchange, delay in [(exchanges[0], 3000), (exchanges[1], 1000), (exchanges[0], 2000), (exchanges[0], 1000)]:
        vhost.route(exchange, message(b"%d" % delay, headers={"x-delay": Int32(delay)}))
    listed = [(name, entry.message.body) for name, entry in vhost.first_held(3)]
    assert listed == [("two", b"1000"), ("one", b"1000"), ("one", b"2000")]
    counts = []
    for _ in range(4):
        counts.append([vhost.held(exchange) for exchange in exchanges])
        clock.pass_by(1000)
    assert counts == [[3, 1], [2, 0], [1, 0], [0, 0]]


def test_a_message_with_a_negated_delay_is_not_delayed_again(vhost: VirtualHost) -> None:
    """After delaying a message, an x-delayed-message exchange of the embedded broker negates the message's x-delay
    header, as RabbitMQ's delayed message plugin does. The negated number is a 32-bit integer if it fits into 32 bits.
    A message whose x-delay is already negated is not delayed.
    """
    for delay, kind in ((5000, Int32), (2**31, Int32), (2**31 + 1, Int64)):
        found = negate_delay(message(headers={"x-delay": Int64(delay), "a": "b"}), delay).headers
        assert found == {"x-delay": -delay, "a": "b"}
        assert type(found["x-delay"]) is kind
        exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
        assert vhost.route(exchange, message(headers=cast(Table, found))).stored is False
        assert vhost.held(exchange) == 0


@pytest.mark.parametrize("delay", [Int32(1000), Int32(-1000), "1000", 1000.0])
def test_a_message_that_was_delayed_before_a_restart_waits_no_longer_than_its_delay(
    vhost: VirtualHost, clock: FakeClock, ledger: Ledger, delay: Value
) -> None:
    """After a restart, a message in an x-delayed-message exchange waits for at most its x-delay, even if the system
    clock was changed while the broker was stopped. The x-delay can be an integer, a float or a string. If the number
    is negative, its absolute value is the delay, because the broker may have negated it already.
    """
    exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    vhost.add_exchange(exchange)
    queue = add_queue(vhost)
    vhost.bind(exchange, queue, "", {})
    vhost.hold_again(exchange, ledger.enter(message(b"x", headers={"x-delay": delay}), clock.now() + 3_600_000))
    clock.pass_by(999)
    assert bodies(queue) == []
    clock.pass_by(1)
    assert bodies(queue) == [b"x"]
