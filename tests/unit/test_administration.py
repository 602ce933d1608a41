"""Declaring, checking, purging, deleting, binding and unbinding, on an embedded broker in this process."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from mqtool import management
from mqtool.amqp import Channel, Connection, Receiving, administration, parse_addresses
from mqtool.amqp.administration import Depth
from mqtool.errors import AccessRefused, BadData, NotFound, UsageError
from mqtool.management import Management, path
from mqtool.message import Confirmation, Message
from mqtool.testing import EmbeddedBroker, Vhost
from mqtool.topology import Binding, Exchange, Queue


@pytest.fixture
def channel(amqp_vhost: Vhost) -> Iterator[Channel]:
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        yield connection.channel()


@pytest.fixture
def api(amqp_broker: EmbeddedBroker) -> Management:
    return Management(str(amqp_broker.management_url), "guest", "guest")


def fill(channel: Channel, count: int, queue: str = "q") -> None:
    channel.declare(Queue(queue, durable=True))
    list(channel.publish([Message(b"") for _ in range(count)], routing_key=queue))


def routed(channel: Channel, exchange: str, key: str, headers: dict[str, Any] | None = None) -> bool:
    """True if an exchange routes a message with this routing key to any queue."""
    message = Message(b"", key, exchange, {"headers": headers or {}})
    [receipt] = channel.publish([message], mandatory=True)
    return receipt.confirmation is Confirmation.CONFIRMED


@pytest.mark.parametrize(
    "thing",
    [
        Queue("q", durable=True),
        Queue("q", exclusive=True),
        Queue("q", durable=True, auto_delete=True, arguments={"x-max-length": 5}),
        Exchange("x"),
        Exchange("x", "topic", durable=True),
        Exchange("x", "headers", auto_delete=True, internal=True, arguments={"alternate-exchange": "y"}),
    ],
)
def test_an_exchange_or_a_queue_is_declared_with_exactly_its_properties_and_arguments(
    channel: Channel, amqp_vhost: Vhost, api: Management, thing: Exchange | Queue
) -> None:
    """An exchange or a queue that mqtool has declared exists on the broker with exactly the properties, such as
    durable, and the arguments that were declared.
    """
    channel.declare(thing)
    kind = "queues" if isinstance(thing, Queue) else "exchanges"
    view = api.get(path(kind, amqp_vhost.name, thing.name))
    view["arguments"].pop("x-queue-type", None)  # added by RabbitMQ 4.2
    assert {name: view[name] for name in thing._fields} == thing._asdict()


@pytest.mark.parametrize("passive", [True, False])
@pytest.mark.parametrize("kind", [Queue, Exchange])
@pytest.mark.parametrize("name", ["a\nb", "a\rb", "b\n"])
def test_a_name_with_a_line_break_cannot_be_declared(
    channel: Channel, kind: type[Exchange | Queue], name: str, *, passive: bool
) -> None:
    """If the name of an exchange or a queue contains a line break, mqtool refuses to declare the exchange or queue,
    and sends nothing to the broker.
    """
    with pytest.raises(UsageError) as refused:
        channel.ask(administration.declare_request(kind(name), passive=passive))
    assert str(refused.value) == f"the name {name!r} contains a line break"
    assert refused.value.hint == "names must be on one line"


@pytest.mark.parametrize("change", [administration.bind, administration.unbind])
@pytest.mark.parametrize("ends", [("x\n", "q"), ("x", "q\r")], ids=repr)
def test_a_name_with_a_line_break_cannot_be_bound(
    channel: Channel, change: Callable[[Channel, Binding], None], ends: tuple[str, str]
) -> None:
    """If the name of a queue or an exchange contains a line break, mqtool refuses to bind or unbind the queue or
    exchange, because the broker would drop the line break, and so change the bindings of another queue or exchange.
    """
    channel.declare(Exchange("x"))
    channel.declare(Queue("q"))
    with pytest.raises(UsageError, match="contains a line break"):
        change(channel, Binding(*ends))


@pytest.mark.parametrize(
    ("name", "is_valid"),
    [("é", True), ("\ud7ff\ue000\U0010ffff", True), ("q\ud800", False), ("\udcffq", False), ("\udfff", False)],
)
def test_a_name_that_is_not_utf_8_cannot_be_declared(channel: Channel, name: str, *, is_valid: bool) -> None:
    """The management API cannot list a queue whose name is not valid UTF-8, so mqtool refuses to declare a queue with
    such a name.
    """
    if is_valid:
        assert channel.declare(Queue(name)).name == name
        return
    with pytest.raises(UsageError) as refused:
        channel.declare(Queue(name))
    assert str(refused.value) == f"the name {name!r} is not valid UTF-8"
    assert refused.value.hint == "only a message's body may be any bytes"


def test_depth_purge_and_delete_queue_return_the_number_of_messages(channel: Channel) -> None:
    """depth() returns how many ready messages and consumers a queue has. purge() removes the ready messages, and
    returns their number. delete_queue() deletes the queue, and returns the number of its messages.
    """
    fill(channel, 5)
    consumer = channel.connection.channel().consumer(Queue("q"), Receiving(2, acknowledge=False))
    assert consumer.arrives(30)
    assert administration.depth(channel, "q") == Depth(3, 1)
    assert administration.ready_after_deliveries(channel, "q") == 3
    assert administration.purge(channel, "q") == 3
    assert administration.depth(channel, "q") == Depth(0, 1)
    fill(channel, 1)
    assert administration.delete_queue(channel, "q") == 1
    assert not administration.queue_exists(channel, Queue("q"))


@pytest.mark.parametrize("ask", [administration.depth, administration.ready_after_deliveries, administration.purge])
def test_a_missing_queue_has_no_depth_and_cannot_be_purged(channel: Channel, ask: Any) -> None:
    """If a queue does not exist, depth(), ready_after_deliveries() and purge() raise NotFound, and do not create it."""
    for _ in range(2):
        with pytest.raises(NotFound, match="no queue 'q'"):
            ask(channel, "q")


@pytest.mark.parametrize("replies", [[0, 3], [0, 0], [2, 3]])
def test_a_queue_counts_as_empty_only_after_two_replies_of_0_ready_messages(replies: list[int]) -> None:
    """RabbitMQ may reply that a queue is empty before the last deliveries from the queue have reached the client. It
    sends these deliveries before its next reply. If the first reply is 0 ready messages, ready_after_deliveries()
    therefore asks the broker again, and returns the number in the second reply.
    """

    class OtherProtocol:
        """A channel of another protocol, which looks up queues in its own way."""

        def depth(self, queue: str, within: float | None = None) -> Depth:
            assert within is None
            return Depth(left.pop(0), len(queue))

        def exists(self, queue: Queue) -> bool:
            return queue.name == "q"

        def purge(self, queue: str) -> int:
            return len(queue)

    left = [*replies]
    channel = OtherProtocol()
    assert administration.ready_after_deliveries(channel, "q") == (replies[0] or replies[1])
    left = [7]
    assert administration.depth(channel, "q") == Depth(7, 1)
    assert administration.queue_exists(channel, Queue("q"))
    assert not administration.queue_exists(channel, Queue("other"))
    assert administration.purge(channel, "seven") == 5


@pytest.mark.parametrize("thing", [Queue("q"), Exchange("x")])
def test_exists_and_expect_check_whether_an_exchange_or_a_queue_exists(
    channel: Channel, thing: Exchange | Queue
) -> None:
    """exists() returns whether an exchange or a queue exists on the broker. If the exchange or queue does not exist,
    expect() raises NotFound.
    """
    for _ in range(2):
        assert not administration.exists(channel, thing)
        with pytest.raises(NotFound, match=thing.name):
            administration.expect(channel, thing)
    channel.declare(thing)
    assert administration.exists(channel, thing)
    administration.expect(channel, thing)
    if isinstance(thing, Queue):
        assert administration.queue_exists(channel, thing)


def test_delete_queue_deletes_any_queue_unless_if_unused_or_if_empty_forbids_it(channel: Channel) -> None:
    """By default, delete_queue() deletes a queue even if it has consumers or messages. With `if_unused`, it raises
    BadData if the queue has consumers, and with `if_empty`, if the queue has messages. Deleting a queue that does not
    exist is not an error.
    """
    fill(channel, 1)
    with pytest.raises(BadData, match="not empty"):
        administration.delete_queue(channel, "q", if_empty=True)
    assert administration.delete_queue(channel, "q", if_unused=True) == 1
    fill(channel, 0)
    channel.connection.channel().consumer(Queue("q"), Receiving())
    with pytest.raises(BadData, match="in use"):
        administration.delete_queue(channel, "q", if_unused=True)
    assert administration.delete_queue(channel, "q", if_empty=True) == 0
    assert administration.delete_queue(channel, "q") == 0


def test_delete_exchange_with_if_unused_keeps_an_exchange_with_bindings(channel: Channel) -> None:
    """By default, delete_exchange() deletes an exchange even if it has bindings. With `if_unused`, it raises BadData
    instead. For a predeclared exchange, it raises AccessRefused. Deleting an exchange that does not exist is not an
    error.
    """
    channel.declare(Exchange("x"))
    channel.declare(Queue("q"))
    administration.bind(channel, Binding("x", "q"))
    with pytest.raises(BadData, match="in use"):
        administration.delete_exchange(channel, "x", if_unused=True)
    for _ in range(2):
        administration.delete_exchange(channel, "x")
        assert not administration.exists(channel, Exchange("x"))
    with pytest.raises(AccessRefused):
        administration.delete_exchange(channel, "amq.topic")


@pytest.mark.parametrize("to_exchange", [True, False])
def test_a_binding_is_removed_by_its_key_and_arguments(
    channel: Channel, amqp_vhost: Vhost, api: Management, *, to_exchange: bool
) -> None:
    """bind() binds a queue or an exchange to an exchange, and unbind() removes only the binding with the same routing
    key and arguments. Both are safe to repeat.
    """
    channel.declare(Exchange("x", "headers"))
    channel.declare(Exchange("to") if to_exchange else Queue("to"))
    kept, removed, other = (
        Binding("x", "to", key, {"n": number}, to_exchange=to_exchange)
        for key, number in (("a", 1), ("a", 2), ("b", 2))
    )
    for binding in kept, removed, other, removed:
        administration.bind(channel, binding)
    for _ in range(2):
        administration.unbind(channel, removed)
    found = [
        (each["source"], each["destination"], each["destination_type"], each["routing_key"], each["arguments"])
        for each in management.bindings(api, amqp_vhost.name)
        if each["source"]
    ]
    kind = "exchange" if to_exchange else "queue"
    assert sorted(found) == [("x", "to", kind, "a", {"n": 1}), ("x", "to", kind, "b", {"n": 2})]
    with pytest.raises(NotFound, match="missing"):
        administration.bind(channel, Binding("missing", "to", to_exchange=to_exchange))


def test_a_message_from_basic_get_has_its_properties_and_its_origin(channel: Channel, amqp_vhost: Vhost) -> None:
    """A message that is received with basic.get has its body, properties, exchange, routing key and queue. It is marked
    as redelivered if it had been delivered before, and it can be acknowledged.
    """
    channel.declare(Queue("q"))
    channel.declare(Exchange("x"))
    administration.bind(channel, Binding("x", "q", "key"))
    properties = {"type": "t", "headers": {"n": 1}}
    list(channel.publish(Message(body, "key", "x", properties, "m-1") for body in (b"first", b"second")))
    other = channel.connection.channel()
    other.get("q")
    other.close()
    for number, body in enumerate((b"first", b"second"), 1):
        found = channel.get("q")
        assert found is not None
        assert (found.body, found.exchange, found.routing_key, found.queue) == (body, "x", "key", "q")
        assert (found.redelivered, found.delivery_tag) == (number == 1, number)
        assert (found.properties["type"], found.headers, found.message_id) == ("t", {"n": 1}, "m-1")
        if number == 2:
            channel.acknowledge(found)
    channel.closing()
    amqp_vhost.wait_for(lambda: amqp_vhost.queue("q").acked.bodies == [b"second"])


@pytest.mark.parametrize("is_same", [True, False])
def test_two_channels_have_the_same_queues_if_they_are_on_the_same_virtual_host(
    channel: Channel, amqp_broker: EmbeddedBroker, amqp_vhost: Vhost, api: Management, *, is_same: bool
) -> None:
    """mqtool can find out whether two channels use the same virtual host. To do so, it declares a queue on one channel,
    looks for it on the other, and then deletes it.
    """
    with amqp_broker.fresh_vhost() as elsewhere:
        url = (amqp_vhost if is_same else elsewhere).url
        with Connection(parse_addresses(url)) as connection:
            other = connection.channel()
            assert administration.have_same_queues(channel, other) is is_same
            assert administration.have_same_queues(other, channel) is is_same
        assert [*management.queues(api, amqp_vhost.name)] == [*management.queues(api, elsewhere.name)] == []


def test_the_queue_that_is_declared_to_compare_two_channels_is_exclusive_and_server_named(
    channel: Channel, amqp_vhost: Vhost, api: Management
) -> None:
    """To find out whether two connections use the same virtual host, mqtool declares a queue. The broker chooses the
    queue's name, so it cannot be the name of one of the user's queues. The queue is exclusive, so that no other
    connection can use it, and the broker deletes it if mqtool is killed.
    """
    seen: list[Any] = []
    other = channel.connection.channel()

    class Observed:
        """A channel that looks at the queues before each request."""

        def ask(self, *given: Any) -> Any:
            seen.extend(management.queues(api, amqp_vhost.name))
            return other.ask(*given)

    administration.have_same_queues(channel, cast(Channel, Observed()))
    [queue] = seen
    assert queue["name"].startswith("amq.gen-")
    assert queue["exclusive"]


ARGUMENTS = {"x-expires": 3_600_000, "x-message-ttl": 60_000, "x-dead-letter-exchange": "x"}


@pytest.mark.parametrize(
    ("arguments", "has_them"),
    [
        (ARGUMENTS, True),
        (ARGUMENTS | {"x-dead-letter-exchange": "y"}, False),
        (ARGUMENTS | {"x-expires": 5}, False),
        ({"x-expires": 3_600_000}, False),
    ],
    ids=["same", "another exchange", "another expiry", "no exchange"],
)
def test_has_arguments_is_true_only_if_the_broker_uses_these_arguments_of_a_queue(
    channel: Channel, amqp_vhost: Vhost, api: Management, arguments: dict[str, Any], *, has_them: bool
) -> None:
    """has_arguments() returns True only if the broker itself uses the given arguments, such as the dead-letter
    exchange, for an existing queue. It does not rely on the management API, which may show other arguments. The queue
    is not changed.
    """
    channel.declare(Queue("q", durable=True, arguments=ARGUMENTS))
    asking = channel.connection.channel()
    assert administration.has_arguments(asking, Queue("q", durable=True, arguments=arguments)) is has_them
    assert ARGUMENTS.items() <= api.get(path("queues", amqp_vhost.name, "q"))["arguments"].items()


def test_has_arguments_is_false_for_a_queue_that_has_just_been_deleted(channel: Channel) -> None:
    """If the queue has been deleted, has_arguments() returns False, and does not declare the queue again."""
    asking = channel.connection.channel()
    assert not administration.has_arguments(asking, Queue("q", durable=True, arguments=ARGUMENTS))
    assert not administration.exists(channel, Queue("q"))
