"""Peeking on an embedded broker in this process: what is shown, how the queue is left, and what it would drop."""

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from mqtool import management
from mqtool.amqp import Channel, Connection, Receiving, administration, parse_addresses
from mqtool.codecs.field_tables import largest_payload
from mqtool.errors import MqtoolError, NotFound, StoppedWaiting, Unavailable
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST, Offset, Start
from mqtool.testing import EmbeddedBroker, Recorded, Vhost
from mqtool.topology import Exchange, Queue
from mqtool.work import peeking
from mqtool.work.peeking import How, Look, PeekKind, kind_of, looking, peek, times_requeued
from mqtool.work.transfer import size_of_headers

NUMBERS = [str(number) for number in range(250)]
QUORUM = {"x-queue-type": "quorum"}
HINT = "receive the messages, or move them: mqtool move --to QUEUE jobs"


class Place:
    """A virtual host with the queue `jobs`."""

    def __init__(self, broker: EmbeddedBroker, vhost: Vhost, connection: Connection) -> None:
        self.api = Management(str(broker.management_url), "guest", "guest")
        self.vhost = vhost
        self.connection = connection
        self.channel = connection.channel()

    def fill(self, *bodies: object, **settings: Any) -> None:
        """Declare `jobs`, and publish messages with these bodies to it."""
        self.channel.declare(Queue("jobs", **{"durable": True, **settings}))
        self.publish(*bodies)

    def publish(self, *bodies: object, exchange: str = "", key: str = "jobs", **properties: Any) -> None:
        list(self.channel.publish(Message(str(body).encode(), key, exchange, properties) for body in bodies))

    def kind(self, api: Any = None) -> PeekKind:
        """How to read `jobs`, according to the management API."""
        return kind_of(self.channel, "jobs", api or self.api, self.vhost.name)

    def peeked(self, most: int | None = None, kind: PeekKind | None = None, offset: Offset = FIRST) -> list[str]:
        """The bodies of the messages that are shown. They are in the queue again afterwards."""
        ready, channel = self.channel.depth_of("jobs"), self.connection.channel()
        try:
            with closing(peek(channel, "jobs", kind or self.kind(), most, offset)) as deliveries:
                return [delivery.text for delivery in deliveries]
        finally:
            channel.close()
            self.wait_for(ready)

    def wait_for(self, ready: int) -> None:
        self.vhost.wait_for(lambda: self.channel.depth_of("jobs") == ready, timeout=30)

    def delivered(self) -> list[str]:
        """Receive the messages in `jobs`, and return their bodies."""
        return [delivery.text for delivery in iter(lambda: self.channel.get("jobs"), None)]

    def prefetches(self) -> list[int]:
        """The prefetch of each consumer, oldest first."""
        found = management.consumers(self.api, self.vhost.name)
        return [each["prefetch_count"] for each in sorted(found, key=lambda each: each["channel_details"]["number"])]

    def requeue(self, *times: int) -> None:
        """Requeue the first message as often as the first number says, and so on. The numbers never decrease."""
        ready = self.channel.depth_of("jobs")
        with pika.BlockingConnection(pika.URLParameters(self.vhost.url)) as client:
            channel, held = client.channel(), dict[str, int]()
            for number in range(max(times)):
                for count in times:
                    if count > number:
                        got: Any = channel.basic_get("jobs")
                        held[got[2].decode()] = got[0].delivery_tag
                for at, count in enumerate(times):
                    if number + 1 < count:
                        channel.basic_reject(held[str(at)])
        self.wait_for(ready)


@pytest.fixture
def place(amqp_broker: EmbeddedBroker, amqp_vhost: Vhost) -> Iterator[Place]:
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        yield Place(amqp_broker, amqp_vhost, connection)


# How to read a queue


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        ({"type": "stream"}, PeekKind(How.STREAM)),
        ({"type": "classic"}, PeekKind(How.CONSUME)),
        ({"type": "classic", "arguments": {"x-delivery-limit": 5}}, PeekKind(How.CONSUME)),
        ({"type": "classic", "auto_delete": True}, PeekKind(How.GET)),
        ({"type": "classic", "arguments": {"x-single-active-consumer": True}}, PeekKind(How.GET)),
        ({"type": "quorum"}, PeekKind(How.IN_TURN, 20)),
        (
            {"type": "quorum", "arguments": {"x-single-active-consumer": True}},
            PeekKind(How.IN_TURN, 20, is_single=True),
        ),
        ({"type": "quorum", "arguments": {"x-delivery-limit": 5}}, PeekKind(How.IN_TURN, 5)),
        ({"type": "quorum", "arguments": {"x-delivery-limit": "5"}}, PeekKind(How.IN_TURN, 20)),
        ({"type": "quorum", "arguments": {"x-delivery-limit": 0}}, PeekKind(How.IN_TURN, 0)),
        ({"type": "quorum", "arguments": {"x-delivery-limit": -1}}, PeekKind(How.IN_TURN)),
        ({"type": "quorum", "effective_policy_definition": {"delivery-limit": 30}}, PeekKind(How.IN_TURN, 30)),
        (
            {
                "type": "quorum",
                "arguments": {"x-delivery-limit": -1},
                "effective_policy_definition": {"delivery-limit": 5},
            },
            PeekKind(How.IN_TURN, 5),
        ),
        (
            {
                "type": "quorum",
                "arguments": {"x-delivery-limit": 5},
                "effective_policy_definition": {"delivery-limit": 4},
            },
            PeekKind(How.IN_TURN, 4),
        ),
    ],
)
def test_peek_chooses_how_to_read_a_queue_by_its_type_arguments_and_policy(
    place: Place, view: dict[str, Any], kind: PeekKind
) -> None:
    """`peek` reads a classic queue with basic.get instead of a consumer if the management API reports that the queue is
    auto-delete or has a single active consumer. For a quorum queue, it assumes the lower of the delivery limits that
    the queue's arguments and its policy set, where a negative number means no limit. If neither sets one, and the
    broker behaves like RabbitMQ 4.0 or later, as here, `peek` assumes the default limit of 20.
    """
    place.fill()
    api = SimpleNamespace(get={f"queues/{place.vhost.name}/jobs": view}.get, items=lambda _: [])
    assert place.kind(api) == kind


