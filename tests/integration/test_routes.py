"""`route` agrees with the broker: messages arrive in the queues that it names."""

import random
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool import management
from mqtool.amqp import Channel, Connection, administration, parse_addresses
from mqtool.amqp.pika_private import CONNECTION, FastConnection
from mqtool.errors import AccessRefused, BadData
from mqtool.inspection.definitions import Definitions, read
from mqtool.inspection.routes import Router
from mqtool.management import Management
from mqtool.message import Confirmation, Message
from mqtool.topology import Binding
from tests.brokers import IN_CI, TestBroker, on_any_broker
from tests.cli.shell import wait_until

MESSAGES = 4_000 if IN_CI else 400
WORDS = {"a": 5, "b": 5, "c": 5, "ü": 2, "": 2, "*": 4, "#": 1}
NAMES = ["a", "b", "x-a"]
VALUES: list[Any] = ["1", "2", 1, 2, 2**40, True, False, None, [1], {"n": 1}]
if CONNECTION is FastConnection:  # pika itself encodes no floats
    VALUES.append(1.0)
EXCHANGES = {
    **{f"topic{number}": "topic" for number in range(4)},
    **{f"headers{number}": "headers" for number in range(3)},
    **{f"direct{number}": "direct" for number in range(2)},
    "fanout": "fanout",
}
QUEUES = [f"q{number}" for number in range(60)]


@pytest.fixture
def channel(broker: TestBroker) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    yield connection.channel()
    connection.close()


def definitions_of(broker: TestBroker) -> Definitions:
    return read(Management(broker.management, "guest", "guest"), broker.vhost)


def a_key(chance: random.Random) -> str:
    return ".".join(chance.choices(list(WORDS), list(WORDS.values()), k=chance.choice([0, 1, 1, 2, 2, 3, 4])))


def some_headers(chance: random.Random) -> dict[str, Any]:
    return {name: chance.choice(VALUES) for name in chance.sample(NAMES, chance.randint(0, len(NAMES)))}


def arguments_of(chance: random.Random, kind: str) -> dict[str, Any]:
    if kind != "headers":
        return {}
    match = chance.choice([{}, *({"x-match": mode} for mode in ("all", "any", "all-with-x", "any-with-x"))])
    return match | some_headers(chance)


def declare_a_maze(channel: BlockingChannel, ours: Channel, chance: random.Random) -> None:
    """Declare exchanges of all types, bound to queues and to each other, also in cycles, some with an alternate
    exchange.
    """
    for name, kind in EXCHANGES.items():
        alternate = {"alternate-exchange": chance.choice([*EXCHANGES, "none-such"])} if chance.random() < 0.5 else {}
        channel.exchange_declare(name, kind, arguments=alternate)
    for queue in QUEUES:
        channel.queue_declare(queue, arguments={"x-max-length": MESSAGES})
        for _ in range(chance.randint(1, 2)):
            source, kind = chance.choice(list(EXCHANGES.items()))
            administration.bind(ours, Binding(source, queue, a_key(chance), arguments_of(chance, kind)))
    for _ in range(8):
        source, kind = chance.choice(list(EXCHANGES.items()))
        destination, key, arguments = chance.choice(list(EXCHANGES)), a_key(chance), arguments_of(chance, kind)
        administration.bind(ours, Binding(source, destination, key, arguments, to_exchange=True))


def a_message(chance: random.Random, number: int) -> Message:
    exchange = chance.choices(["", *EXCHANGES], [1, *([4] * len(EXCHANGES))])[0]
    key = chance.choice([*QUEUES, a_key(chance)]) if not exchange else a_key(chance)
    headers = some_headers(chance)
    if chance.random() < 0.05:
        headers[chance.choice(["CC", "BCC"])] = [a_key(chance) for _ in range(2)]
    return Message(str(number).encode(), key, exchange, {"headers": headers})