def test_peek_keeps_to_a_policys_delivery_limit_that_the_api_does_not_yet_show_for_the_queue(place: Place) -> None:
    """RabbitMQ's management API lists a new policy some time before it shows to which queues the policy applies.
    `peek` already keeps to the delivery limit of such a policy if the policy matches the queue's name and type.
    """
    place.fill()
    policy = {"name": "p", "pattern": "^jobs$", "apply-to": "quorum_queues", "priority": 0}
    others = [
        {**policy, "name": "q", "pattern": "^other$", "priority": 9, "definition": {"delivery-limit": 1}},
        {**policy, "name": "c", "apply-to": "classic_queues", "priority": 9, "definition": {"delivery-limit": 2}},
    ]
    policies = [*others, {**policy, "definition": {"delivery-limit": 3}}]
    api = SimpleNamespace(get=lambda _: {"type": "quorum"}, items=lambda at: policies if "operator" not in at else [])
    assert place.kind(api) == PeekKind(How.IN_TURN, 3)


@pytest.mark.parametrize(("broker", "limit"), [("RabbitMQ 3.13.7", None), ("RabbitMQ 4.0.1", 20), ("LavinMQ 2", None)])
@pytest.mark.parametrize("has_api", [True, False])
def test_a_quorum_queue_has_a_delivery_limit_by_default_from_rabbitmq_4_on(
    monkeypatch: pytest.MonkeyPatch, place: Place, *, broker: str, limit: int | None, has_api: bool
) -> None:
    """If a quorum queue's arguments and policy set no delivery limit, `peek` assumes a limit of 20 if the broker is
    RabbitMQ 4.0 or later, and otherwise no limit. Without the management API, `peek` treats the limit as uncertain,
    because a policy that it cannot see may set another one.
    """
    place.fill(arguments=QUORUM)
    monkeypatch.setattr(Connection, "broker", broker)
    kind = kind_of(place.channel, "jobs", place.api if has_api else None, place.vhost.name)
    assert kind == PeekKind(How.IN_TURN, limit, is_certain=has_api)


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, How.CONSUME),
        ({"arguments": {"x-queue-type": "classic"}}, How.CONSUME),
        ({"arguments": {"x-max-length": 5, "x-dead-letter-exchange": "17"}}, How.CONSUME),
        ({"arguments": QUORUM}, How.IN_TURN),
        ({"arguments": {**QUORUM, "x-max-length": 5, "x-dead-letter-exchange": "17"}}, How.IN_TURN),
        ({"arguments": {"x-single-active-consumer": True}}, How.GET),
        ({"arguments": {**QUORUM, "x-single-active-consumer": True}}, How.IN_TURN),
        ({"arguments": {"x-queue-type": "stream"}}, How.STREAM),
        ({"arguments": {"x-queue-type": "stream", "x-max-age": "1D"}}, How.STREAM),
        ({"durable": False}, How.CONSUME),
        ({"auto_delete": True}, How.GET),
        ({"durable": False, "auto_delete": True, "arguments": {"x-max-length": 5}}, How.GET),
    ],
)
def test_peek_finds_out_over_amqp_whether_to_use_basic_get_or_a_consumer(
    place: Place, settings: dict[str, Any], how: How
) -> None:
    """Without the management API, `peek` finds out over AMQP whether to read a queue with basic.get, with a consumer,
    or as a stream. It uses basic.get for an auto-delete queue, and for a classic queue with a single active consumer.
    For a quorum queue that was declared without a delivery limit, it assumes a limit of 20, the default of RabbitMQ 4.
    """
    place.fill(**settings)
    kind = kind_of(place.channel, "jobs", None, "")
    is_single = "x-single-active-consumer" in settings.get("arguments", {})
    assert kind == (PeekKind(how, 20, is_single, is_certain=False) if how is How.IN_TURN else PeekKind(how))
    assert place.channel.is_open


@pytest.mark.parametrize("more", [{}, {"x-max-length": 5, "x-dead-letter-exchange": "17"}])
def test_peek_finds_out_over_amqp_which_delivery_limit_a_queue_was_declared_with(
    place: Place, more: dict[str, Any]
) -> None:
    """Without the management API, `peek` finds out over AMQP with which delivery limit a quorum queue was declared."""
    place.fill(arguments={**QUORUM, **more, "x-delivery-limit": 3})
    assert kind_of(place.channel, "jobs", None, "") == PeekKind(How.IN_TURN, 3, is_certain=False)


def test_peek_assumes_a_quorum_queue_if_the_brokers_error_text_is_cut(place: Place) -> None:
    """Without the management API, `peek` declares an existing queue again, and learns the queue's arguments from the
    broker's error. The broker cuts the text of this error after 255 bytes. If a long queue name leaves no room for
    the value of an argument, `peek` assumes a quorum queue with the default delivery limit and a single active
    consumer.
    """
    place.channel.declare(Queue("x" * 240, durable=True, arguments=QUORUM))
    assert kind_of(place.channel, "x" * 240, None, "") == PeekKind(How.IN_TURN, 20, is_single=True, is_certain=False)


@pytest.mark.parametrize("arguments", [{}, {"x-max-length": 5}, {"x-queue-type": "quorum"}])
def test_peek_finds_out_over_amqp_that_quorum_is_the_default_type(place: Place, arguments: dict[str, Any]) -> None:
    """In a virtual host whose default queue type is quorum, `peek` finds out over AMQP that a queue is a quorum queue
    although it was declared without a type.
    """
    place.api.put(management.path("vhosts", place.vhost.name), {"default_queue_type": "quorum"})
    place.fill(arguments=arguments)
    assert kind_of(place.channel, "jobs", None, "") == PeekKind(How.IN_TURN, 20, is_certain=False)


@pytest.mark.parametrize("api", ["no answer", "refused", "without types"])
def test_peek_uses_amqp_if_the_management_api_does_not_report_the_type_of_a_queue(place: Place, api: str) -> None:
    """If the management API does not answer, refuses the user or does not report the type of a queue, `peek` finds out
    over AMQP how to read the queue.
    """
    place.fill(auto_delete=True)
    apis: dict[str, Any] = {
        "no answer": Management("http://localhost:1", "guest", "guest"),
        "refused": Management(place.api.url, "guest", "wrong"),
        "without types": SimpleNamespace(get=lambda _: {"auto_delete": False}),
    }
    assert place.kind(apis[api]) == PeekKind(How.GET)


def test_peek_uses_basic_get_if_the_user_lacks_the_configure_permission_for_the_queue(
    amqp_broker: EmbeddedBroker, place: Place
) -> None:
    """If the user lacks the configure permission for a queue, `peek` cannot find out the queue's type over AMQP, and
    reads the queue with basic.get.
    """
    place.fill(1, 2, arguments=QUORUM)
    place.api.put("users/reader", {"password": "secret", "tags": ""})
    rights = {"configure": "", "write": "", "read": ".*"}
    place.api.put(management.path("permissions", place.vhost.name, "reader"), rights)
    with Connection(parse_addresses(place.vhost.url.replace("guest:guest", "reader:secret"))) as connection:
        assert kind_of(connection.channel(), "jobs", None, "") == PeekKind(How.GET, is_certain=False)


def test_finding_out_over_amqp_how_to_read_a_queue_leaves_no_channel_open(place: Place) -> None:
    """To find out over AMQP how to read a queue, `peek` uses a separate channel, and closes it afterwards."""
    place.fill(arguments=QUORUM)
    before = place.channel.connection.channel()
    before.depth_of("jobs")
    kind_of(place.channel, "jobs", None, "")
    place.vhost.wait_for(lambda: len(list(management.channels(place.api, place.vhost.name))) == 2)


def test_peek_says_that_a_queue_does_not_exist(place: Place) -> None:
    """If the queue does not exist, `peek` fails with NotFound, and the error names the queue."""
    with pytest.raises(NotFound, match="no queue 'jobs'"):
        place.kind()


@pytest.mark.parametrize(
    ("broker", "count", "acquired", "requeued"),
    [
        ("RabbitMQ 4.3", 1000, 3, 3),
        ("RabbitMQ 4.3.1", 2, 3, 2),
        ("RabbitMQ 4.10.0", 1000, 3, 3),
        ("RabbitMQ 5.0.0", 1000, 3, 3),
        ("RabbitMQ 4.3.0", 1000, None, 1000),
        ("RabbitMQ 4.3.0", 1000, "3", 1000),
        ("RabbitMQ 4.2.9", 1000, 3, 1000),
        ("RabbitMQ 3.13.7", 1000, 3, 1000),
        ("the broker", 1000, 3, 1000),
    ],
)
def test_peek_with_rabbitmq_4_3_or_later_is_not_misled_by_a_forged_delivery_count(
    broker: str, count: int, acquired: object, requeued: int
) -> None:
    """`peek` reads from the header x-delivery-count how often a quorum queue has requeued a message, but a publisher
    can forge this header. From RabbitMQ 4.3 on, `peek` therefore uses the header x-acquired-count instead if it is
    lower.
    """
    headers = {"x-delivery-count": count, "x-acquired-count": acquired}
    delivery = Delivery(b"", "", "jobs", "jobs", redelivered=True, properties={"headers": headers}, delivery_tag=1)
    assert times_requeued(delivery, broker) == requeued


# What is shown


@pytest.mark.parametrize(
    "settings",
    [{}, {"auto_delete": True}, {"arguments": QUORUM}, {"arguments": {**QUORUM, "x-delivery-limit": 50}}],
    ids=["classic", "auto-delete", "quorum", "quorum with a limit"],
)
def test_messages_stay_in_order_however_many_are_shown(place: Place, settings: dict[str, Any]) -> None:
    """However often `peek` shows a queue, and whether it shows all messages or only the first ones, the messages stay
    in order.
    """
    place.fill(*NUMBERS, **settings)
    for count in 3, None, 2, 150, 300, 1:
        assert place.peeked(count) == NUMBERS[:count]
    assert place.delivered() == NUMBERS


UNKNOWN = PeekKind(How.IN_TURN, is_certain=False)


HINT_IF_UNKNOWN = "only the management API tells the limit, to a user with the 'management' tag"


def hidden_limit(place: Place, limit: int) -> None:
    """Set a delivery limit by a policy, and dead-letter what the queue drops to `dead`."""
    definition = {"delivery-limit": limit, "dead-letter-exchange": "", "dead-letter-routing-key": "dead"}
    place.api.put(f"policies/{place.vhost.name}/few", {"pattern": "^jobs$", "definition": definition})
    place.channel.declare(Queue("dead", durable=True))


@pytest.mark.parametrize("count", [None, 3])
def test_messages_that_were_already_requeued_are_published_again_if_the_delivery_limit_is_unknown(
    place: Place, count: int | None
) -> None:
    """If a policy that the user cannot see sets a delivery limit of 1, `peek` requeues only messages that had not
    been requeued before. It republishes the others at the end of the queue, in order, and fails with an error that
    reports this. However often `peek` is repeated, even while messages arrive, no message is lost, duplicated or
    dead-lettered.
    """
    hidden_limit(place, 1)
    place.fill(*NUMBERS, arguments=QUORUM)
    assert place.peeked(kind=UNKNOWN) == NUMBERS
    shown: list[str] = []

    def look_while_a_message_arrives() -> None:
        for delivery in peek(place.connection.channel(), "jobs", UNKNOWN, count):
            shown.append(delivery.text)
            if len(shown) == 1:
                place.publish("late")

    with pytest.raises(MqtoolError) as reached:
        look_while_a_message_arrives()
    assert shown == NUMBERS[:count]
    assert str(reached.value) == (
        "a message without id ('0') has been requeued 1 time, possibly the limit of 'jobs', which could have dropped "
        "it: it is now at the end of the queue, and its TTL, if any, starts again "
        "(249 more messages at this limit or near it)"
    )
    assert reached.value.hint == HINT_IF_UNKNOWN
    place.wait_for(251)
    assert place.peeked(kind=UNKNOWN) == ["late", *NUMBERS]
    assert (place.delivered(), place.channel.depth_of("dead")) == (["late", *NUMBERS], 0)