def what_queues_hold(channel: BlockingChannel) -> dict[int, set[str]]:
    """Return the queues that got each message, by the message's number."""
    total = sum(channel.queue_declare(queue, passive=True).method.message_count for queue in QUEUES)
    got: list[tuple[str, int]] = []
    for queue in QUEUES:
        channel.basic_consume(
            queue, lambda _c, _m, _p, body, queue=queue: got.append((queue, int(body))), auto_ack=True
        )
    while len(got) < total:
        channel.connection.process_data_events(None)
    assert len(got) == len(set(got)), "a queue got a message twice"
    found: dict[int, set[str]] = {number: set() for number in range(MESSAGES)}
    for queue, number in got:
        found[number].add(queue)
    return found


@pytest.mark.differs_since("4.0", "a headers exchange distinguishes types of numbers")
def test_route_names_exactly_the_queues_in_which_messages_arrive(broker: TestBroker, channel: BlockingChannel) -> None:
    """If hundreds of messages are published to randomly bound exchanges, each of them arrives in exactly the queues
    that `route` names for it. If `route` names no queue, the broker returns the message.
    """
    chance = random.Random(20261120)
    with Connection(parse_addresses(broker.url)) as connection:
        declare_a_maze(channel, connection.channel(), chance)
        router = Router(definitions_of(broker))
        messages = [a_message(chance, number) for number in range(MESSAGES)]
        receipts = list(connection.channel(mandatory=True).publish(iter(messages)))
    held = what_queues_hold(channel)

    for number, (message, receipt) in enumerate(zip(messages, receipts, strict=True)):
        headers = message.properties["headers"]
        told = router.route(message.exchange or "", message.routing_key or "", headers, near_misses=0)
        assert set(told.queues) == held[number], (message, told)
        expected = Confirmation.CONFIRMED if told.queues else Confirmation.RETURNED
        assert receipt.confirmation is expected, (message, told)
    routed = sum(bool(queues) for queues in held.values())
    assert MESSAGES * 0.2 < routed < MESSAGES * 0.95, f"{routed} were routed: the maze is too simple"


def test_route_names_the_queues_in_which_dead_letters_arrive(broker: TestBroker, channel: BlockingChannel) -> None:
    """`route` names the queues in which a message's dead letters arrive, whether the dead letters keep their routing
    keys or get the queue's x-dead-letter-routing-key. If a dead-letter exchange does not exist, `route` names no
    queues for it.
    """
    to_dlx = {"x-dead-letter-exchange": "dlx"}
    channel.exchange_declare("x", "topic")
    channel.exchange_declare("dlx", "direct")
    channel.queue_declare("keeps-keys", arguments=to_dlx)
    channel.queue_declare("new-key", arguments={**to_dlx, "x-dead-letter-routing-key": "new"})
    channel.queue_declare("first", arguments={"x-dead-letter-exchange": "gone"})
    channel.queue_declare("second")
    for queue in ("keeps-keys", "new-key"):
        channel.queue_bind(queue, "x", f"{queue}.#")
    for queue, key in (("first", "keeps-keys.a"), ("second", "copy"), ("second", "new")):
        channel.queue_bind(queue, "dlx", key)
    router = Router(definitions_of(broker))
    for start in ("keeps-keys", "new-key"):
        headers = {"CC": ["copy"]}
        told = router.route("x", f"{start}.a", headers)
        assert set(told.queues) == {start}
        channel.basic_publish("x", f"{start}.a", b"", pika.BasicProperties(headers=headers))
        method = None
        while method is None:
            method, _, _ = channel.basic_get(start)
        channel.basic_reject(method.delivery_tag, requeue=False)
        queues = told.dead_letters[0].queues
        assert queues == (["first", "second"] if start == "keeps-keys" else ["second"])
        for queue in queues:
            wait_until(lambda queue=queue: channel.basic_get(queue, auto_ack=True)[0], f"a dead letter in {queue}")
        assert not any(channel.basic_get(queue, auto_ack=True)[0] for queue in ("first", "second"))
    assert [(death.queue, death.queues) for death in router.route("x", "keeps-keys.a").dead_letters] == [
        ("keeps-keys", ["first"]),
        ("first", None),
    ]