def test_messages_are_published_again_in_the_order_of_the_queue(place: Place) -> None:
    """If `peek` does not know the delivery limit of a queue, it republishes messages that were already requeued,
    because another requeue might exceed the limit. These messages keep their order, even if some were requeued more
    often than others. `peek` then fails with an error that says that the messages are now at the end of the queue,
    and names the message that was requeued most often.
    """
    place.fill(*range(4), arguments=QUORUM)
    place.requeue(1, 2, 2)
    with pytest.raises(MqtoolError, match=r"\('1'\) has been requeued 2 times, .*2 more messages"):
        place.peeked(kind=UNKNOWN)
    assert place.delivered() == ["3", "0", "1", "2"]


def test_messages_are_published_again_instead_of_requeued_if_the_delivery_limit_is_0(place: Place) -> None:
    """A quorum queue with a delivery limit of 0 drops a message the first time it is requeued. `peek` therefore
    publishes the messages to the end of such a queue again, in order, and reports an error. No message is lost.
    """
    place.fill(*range(3), arguments=limited(0))
    with pytest.raises(MqtoolError, match="has been requeued 0 times, possibly the limit of 'jobs'"):
        place.peeked(kind=PeekKind(How.IN_TURN, 0, is_certain=False))
    assert place.delivered() == ["0", "1", "2"]


def test_looking_does_not_publish_the_first_message_again_if_it_is_to_be_removed(place: Place) -> None:
    """looking(), with which `delayed now` and `delayed cancel` read a wait queue, receives the first message before
    any others. If the delivery limit is unknown, it republishes a message that was already requeued, because another
    requeue might exceed the limit. If the caller wants the first message removed, looking() only deletes it, and
    raises no error.
    """
    place.fill(*range(3), arguments=QUORUM)
    place.requeue(1)
    with looking(place.channel, "jobs", UNKNOWN) as look:
        for delivery in look.messages():
            if delivery.text == "0":
                look.remove(delivery)
    place.wait_for(2)
    assert place.delivered() == ["1", "2"]


@pytest.mark.parametrize("how", [How.IN_TURN, How.GET])
@pytest.mark.parametrize("checks", [False, True])
def test_only_the_first_message_is_at_risk_if_the_user_has_no_permission_to_publish(
    place: Place, how: How, *, checks: bool
) -> None:
    """If the user can neither publish nor see the delivery limit, and the first message was already requeued, `peek`
    cannot republish this message, and fails. The message is requeued once more. If the limit is 1, as here, the queue
    therefore drops or dead-letters it, but keeps all other messages. check_limit(), which other commands call before
    they consume, fails in the same way.
    """
    hidden_limit(place, 1)
    place.fill(*range(3), arguments=QUORUM)
    place.requeue(1, 1, 1)
    place.api.put("users/reader", {"password": "secret", "tags": ""})
    rights = {"configure": "", "write": "", "read": ".*"}
    place.api.put(management.path("permissions", place.vhost.name, "reader"), rights)
    kind = PeekKind(how, is_certain=False)
    with Connection(parse_addresses(place.vhost.url.replace("guest:guest", "reader:secret"))) as connection:
        channel = connection.channel()
        with pytest.raises(MqtoolError, match="may drop or dead-letter it now, because it could not be pub") as risk:
            next(peek(channel, "jobs", kind)) if not checks else peeking.check_limit(channel, "jobs", kind)
    assert risk.value.hint == HINT_IF_UNKNOWN
    place.wait_for(2)
    assert place.delivered() == ["1", "2"]


def test_a_user_who_cannot_see_the_delivery_limit_is_shown_only_messages_that_were_never_requeued(place: Place) -> None:
    """If a user can neither see the policies of a quorum queue nor declare the queue, `peek` cannot find out the
    delivery limit, and shows only messages that were never requeued. If the first message was already requeued,
    `peek` publishes it to the end of the queue, because another requeue might exceed the limit, and fails.
    check_limit(), which other commands call before they consume, does the same. No message is lost, even if the limit
    is 1.
    """
    hidden_limit(place, 1)
    place.fill(1, 2, 3, arguments=QUORUM)
    kind = PeekKind(How.GET, is_certain=False)
    assert place.peeked(kind=kind) == ["1", "2", "3"]
    with pytest.raises(MqtoolError) as refused:
        place.peeked(kind=kind)
    assert "('1') has been requeued 1 time, possibly the limit of 'jobs'" in str(refused.value)
    assert refused.value.hint == HINT_IF_UNKNOWN
    with pytest.raises(MqtoolError, match=r"\('2'\) has been requeued 1 time.* now at the end of the queue"):
        peeking.check_limit(place.channel, "jobs", kind)
    place.wait_for(3)
    assert (place.delivered(), place.channel.depth_of("dead")) == (["3", "1", "2"], 0)


def test_check_limit_publishes_requeued_messages_again_if_the_delivery_limit_is_unknown(place: Place) -> None:
    """Before a command consumes, it calls check_limit(), which receives messages and requeues them as a test. If the
    delivery limit is unknown, another requeue might drop messages that were already requeued. check_limit() therefore
    publishes these messages to the queue again, in order, and raises an error that reports this. Even if the limit is
    1, no message is dropped.
    """
    hidden_limit(place, 1)
    place.fill(*range(3), arguments=QUORUM)
    place.requeue(1, 1, 1)
    with pytest.raises(MqtoolError, match="now at the end of the queue"):
        peeking.check_limit(place.connection.channel(), "jobs", UNKNOWN)
    place.wait_for(3)
    assert (place.delivered(), place.channel.depth_of("dead")) == (["0", "1", "2"], 0)


def test_the_function_peek_finds_out_how_to_read_a_queue_unless_the_caller_passes_kind(place: Place) -> None:
    """The Python function peek() reads a queue with basic.get, with a consumer, or as a stream. If the caller does
    not pass the argument `kind`, peek() finds out over AMQP which of them to use. It reads an auto-delete queue with
    basic.get, because the queue would be deleted with its last consumer.
    """
    place.fill(*NUMBERS[:3], auto_delete=True)
    with closing(peek(place.channel, "jobs")) as deliveries:
        assert [delivery.text for delivery in deliveries] == NUMBERS[:3]
    place.channel.close()
    place.channel = place.connection.channel()
    place.wait_for(3)


@pytest.mark.parametrize("settings", [{"auto_delete": True}, {}, {"arguments": QUORUM}])
def test_messages_that_arrive_later_are_not_shown(place: Place, settings: dict[str, Any]) -> None:
    """`peek` shows the messages that were in the queue when it began, not those that arrive later."""
    place.fill(*NUMBERS[:120], **settings)
    with closing(peek(place.connection.channel(), "jobs", place.kind())) as deliveries:
        shown = [next(deliveries).text]
        place.publish("later")
        shown += [delivery.text for delivery in deliveries]
    assert shown == NUMBERS[:120]