def test_route_follows_exchanges_that_policies_set(broker: TestBroker, channel: BlockingChannel) -> None:
    """`route` takes into account the alternate exchange and the dead-letter exchange that policies set."""
    channel.exchange_declare("x", "direct")
    channel.queue_declare("q")
    channel.queue_bind("q", "amq.fanout")
    for name, definition in (
        ("x", {"alternate-exchange": "amq.fanout"}),
        ("q", {"dead-letter-exchange": "amq.direct", "dead-letter-routing-key": "k"}),
    ):
        applied = {"pattern": f"^{name}$", "definition": definition}
        broker.api("PUT", f"policies/{broker.vhost}/{name}", applied)
    wait_until(lambda: Router(definitions_of(broker)).route("x", "a").dead_letters, "the policies")
    [death] = Router(definitions_of(broker)).route("x", "a").dead_letters
    assert (death.queue, death.exchange, death.routing_key, death.queues) == ("q", "amq.direct", "k", [])


def test_route_follows_policies_for_a_user_without_the_tag_policymaker(
    broker: TestBroker, channel: BlockingChannel
) -> None:
    """Even if the user lacks the tag policymaker, `route` takes into account the dead-letter exchange that a policy
    sets for a queue.
    """
    set_dead_letter_policy(broker, channel)
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": "management"})
    broker.api("PUT", f"permissions/{broker.vhost}/{user}", {"configure": "", "write": "", "read": ""})
    try:
        api = Management(broker.management, user, "secret")
        wait_until(lambda: dead_letter_exchanges(read(api, broker.vhost)) == ["amq.direct"], "the policy")
    finally:
        broker.api("DELETE", f"users/{user}")


@on_any_broker
def test_route_follows_policies_even_if_the_management_api_refuses_to_list_them(
    broker: TestBroker, channel: BlockingChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the management API refuses to list policies, `route` still takes into account the dead-letter exchange that a
    policy sets for a queue.
    """

    def refuse(*_: object) -> None:
        raise AccessRefused("not a policymaker")

    set_dead_letter_policy(broker, channel)
    monkeypatch.setattr(management, "policies", refuse)
    assert dead_letter_exchanges(definitions_of(broker)) == ["amq.direct"]


def set_dead_letter_policy(broker: TestBroker, channel: BlockingChannel) -> None:
    """Declare the queue `q`, and set a policy that gives it the dead-letter exchange amq.direct."""
    channel.queue_declare("q")
    applied = {"pattern": "^q$", "definition": {"dead-letter-exchange": "amq.direct"}}
    broker.api("PUT", f"policies/{broker.vhost}/q", applied)


def dead_letter_exchanges(found: Definitions) -> list[str]:
    """The exchanges to which `q` dead-letters a message, according to `route`."""
    return [death.exchange for death in Router(found).route("", "q").dead_letters]


def test_route_follows_a_delayed_exchange_by_its_x_delayed_type(broker: TestBroker, channel: BlockingChannel) -> None:
    """For an x-delayed-message exchange, Router.route(), on which the command `route` is based, returns the queues that
    an exchange of the type in x-delayed-type would choose, and the message's x-delay. If x-delay is not a number of
    milliseconds, Router.route() raises BadData.
    """
    overview: Any = broker.api("GET", "overview")
    if not any(each["name"] == "x-delayed-message" for each in overview["exchange_types"]):
        pytest.skip("this broker has no delayed message plugin")
    channel.exchange_declare("later", "x-delayed-message", arguments={"x-delayed-type": "topic"})
    channel.queue_declare("q")
    channel.queue_bind("q", "later", "a.*")
    told = Router(definitions_of(broker)).route("later", "a.b", {"x-delay": 20})
    assert (set(told.queues), told.delay) == ({"q"}, 20)
    assert Router(definitions_of(broker)).route("later", "a.b", {"x-delay": "+20"}).delay == 20
    with pytest.raises(BadData, match="x-delay is not a number of milliseconds: '5s'"):
        Router(definitions_of(broker)).route("later", "a.b", {"x-delay": "5s"})
    channel.basic_publish("later", "a.b", b"", pika.BasicProperties(headers={"x-delay": 20}))
    wait_until(lambda: channel.basic_get("q", auto_ack=True)[0], "the message")
    assert not Router(definitions_of(broker)).route("later", "b.b").queues