def test_peek_does_not_wait_for_messages_in_an_empty_queue(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """If a queue is empty, `peek` shows no messages, and ends without waiting for any."""
    monkeypatch.setattr(peeking, "_PATIENCE", 1000)
    for limit in None, 5:
        place.fill(arguments=QUORUM)
        assert place.peeked(kind=PeekKind(How.IN_TURN, limit)) == []


def test_a_message_that_arrives_while_peek_looks_at_an_empty_queue_causes_no_error(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    """If a message arrives just after `peek` has found a queue to be empty, `peek` shows nothing and succeeds."""
    place.fill(arguments=QUORUM)
    kind, depth_of = place.kind(), Channel.depth_of

    def then_filled(channel: Channel, queue: str) -> int:
        depth = depth_of(channel, queue)
        if not depth:
            place.publish("late")
        return depth

    monkeypatch.setattr(Channel, "depth_of", then_filled)
    assert list(peek(place.connection.channel(), "jobs", kind)) == []


def test_peek_says_that_the_broker_delivers_no_message(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """If a queue has messages, but the broker delivers none, for example because another consumer is the single
    active one, `peek` fails with an error that says that the broker delivers no message.
    """
    monkeypatch.setattr(peeking, "_PATIENCE", 0.05)
    place.fill(*range(1001), arguments={"x-single-active-consumer": True})
    active = place.connection.channel().consume(Queue("jobs"), Receiving(prefetch=1, acknowledge=False))
    next(active)
    with pytest.raises(Unavailable) as refused:
        place.peeked(kind=PeekKind(How.IN_TURN))
    assert str(refused.value) == "'jobs' has 1,000 ready messages, but the broker delivers none of them"
    assert refused.value.hint == "its single active consumer gets them, or one with a higher priority"


@pytest.mark.parametrize(
    ("limit", "largest", "prefetches"),
    [(None, 65535, [100, 1000, 150]), (40, 65535, [1, 100, 1010, 139]), (None, 575, [100, 575, 575])],
    ids=["no limit", "limit", "largest prefetch"],
)
def test_peek_does_not_receive_all_messages_of_a_long_queue_at_once(
    monkeypatch: pytest.MonkeyPatch, place: Place, limit: int | None, largest: int, prefetches: list[int]
) -> None:
    """`peek` receives the messages of a long queue in batches, so that it need not requeue thousands of messages if
    it stops early. The first batch has up to 100 messages. Each later one has up to ten times as many as all earlier
    ones together, but at most 65,535. If the queue has a delivery limit, `peek` first receives a batch of only one
    message.
    """
    monkeypatch.setattr(peeking, "AT_ONCE", largest)
    place.fill(*range(1250), arguments=QUORUM)
    with looking(place.channel, "jobs", PeekKind(How.IN_TURN, limit)) as look:
        for count, _ in enumerate(look.messages(), 1):
            assert look.count == count
        assert place.prefetches() == prefetches


@pytest.mark.parametrize("limit", [None, 50])
def test_messages_stay_in_order_if_peek_is_stopped_while_a_batch_arrives(place: Place, limit: int | None) -> None:
    """If `peek` is stopped early in a batch, while the broker is still sending the rest of it, the messages of a quorum
    queue stay in order: `peek` receives the whole batch before it requeues any messages.
    """
    place.fill(*(number.ljust(30_000) for number in NUMBERS), arguments=QUORUM if limit is None else limited(limit))
    with looking(place.channel, "jobs", PeekKind(How.IN_TURN, limit)) as look:
        place.publish("later")
        assert len([*islice(look.messages(), 102)]) == 102
    assert look.count == len(NUMBERS)
    place.wait_for(len(NUMBERS) + 1)
    assert [body.strip() for body in place.delivered()] == [*NUMBERS, "later"]


@pytest.mark.parametrize("count", [1, 3])
def test_messages_stay_in_order_if_one_has_expired(monkeypatch: pytest.MonkeyPatch, place: Place, count: int) -> None:
    """If a quorum queue still counts an expired message, `peek` receives fewer messages than the queue reports. The
    other messages stay in order, even if an earlier `peek` has requeued some.
    """
    monkeypatch.setattr(peeking, "_PATIENCE", 0.3)
    place.fill("0", arguments=limited(50))
    place.peeked()
    place.publish("expired", expiration="0")
    place.publish("1", "2")
    channel = place.connection.channel()
    with closing(peek(channel, "jobs", place.kind(), count)) as deliveries:
        assert [delivery.text for delivery in deliveries] == ["0", "1", "2"][:count]
    place.wait_for(3)
    assert place.delivered() == ["0", "1", "2"]


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
def test_peek_ends_if_the_connection_is_lost(place: Place, arguments: dict[str, Any]) -> None:
    """If the connection is lost while `peek` shows messages, `peek` raises Unavailable instead of showing the next
    message. The broker requeues the messages that `peek` has received.
    """
    place.fill(*NUMBERS, arguments=arguments)
    place.peeked()
    with closing(peek(place.channel, "jobs", place.kind())) as deliveries:
        assert next(deliveries).text == "0"
        place.connection.close()
        with pytest.raises(Unavailable, match=r"^the connection is closed$"):
            list(deliveries)
    place.vhost.wait_for(lambda: len(place.vhost.queue("jobs").messages()) == len(NUMBERS))


def test_peek_receives_large_messages_in_small_batches(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """If messages are large, `peek` reads a long queue in batches of about 16 MiB. From the average size of earlier
    messages, it computes how many of the next ones fit into a batch.
    """
    monkeypatch.setattr(peeking, "_BATCH", 60_000)
    place.fill(*["x" * 1000] * 150)
    with looking(place.channel, "jobs", PeekKind(How.CONSUME)) as look:
        assert len([*look.messages()]) == 150
        assert place.prefetches() == [100, 30, 20]


@pytest.mark.parametrize(
    ("most", "offset", "shown"),
    [(None, FIRST, NUMBERS), (3, FIRST, NUMBERS[:3]), (2, Offset(Start.OFFSET, 240), NUMBERS[240:242])],
)
def test_peek_reads_a_stream_from_an_offset(
    monkeypatch: pytest.MonkeyPatch, place: Place, most: int | None, offset: Offset, shown: list[str]
) -> None:
    """`peek` shows the messages of a stream from an offset, by default from the first one, until no more arrive."""
    monkeypatch.setattr(peeking, "_STREAM_PATIENCE", 0.3)
    place.fill(*NUMBERS, arguments={"x-queue-type": "stream"})
    assert place.peeked(most, offset=offset) == shown


# Messages near the delivery limit


def limited(limit: int, **arguments: Any) -> dict[str, Any]:
    """The arguments of a quorum queue with a delivery limit."""
    return {**QUORUM, "x-delivery-limit": limit, **arguments}


def test_peek_does_not_show_a_message_that_it_could_requeue_only_once_more(place: Place) -> None:
    """`peek` requeues the messages that it shows. If a quorum queue has a delivery limit of 3, `peek` shows a message
    the first two times. The third time, it requeues the message for the last time that the limit allows, and fails
    without showing it.
    """
    place.fill("0", arguments=limited(3))
    assert [place.peeked() for _ in range(2)] == [["0"], ["0"]]
    with pytest.raises(MqtoolError, match="has been requeued 3 times"):
        place.peeked()


def test_peek_shows_no_message_if_the_first_one_can_be_requeued_only_once_more_or_not_at_all(place: Place) -> None:
    """A quorum queue drops a message that is requeued more often than its delivery limit. If the limit allows only
    one more requeue of the first message, `peek` shows no message, leaves all messages in the queue, and fails. If
    the limit allows no further requeue of the first message, `peek` publishes this message to the end of the queue
    again, so that it is not dropped, and fails.
    """
    place.fill(*range(3), arguments=limited(3))
    place.requeue(2)
    with pytest.raises(MqtoolError) as stopped:
        place.peeked()
    assert str(stopped.value) == (
        "a message without id ('0') has been requeued 3 times: 'jobs' drops it if it is requeued once more"
    )
    assert stopped.value.hint == HINT
    with pytest.raises(MqtoolError) as stopped:
        place.peeked()
    assert str(stopped.value) == (
        "a message without id ('0') has been requeued 3 times, the limit of 'jobs', which would have dropped it: "
        "it is now at the end of the queue, and its TTL, if any, starts again"
    )
    assert stopped.value.hint == HINT
    assert [each.redelivered for each in place.vhost.queue("jobs").messages()] == [False] * 3
    assert place.delivered() == ["1", "2", "0"]


def test_peek_reports_that_a_message_other_than_the_first_has_reached_the_delivery_limit(place: Place) -> None:
    """If a message that is not the first one of its queue reaches the delivery limit because `peek` requeues it, `peek`
    shows the message and leaves it in its place. After it has shown all messages, `peek` fails, with an error that says
    that the queue drops the message if it is requeued once more.
    """
    place.fill(*range(4), arguments=limited(6))
    place.requeue(1, 4, 5)
    shown: list[str] = []
    with pytest.raises(MqtoolError) as stopped, closing(peek(place.channel, "jobs", place.kind())) as deliveries:
        shown.extend(delivery.text for delivery in deliveries)
    assert shown == ["0", "1", "2", "3"]
    assert str(stopped.value) == (
        "a message without id ('2') has been requeued 6 times: 'jobs' drops it if it is requeued once more"
    )
    assert stopped.value.hint == HINT
    place.wait_for(4)
    assert place.delivered() == ["0", "1", "2", "3"]


def test_peek_publishes_later_messages_again_if_the_queue_would_drop_them(place: Place) -> None:
    """If `peek` requeued messages that have reached the queue's delivery limit, the queue would drop them. If there
    are such messages behind the first one, `peek` therefore publishes them to the end of the queue again, even if it
    shows only the first one. It then fails with an error that names the message that was requeued most often, and
    says how many others are at the limit or near it.
    """
    place.fill(*range(5), arguments=limited(6))
    place.requeue(1, 1, 5, 6, 6)
    with pytest.raises(MqtoolError) as stopped:
        place.peeked(1)
    assert str(stopped.value) == (
        "a message without id ('3') has been requeued 6 times, the limit of 'jobs', which would have dropped it: it is "
        "now at the end of the queue, and its TTL, if any, starts again (2 more messages at this limit or near it)"
    )
    assert stopped.value.hint == HINT
    left = [(each.text, each.redelivered) for each in iter(lambda: place.channel.get("jobs"), None)]
    assert left == [("0", True), ("1", True), ("2", True), ("3", False), ("4", False)]


def test_peek_says_that_a_message_is_dropped_if_it_cannot_be_published_again(place: Place) -> None:
    """If a message has reached the delivery limit, `peek` republishes it instead of requeuing it. If the broker nacks
    the republished message, the queue drops or dead-letters the original, and `peek` fails with an error that reports
    this. The other messages stay in the queue.
    """
    place.fill(*range(3), arguments=limited(6))
    place.requeue(1, 6, 6)
    place.vhost.faults.nack_publishes("jobs")
    with pytest.raises(MqtoolError) as stopped, closing(peek(place.channel, "jobs", place.kind())) as deliveries:
        next(deliveries)
    assert str(stopped.value) == (
        "a message without id ('1') has been requeued 6 times, the limit of 'jobs', which drops or dead-letters it "
        "now, because it could not be published again: 'jobs' did not take a message without id ('1'): the broker "
        "refused it (1 more message at this limit or near it)"
    )
    place.wait_for(2)
    assert place.delivered() == ["0", "2"]


def published_again(place: Place, queue: str, more: str = "") -> Recorded:
    """Return the message of a queue after `peek` has published it again because of its delivery limit.

    Args:
        more: the end of the error.
    """
    kind = PeekKind(How.IN_TURN, 0)
    with (
        pytest.raises(MqtoolError, match=f"it is now at the end of the queue{more}"),
        closing(peek(place.channel, queue, kind)) as messages,
    ):
        next(messages)
    return place.vhost.queue(queue).messages().one()


@pytest.mark.parametrize(("exchange", "key"), [("logs", "eu"), ("", "jobs")])
@pytest.mark.parametrize("headers", [{}, {"a": 1}])
def test_a_message_that_is_published_again_keeps_its_origin(
    place: Place, exchange: str, key: str, headers: dict[str, Any]
) -> None:
    """If a message has reached the delivery limit, `peek` publishes it to its queue again, with its headers and its
    properties except the user-id. The headers mqtool-exchange and mqtool-routing-key contain its original exchange and
    routing key.
    """
    place.fill()
    place.channel.declare(Exchange("logs"))
    place.channel.bind(Queue("jobs"), Exchange("logs"), "eu")
    place.publish("x", exchange=exchange, key=key, headers=headers, type="t", user_id="guest")
    again = published_again(place, "jobs")
    assert (again.exchange, again.routing_key, again.body, again.redelivered) == ("", "jobs", b"x", False)
    assert again.properties == {"type": "t"}
    assert again.headers == {**headers, "mqtool-exchange": exchange, "mqtool-routing-key": key}


@pytest.mark.parametrize("forged", [{}, {"mqtool-exchange": ""}])
def test_a_message_with_large_headers_is_published_again_without_its_origin(
    monkeypatch: pytest.MonkeyPatch, place: Place, forged: dict[str, Any]
) -> None:
    """If `peek` publishes a message again, it adds the headers mqtool-exchange and mqtool-routing-key, unless the
    message's headers would then be too large for a frame that the broker accepts. Even in this case, it removes headers
    of these names that a publisher has forged.
    """
    monkeypatch.setattr(Connection, "frame_max", 8192)
    place.fill()
    place.channel.declare(Exchange("logs", "fanout"))
    place.channel.bind(Queue("jobs"), Exchange("logs"))
    room = largest_payload(8192) - size_of_headers(Message(b"", properties={"headers": {"a": "", **forged}}))
    place.publish("x", exchange="logs", key="", headers={"a": "x" * room, **forged})
    assert published_again(place, "jobs").headers == {"a": "x" * room}


@pytest.mark.parametrize(
    ("queue", "exchange", "is_kept"),
    [
        ("logs.exchange.delay.5s", "logs.exchange.delay.5s", True),
        ("logs.exchange.delay.5s.2", "logs.exchange.delay", True),
        ("logs.exchange.delay.5s", "logs", False),
        ("logs.delay.5s", "logs.delay", False),
    ],
)
def test_a_message_of_a_wait_queue_for_an_exchange_is_published_again_with_its_routing_key(
    place: Place, queue: str, exchange: str, *, is_kept: bool
) -> None:
    """A delayed message for an exchange is published to another exchange, to which its wait queue is bound, so that
    the message keeps its own routing key and those in the header CC. If `peek` publishes such a message again, it
    uses this other exchange, with the same keys. It publishes any other message directly to its queue, without CC.
    """
    place.channel.declare(Queue(queue, durable=True))
    place.channel.declare(Exchange(exchange, "fanout"))
    place.channel.bind(Queue(queue), Exchange(exchange))
    for headers in {"a": 1, "CC": ["us"]}, {"CC": ["us"]}, {}:
        place.publish("x", exchange=exchange, key="eu", headers=headers)
        again = published_again(place, queue)
        if is_kept:
            assert (again.exchange, again.routing_key, again.headers) == (exchange, "eu", headers)
        else:
            assert (again.exchange, again.routing_key, "CC" in again.headers) == ("", queue, False)
        administration.purge(place.channel, queue)


def test_a_delayed_message_that_is_published_again_is_due_at_the_same_time(place: Place) -> None:
    """If a delayed message has reached the delivery limit, `peek` publishes it to its wait queue again. The message
    still arrives when it was originally due: its delay, here an hour, does not start again from the beginning.
    """
    arguments = {"x-message-ttl": 3_600_000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs"}
    place.fill()
    place.channel.declare(Queue("jobs.delay.1h", durable=True, arguments=arguments))
    due = time.time() + 2
    place.publish("x", key="jobs.delay.1h", headers={"mqtool-due": int(due * 1000)}, expiration="3600000")
    again = published_again(place, "jobs.delay.1h", "$")
    assert 0 < int(again.properties["expiration"]) <= 2001
    place.wait_for(1)
    assert time.time() >= due - 0.001


@pytest.mark.parametrize(
    ("queue", "headers", "expiration"),
    [
        ("jobs", {}, "3600000"),
        ("jobs", {"mqtool-due": 60}, "3600000"),
        ("jobs.wait.1h", {"mqtool-due": 60}, "3600000"),
        ("jobs.wait.1h", {}, None),
        ("jobs.delay.1h", {}, "3600000"),
        ("jobs.delay.1h", {"mqtool-due": -60}, None),
        ("jobs.delay.1h", {"mqtool-due": 7200}, "3600000"),
    ],
)
def test_peek_says_that_a_ttl_starts_again_if_it_cannot_know_how_long_the_message_has_waited(
    place: Place, queue: str, headers: dict[str, int], expiration: str | None
) -> None:
    """If `peek` publishes a message again, but cannot know how long the message has waited, `peek` keeps the
    message's expiration, and says that the message's TTL, if any, starts again. It can know this time only for a
    message in a wait queue for delays, and only if the message's header mqtool-due contains a plausible due time.
    """
    place.channel.declare(Queue(queue, durable=True))
    due = {name: int((time.time() + seconds) * 1000) for name, seconds in headers.items()}
    place.publish("x", key=queue, headers=due, expiration=expiration)
    again = published_again(place, queue, ", and its TTL, if any, starts again")
    assert again.properties.get("expiration") == expiration


# Removed messages


@pytest.mark.parametrize("arguments", [{}, QUORUM, limited(50)], ids=["classic", "quorum", "quorum with a limit"])
def test_looking_deletes_the_chosen_messages_and_keeps_the_others_in_order(
    place: Place, arguments: dict[str, Any]
) -> None:
    """looking(), with which `delayed now` and `delayed cancel` read a wait queue, deletes the messages that its
    caller chooses. The others stay in the queue, in order.
    """
    place.fill(*NUMBERS, arguments=arguments)
    left = NUMBERS
    for every in 3, 2:
        with looking(place.connection.channel(), "jobs", place.kind()) as look:
            for delivery in look.messages():
                if int(delivery.text) % every == 0:
                    look.remove(delivery)
        left = [each for each in left if int(each) % every]
        place.wait_for(len(left))
    assert place.delivered() == left


@pytest.mark.parametrize("arguments", [{}, QUORUM, limited(50)], ids=["classic", "quorum", "quorum with a limit"])
def test_looking_deletes_the_chosen_messages_even_if_it_stops_early(place: Place, arguments: dict[str, Any]) -> None:
    """looking(), with which `delayed now` and `delayed cancel` read a wait queue, can stop before it has read all
    messages. The messages that its caller has chosen by then are deleted, and the others stay in the queue, in order.
    """
    place.fill(*NUMBERS, arguments=arguments)
    for left in 249, 248:
        with looking(place.connection.channel(), "jobs", place.kind()) as look:
            for number, delivery in enumerate(look.messages()):
                if number == 1:
                    look.remove(delivery)
                    break
        place.wait_for(left)
    assert place.delivered() == ["0", *NUMBERS[3:]]


def test_looking_does_not_publish_a_message_again_if_it_is_to_be_removed(place: Place) -> None:
    """looking(), with which `delayed now` and `delayed cancel` read a wait queue, republishes a message that has
    reached the delivery limit. If the caller wants this message removed, looking() only deletes it, and raises no
    error.
    """
    place.fill(*range(3), arguments=limited(6))
    place.requeue(1, 6)
    with looking(place.channel, "jobs", place.kind()) as look:
        for delivery in look.messages():
            if delivery.text == "1":
                look.remove(delivery)
    place.wait_for(2)
    assert place.delivered() == ["0", "2"]


@pytest.mark.parametrize("error", [StoppedWaiting("stopped: the broker does not reply"), KeyboardInterrupt()], ids=repr)
def test_a_message_that_is_published_again_is_not_doubled_if_requeuing_the_others_fails(
    monkeypatch: pytest.MonkeyPatch, place: Place, error: BaseException
) -> None:
    """If the delivery limit is unknown, `peek` republishes messages that had been requeued before, acknowledges the
    originals, and requeues the others. If the broker stops replying to requests, or the user presses Ctrl-C, after the
    messages were republished, `peek` still acknowledges the originals.
    """

    def fail(_queue: str) -> int:
        raise error

    place.fill(*range(3), arguments=QUORUM)
    place.requeue(1)
    deliveries = peek(place.channel, "jobs", UNKNOWN)
    assert [next(deliveries).text for _ in range(3)] == ["0", "1", "2"]
    monkeypatch.setattr(place.channel, "depth_of", fail)
    with pytest.raises((MqtoolError, KeyboardInterrupt)) as raised:
        deliveries.close()
    assert isinstance(raised.value, KeyboardInterrupt) or "has been requeued 1 time" in str(raised.value)
    place.connection.close()
    with Connection(parse_addresses(place.vhost.url)) as connection:
        place.channel = connection.channel()
        place.wait_for(3)
        assert sorted(place.delivered()) == ["0", "1", "2"]


def test_looking_fails_if_messages_may_not_have_been_removed(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """If the connection is lost while looking() removes messages, it raises the error, so that `delayed cancel` does
    not count them as cancelled.
    """

    def fail(_queue: str) -> int:
        raise Unavailable("lost the connection")

    place.fill(*range(3))
    look = Look(place.channel, "jobs", place.kind())
    for delivery in look.messages():
        look.remove(delivery)
    monkeypatch.setattr(place.channel, "depth_of", fail)
    with pytest.raises(Unavailable, match="lost the connection"):
        look.give_back()


def test_another_client_gets_the_oldest_messages_first_after_looking_at_a_queue_with_a_single_active_consumer(
    place: Place,
) -> None:
    """If a client subscribes to a quorum queue with a single active consumer while looking() holds its messages, the
    client gets what looking() leaves in the queue in order, even if looking() removes a message of its latest batch.
    """
    place.fill(*range(200), arguments={**QUORUM, "x-single-active-consumer": True})
    with Connection(parse_addresses(place.vhost.url)) as connection:
        client = connection.channel()
        with looking(place.connection.channel(), "jobs", place.kind()) as look:
            for delivery in look.messages(150):
                if delivery.text == "149":
                    look.remove(delivery)
                    consumer = client.consumer(Queue("jobs"), Receiving(1, count=199, timeout=30))
        assert [delivery.text for delivery in consumer.deliveries()] == [str(n) for n in range(200) if n != 149]


def test_looking_ends_without_waiting_if_it_has_removed_all_messages(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    """looking(), with which `delayed now` and `delayed cancel` read a wait queue, requeues the messages that it does
    not remove, and usually waits until the broker has done so. If it has removed all messages of the queue, it does not
    wait.
    """
    monkeypatch.setattr(peeking, "_PATIENCE", 5.0)
    place.fill(*NUMBERS)
    with looking(place.channel, "jobs", PeekKind(How.CONSUME)) as look:
        for delivery in look.messages():
            look.remove(delivery)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert place.channel.depth_of("jobs") == 0
