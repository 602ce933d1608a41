"""The messages of a queue under conversion: what they look like while another queue holds them, and afterwards."""

from dataclasses import replace
from typing import Any, cast

import pytest

from mqtool.amqp import Connection, Receiving, parse_addresses
from mqtool.codecs.field_tables import CLIENT, header_size, largest_payload
from mqtool.delays import LONGEST
from mqtool.errors import GetRefused, HeadersTooLarge, NotConfirmed, Unavailable
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.testing import Vhost
from mqtool.topology import Queue
from mqtool.work.held_messages import HeldMessages, check_acknowledged, check_leader, has_leader, is_empty

FRAME_MAX = 131_072
HEADER = "mqtool-convert"


def converting(user: str | None = None, frame_max: int = FRAME_MAX) -> HeldMessages:
    """The conversion of the queue `jobs`."""
    return HeldMessages("jobs", "into", "back", user, frame_max)


def delivery(
    headers: dict[str, Any] | None = None, body: bytes = b"job", exchange: str = "logs", key: str = "eu", **more: Any
) -> Delivery:
    """A message in the queue `jobs`."""
    return Delivery(body, exchange, key, "jobs", False, {"headers": headers, **more}, 1)


def taken(message: Message, queue: str = "jobs.held") -> Delivery:
    """A message as it is delivered from the queue that it was published to."""
    properties = {name: value for name, value in message.properties.items() if value is not None}
    if message.message_id is not None:
        properties["message_id"] = message.message_id
    return Delivery(message.body, message.exchange or "", message.routing_key or "", queue, False, properties, 1)


def set_ones(message: Message) -> dict[str, Any]:
    """The properties of a message that are set."""
    return {name: value for name, value in message.properties.items() if value is not None}


ALL: dict[str, Any] = {
    "content_type": "text/plain",
    "delivery_mode": 2,
    "priority": 7,
    "expiration": "60000",
    "correlation_id": "c",
    "message_id": "m",
    "type": "t",
}
KEPT: dict[str, Any] = {"CC": ["a"], "BCC": ["b"], "mqtool-exchange": "x", "mqtool-routing-key": "k"}


@pytest.mark.parametrize("headers", [None, {"a": 1}, {"a": 1, **KEPT}, {HEADER: {"exchange": "x"}}, {HEADER: 3}, KEPT])
@pytest.mark.parametrize("exchange", ["logs", ""])
def test_a_conversion_returns_each_message_unchanged(headers: dict[str, Any] | None, exchange: str) -> None:
    """`queue convert` moves the messages of a queue to a temporary queue and back. Afterwards, each message has the
    body, routing key, properties and headers with which it was published, even if its headers have names that mqtool
    uses itself.
    """
    found = delivery(headers, exchange=exchange, key="eu", **ALL)
    conversion = converting()
    held = conversion.held(found)
    back = conversion.returned(taken(held))
    assert (back.body, back.routing_key, back.exchange, back.message_id) == (b"job", "eu", "back", "m")
    wanted = {name: value for name, value in ALL.items() if name != "message_id"}
    assert set_ones(back) == {**wanted, **({"headers": headers} if headers else {})}
    assert conversion.users == 0


def test_a_held_message_has_no_expiration_no_priority_and_no_headers_that_request_copies() -> None:
    """While `queue convert` holds a message in a temporary queue, the message has no expiration and no priority: the
    header mqtool-convert stores both. If a message has headers that request copies (CC, BCC) or show where it was first
    published, `queue convert` stores all its headers at the start of the body, so that they have no effect.
    """
    held = converting().held(delivery({"a": 1, **KEPT, "x-delivery-count": 3, "x-acquired-count": 4}, **ALL))
    table = CLIENT.encode_table({"a": 1, **KEPT})
    assert (held.body, held.routing_key, held.exchange, held.message_id) == (table + b"job", "", "into", "m")
    found = set_ones(held)
    assert "message_id" not in held.properties
    settings = {"exchange": "logs", "routing_key": "eu", "expiration": "60000", "priority": 7}
    assert found.pop("headers") == {HEADER: {**settings, "packed": True}}
    assert found == {name: ALL[name] for name in ("content_type", "delivery_mode", "correlation_id", "type")}


def test_a_held_message_keeps_headers_that_do_not_affect_its_delivery() -> None:
    """If a message has no CC or BCC header and none that mqtool uses, it keeps its body and headers while `queue
    convert` holds it in a temporary queue. `queue convert` adds the header mqtool-convert with the message's exchange,
    routing key, and priority and expiration, if any.
    """
    held = converting().held(delivery({"a": 1, "x-delivery-count": 3, "x-acquired-count": 4}))
    assert held.body == b"job"
    assert set_ones(held) == {"headers": {"a": 1, HEADER: {"exchange": "logs", "routing_key": "eu"}}}
    held = converting().held(delivery(priority=0, expiration="5"))
    settings = {"exchange": "logs", "routing_key": "eu", "priority": 0, "expiration": "5"}
    assert set_ones(held) == {"headers": {HEADER: settings}}


@pytest.mark.parametrize("name", [*KEPT, HEADER])
def test_all_headers_are_held_in_the_body_if_one_of_them_affects_the_delivery(name: str) -> None:
    """While `queue convert` holds a message in a temporary queue, headers such as CC and BCC, and those that mqtool
    uses, such as mqtool-exchange, must have no effect. If a message has such a header, `queue convert` stores all the
    message's headers at the start of its body. Back in its own queue, the message has its own headers and body again.
    """
    headers = {"a": 1, name: KEPT.get(name, {"x": 1})}
    held = converting().held(delivery(headers))
    assert held.body == CLIENT.encode_table(headers) + b"job"
    assert set_ones(held) == {"headers": {HEADER: {"exchange": "logs", "routing_key": "eu", "packed": True}}}
    back = converting().returned(taken(held))
    assert (back.body, set_ones(back)) == (b"job", {"headers": headers})


@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 1])
def test_no_headers_are_added_to_a_body_that_is_larger_than_8_mib(size: int) -> None:
    """If a message has a header that must have no effect in a temporary queue, such as CC, `queue convert` stores all
    the message's headers at the start of its body. If the body is larger than 8 MiB, it stays unchanged, because the
    broker limits the size of bodies: `queue convert` then stores CC and similar headers in the header mqtool-convert.
    When the message returns to its own queue, it has its own headers again.
    """
    body = b"x" * size
    conversion = converting()
    held = conversion.held(delivery({"a": 1, **KEPT}, body))
    is_packed = size == 8 << 20
    assert (len(held.body) > size) is is_packed
    if not is_packed:
        settings = {"exchange": "logs", "routing_key": "eu", **KEPT}
        assert set_ones(held) == {"headers": {"a": 1, HEADER: settings}}
    back = conversion.returned(taken(held))
    assert (back.body == body, set_ones(back)) == (True, {"headers": {"a": 1, **KEPT}})


def test_a_header_mqtool_convert_that_a_client_has_set_is_unchanged_in_a_large_message() -> None:
    """If a client publishes a message of more than 8 MiB with a header named mqtool-convert, a name that `queue
    convert` uses itself, the message has the client's header again after the conversion.
    """
    body = b"x" * ((8 << 20) + 1)
    conversion = converting()
    headers = {HEADER: {"exchange": "forged"}, "a": 1}
    held = conversion.held(delivery(headers, body))
    assert held.properties["headers"][HEADER][HEADER] == {"exchange": "forged"}
    assert set_ones(conversion.returned(taken(held))) == {"headers": headers}


def large(size: int) -> dict[str, Any]:
    """Headers of this encoded size."""
    empty = len(CLIENT.encode_table({"h": ""}))
    return {"h": "x" * (size - empty)}


@pytest.mark.parametrize("more", [0, 1])
def test_headers_that_almost_fill_a_frame_are_held_in_the_body(more: int) -> None:
    """`queue convert` adds the header mqtool-convert to each message that it holds in a temporary queue. If the
    message's own headers leave fewer than 4,000 bytes free in a frame, `queue convert` makes room: it moves all of them
    to the start of the body. When the message leaves the temporary queue, it has its own headers again.
    """
    headers = large(largest_payload(FRAME_MAX) - 4000 + more)
    conversion = converting()
    held = conversion.held(delivery(headers))
    assert (len(held.body) > 3) is bool(more)
    assert set_ones(conversion.returned(taken(held))) == {"headers": headers}


def test_a_conversion_stops_at_a_message_whose_headers_no_client_can_publish() -> None:
    """If a message's headers and properties are too large to be published again, `queue convert` stops. The error
    contains their size, and the hint contains the command that removes the message from the queue. Headers and
    properties of exactly the maximum size are accepted.
    """
    most = largest_payload(FRAME_MAX)
    besides = header_size({"type": "t"})
    conversion = converting()
    fits = delivery(large(most - besides), type="t")
    assert set_ones(conversion.returned(taken(conversion.held(fits)))) == {"type": "t", **fits.properties}
    too_large = delivery(large(most - besides + 1), type="t")
    with pytest.raises(HeadersTooLarge) as refused:
        conversion.held(too_large)
    assert str(refused.value) == (
        "a message in 'jobs' has headers and properties of 131,065 bytes: clients can publish up to 131,064"
    )
    assert refused.value.hint == "take it out: mqtool receive -c 1 --queue=jobs"
    with pytest.raises(HeadersTooLarge):
        conversion.returned(too_large)


def test_the_priority_and_expiration_count_towards_the_size_of_the_headers() -> None:
    """When `queue convert` checks whether a message's headers and properties fit into a frame, it includes the
    message's priority and expiration.
    """
    most = largest_payload(FRAME_MAX)
    besides = header_size({"priority": 3, "expiration": "5"})
    conversion = converting()
    fits = delivery(large(most - besides), priority=3, expiration="5")
    back = conversion.returned(taken(conversion.held(fits)))
    assert set_ones(back) == fits.properties
    with pytest.raises(HeadersTooLarge):
        conversion.held(delivery(large(most - besides + 1), priority=3, expiration="5"))


def test_a_message_published_during_a_conversion_reaches_the_queue_unchanged() -> None:
    """If a client publishes a message to a queue during `queue convert`, the message reaches the converted queue with
    its own body, properties, headers and routing key. Only the headers in which the broker counts deliveries are
    removed.
    """
    found = delivery({"a": 1, "x-delivery-count": 2}, **ALL)
    back = converting().returned(replace(found, queue="jobs.meanwhile"))
    assert (back.body, back.routing_key, back.exchange, back.message_id) == (b"job", "eu", "back", "m")
    wanted = {name: value for name, value in ALL.items() if name != "message_id"}
    assert set_ones(back) == {**wanted, "headers": {"a": 1}}


@pytest.mark.parametrize(
    ("exchange", "key", "headers", "through"),
    [
        ("", "jobs", None, ""),
        ("", "jobs", {"a": 1}, ""),
        ("", "other", None, "back"),
        ("logs", "jobs", None, "back"),
        ("", "jobs", {"CC": ["x"]}, "back"),
        ("", "jobs", {"BCC": ["x"]}, "back"),
    ],
)
def test_a_message_returns_to_its_queue_with_its_own_routing_key(
    exchange: str, key: str, headers: dict[str, Any] | None, through: str
) -> None:
    """When `queue convert` returns messages to the converted queue, they keep their routing keys. A message that was
    published directly to the queue, without CC or BCC, goes through the default exchange. Any other message goes
    through an exchange that is bound only to this queue.
    """
    conversion = converting()
    back = conversion.returned(taken(conversion.held(delivery(headers, exchange=exchange, key=key))))
    assert (back.exchange, back.routing_key) == (through, key)


def test_headers_that_request_copies_are_removed_from_a_held_message() -> None:
    """If a client takes a message that `queue convert` holds in a temporary queue, adds a CC or BCC header, and
    publishes the message there again, a resumed conversion removes the added header, so that no copies are routed to
    other queues.
    """
    conversion = converting()
    held = taken(conversion.held(delivery({"a": 1})))
    held.properties["headers"].update(CC=["x"], BCC=["y"])  # type: ignore[index]
    assert conversion.held(held).properties["headers"] == {"a": 1, HEADER: {"exchange": "logs", "routing_key": "eu"}}


SETTINGS: dict[str, Any] = {"exchange": "logs", "routing_key": "eu"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        3,
        {"exchange": "logs"},
        {"routing_key": "eu"},
        {**SETTINGS, "exchange": 1},
        {**SETTINGS, "routing_key": 1},
        {**SETTINGS, "routing_key": "k" * 256},
        {**SETTINGS, "priority": -1},
        {**SETTINGS, "priority": 256},
        {**SETTINGS, "priority": "1"},
        {**SETTINGS, "priority": True},
        {**SETTINGS, "expiration": 5},
        {**SETTINGS, "expiration": "5s"},
        {**SETTINGS, "expiration": "x5"},
        {**SETTINGS, "expiration": "-1"},
        {**SETTINGS, "expiration": str(LONGEST + 1)},
        {**SETTINGS, "expiration": ""},
        {**SETTINGS, "expiration": "1" * 300},
        {**SETTINGS, "CC": "x"},
        {**SETTINGS, "BCC": 1},
    ],
)
def test_a_forged_header_with_values_that_the_broker_refuses_is_left_unchanged(settings: Any) -> None:
    """If a client has forged the header mqtool-convert with values that the broker would refuse, such as an invalid
    priority, `queue convert` does not stop. The message reaches the converted queue with the forged header.
    """
    forged = delivery({HEADER: settings}, exchange="into", key="")
    back = converting().returned(forged)
    assert (back.body, back.exchange, back.routing_key) == (b"job", "back", "")
    assert set_ones(back) == {"headers": {HEADER: settings}}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"priority": 0},
        {"priority": 255},
        {"expiration": "0"},
        {"expiration": "+5"},
        {"expiration": str(LONGEST)},
        {"CC": ["x"]},
    ],
)
@pytest.mark.parametrize(("exchange", "key"), [("into", ""), ("", "jobs")])
def test_a_held_message_gets_its_routing_key_priority_expiration_and_cc_back(
    more: dict[str, Any], exchange: str, key: str
) -> None:
    """While `queue convert` holds a message in a temporary queue, the header mqtool-convert contains the message's
    routing key, priority, expiration and CC header. The message gets them back when it returns to its queue, if the
    broker accepts these values.
    """
    found = delivery({HEADER: {**SETTINGS, **more}, "a": 1}, exchange=exchange, key=key)
    back = converting().returned(found)
    copies = {name: value for name, value in more.items() if name == "CC"}
    others = {name: value for name, value in more.items() if name != "CC"}
    assert (back.exchange, back.routing_key) == ("back", "eu")
    assert set_ones(back) == {**others, "headers": {"a": 1, **copies}}


@pytest.mark.parametrize(
    ("exchange", "key", "queue"), [("other", "jobs", "jobs"), ("", "other", "jobs"), ("back", "", "")]
)
def test_mqtools_header_has_an_effect_only_in_messages_that_mqtool_may_have_published(
    exchange: str, key: str, queue: str
) -> None:
    """For a message that `queue convert` holds in a temporary queue, the header mqtool-convert contains the original
    exchange and routing key. `queue convert` uses and removes this header only if the message was published through the
    conversion's own exchange, or directly to the queue that contains the message. In any other message, it leaves the
    header unchanged, like all other headers.
    """
    found = replace(delivery({HEADER: SETTINGS}, exchange=exchange, key=key), queue=queue)
    assert set_ones(converting().returned(found)) == {"headers": {HEADER: SETTINGS}}


@pytest.mark.parametrize("table", [b"", b"\0\0\0\x05abc", b"\0\0\0\x03\x01aZ"])
def test_a_forged_claim_that_headers_are_in_the_body_has_no_effect(table: bytes) -> None:
    """The header mqtool-convert, with which `queue convert` marks a message that it holds in a temporary queue, can say
    that the message's body begins with headers. A client can forge this header. If the body does not begin with valid
    headers, `queue convert` publishes the message to the converted queue unchanged.
    """
    found = delivery({HEADER: {**SETTINGS, "packed": True}}, table, exchange="into", key="")
    back = converting().returned(found)
    assert (back.body, set_ones(back)) == (table, {"headers": {HEADER: {**SETTINGS, "packed": True}}})


def test_forged_headers_in_a_body_stay_there_if_they_could_not_be_published() -> None:
    """A client can forge a message whose body begins with headers, as if `queue convert` had stored them there. If
    the message could not be published with these headers, because they do not fit into a frame or contain an invalid
    CC, the message reaches the converted queue with its body and its own headers unchanged.
    """
    most = largest_payload(FRAME_MAX)
    besides = header_size({"expiration": "5"})
    settings = {**SETTINGS, "packed": True, "expiration": "5"}
    fits = CLIENT.encode_table(large(most - besides))
    back = converting().returned(delivery({HEADER: settings}, fits + b"job", exchange="into", key=""))
    assert (back.body, back.properties["expiration"]) == (b"job", "5")
    for table in (CLIENT.encode_table(large(most - besides + 1)), CLIENT.encode_table({"CC": "x"})):
        back = converting().returned(delivery({HEADER: settings}, table + b"job", exchange="into", key=""))
        assert (back.body, set_ones(back)) == (table + b"job", {"headers": {HEADER: settings}})


@pytest.mark.parametrize(
    ("user", "user_id", "kept"), [(None, "ann", True), ("me", "ann", False), ("me", "me", True), ("me", None, True)]
)
def test_a_conversion_removes_the_user_id_of_another_user(user: str | None, user_id: str | None, kept: bool) -> None:
    """If the user of `queue convert` is not permitted to publish messages with another user's user_id, the command
    removes the user_id of any other user from messages. It counts the messages from which it has removed a user_id.
    """
    conversion = converting(user)
    held = conversion.held(delivery(user_id=user_id))
    assert held.properties.get("user_id") == (user_id if kept else None)
    assert conversion.users == (0 if kept else 1)
    conversion.held(delivery(user_id=user_id))
    assert conversion.users == (0 if kept else 2)


def test_a_conversion_does_not_trust_the_header_mqtool_convert_of_a_dead_letter() -> None:
    """mqtool trusts the header mqtool-convert of a message that was published directly to its queue. A dead letter
    may also come through the default exchange, with a header that its original publisher has forged. `queue convert`
    therefore leaves the header of a dead letter unchanged.
    """
    forged = {HEADER: {"exchange": "", "routing_key": "jobs", "mqtool-exchange": "payments"}}
    headers = {**forged, "x-death": [{"queue": "other", "reason": "expired", "exchange": "mallory"}]}
    held = converting().held(delivery(headers, exchange="", key="jobs"))
    assert set_ones(converting().returned(taken(held))) == {"headers": headers}


@pytest.mark.parametrize(("reply_to", "kept"), [("amq.rabbitmq.reply-to", False), ("replies", True)])
def test_a_conversion_removes_a_reply_to_that_the_broker_refuses(reply_to: str, kept: bool) -> None:
    """If a message that was published over AMQP 1.0 has the reply_to amq.rabbitmq.reply-to, `queue convert` removes
    this reply_to, because the broker closes the channel of a client that publishes such a message without consuming
    from amq.rabbitmq.reply-to. It counts the messages that had this reply_to.
    """
    conversion = converting()
    held = conversion.held(delivery(reply_to=reply_to))
    assert (held.properties.get("reply_to"), conversion.replies) == (reply_to if kept else None, 0 if kept else 1)
    assert conversion.returned(taken(held)).properties.get("reply_to") == (reply_to if kept else None)
    assert conversion.returned(delivery(reply_to=reply_to)).properties.get("reply_to") == (reply_to if kept else None)
    assert conversion.replies == (0 if kept else 2)


@pytest.mark.parametrize(("frame_max", "most"), [(0, 131_064), (4096, 4088)])
def test_the_largest_headers_depend_on_the_size_of_a_frame(frame_max: int, most: int) -> None:
    """`queue convert` raises HeadersTooLarge if a message's headers and properties do not fit into one frame of the
    size that the broker allows. If the broker sets no limit, their total size can be up to 131,064 bytes.
    """
    conversion = converting(frame_max=frame_max)
    conversion.held(delivery(large(most - 14)))
    with pytest.raises(HeadersTooLarge):
        conversion.held(delivery(large(most - 13)))


# Queues that do not answer


class FakeChannel:
    """A channel on which each queue has this depth, and basic.get returns this message, or raises it if it is
    an error.
    """

    def __init__(self, depth: int, message: object) -> None:
        self.depth, self.message = depth, message
        self.asked: list[tuple[str, float]] = []
        self.is_open = True

    def depth_of(self, queue: str) -> int:
        assert queue == "jobs"
        return self.depth

    def get(self, queue: str, within: float) -> object:
        self.asked.append((queue, within))
        if isinstance(self.message, Exception):
            raise self.message
        return self.message

    def close(self) -> None:
        assert self.is_open
        self.is_open = False

    @property
    def owner(self) -> Connection:
        """The connection of the channel."""
        return cast(Connection, self)

    def channel(self) -> "FakeChannel":
        return self


@pytest.mark.parametrize(
    ("depth", "message", "found"),
    [(1, None, True), (0, None, True), (0, "m", True), (0, NotConfirmed("no"), False), (0, GetRefused("no"), True)],
)
def test_a_queue_has_a_leader_if_it_reports_messages_or_answers_basic_get(
    depth: int, message: Any, found: bool
) -> None:
    """`queue convert` considers a queue to have a leader if the queue reports ready messages, or if it answers or
    refuses basic.get within a time limit. The command always closes the channel of this check, so that the broker
    requeues a message that basic.get may have returned.
    """
    channel = FakeChannel(depth, message)
    assert has_leader(channel.owner, "jobs", 3.0) is found
    assert channel.asked == ([] if depth else [("jobs", 3.0)])
    assert not channel.is_open


def test_a_channel_that_the_broker_has_closed_is_not_closed_again() -> None:
    """If the broker closes the channel on which `queue convert` checks a queue for a leader or for messages, the
    command does not close the channel again.
    """
    channel = FakeChannel(0, None)
    channel.is_open = False
    assert has_leader(channel.owner, "jobs", 3.0)
    assert is_empty(channel.owner, "jobs")


@pytest.mark.parametrize("message", [None, "m"])
def test_a_queue_is_empty_if_basic_get_finds_no_message(message: str | None) -> None:
    """`queue convert` uses basic.get to find out whether a queue is empty, because RabbitMQ also reports 0 messages for
    a queue that answers slowly.
    """
    channel = FakeChannel(0, message)
    assert is_empty(channel.owner, "jobs") is (message is None)
    assert channel.asked == [("jobs", 15.0)]
    assert not channel.is_open


@pytest.mark.parametrize("other_consumer", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_quorum_queue_with_a_single_active_consumer_is_empty_if_no_message_is_ready(
    amqp_vhost: Vhost, count: int, *, other_consumer: bool
) -> None:
    """The broker refuses basic.get for a quorum queue with x-single-active-consumer. `queue convert` therefore starts
    a consumer to find out whether the queue has a ready message. If not, it considers the queue empty, even if
    another consumer has an unacknowledged message. All ready messages stay in the queue.
    """
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True, arguments=arguments))
        consumer = channel.consumer(Queue("jobs"), Receiving(1)) if other_consumer else None
        list(channel.publish([Message(b"m")] * count, routing_key="jobs"))
        held = int(consumer is not None and count > 0)
        if consumer is not None and held:
            assert consumer.arrives(5)
        assert amqp_vhost.wait_for(lambda: channel.depth_of("jobs") == count - held)
        assert is_empty(connection, "jobs") is (count == held)
        assert amqp_vhost.wait_for(lambda: channel.depth_of("jobs") == count - held)


def test_a_conversion_stops_at_a_queue_without_a_leader() -> None:
    """If a quorum queue has no leader, `queue convert` stops with an error that names the queue. The hint says to
    start any nodes that are stopped, or to delete the queue if RabbitMQ was killed just after it had declared the
    queue.
    """
    check_leader(cast(Connection, FakeChannel(0, None)), "jobs", "again")
    channel = FakeChannel(0, NotConfirmed("no"))
    with pytest.raises(Unavailable) as refused:
        check_leader(cast(Connection, channel), "jobs", "again")
    assert str(refused.value) == "quorum queue 'jobs' has no leader"
    assert refused.value.hint == (
        "start the nodes that are down; or, if RabbitMQ was killed just after it had declared the queue, the queue is "
        "empty, and can only be deleted: mqtool queue delete jobs, then again"
    )
    assert channel.asked == [("jobs", 15.0)]


class FakeApi:
    """A management API that reports one pair of counts after another, and then the last pair again. Sleeping takes no
    time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *counts: tuple[int | None, int | None]) -> None:
        self.counts = list(counts)
        self.asked = self.looked = 0
        self.now = 1000.0
        self.notices: list[str] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get(self, path: str) -> dict[str, Any]:
        assert path == "queues/v/jobs"
        self.looked += 1
        assert self.asked == self.looked
        count, work = self.counts[min(self.looked, len(self.counts)) - 1]
        values = {"messages_unacknowledged": count, "reductions": work}
        return {name: value for name, value in values.items() if value is not None}

    def ask(self) -> None:
        self.asked += 1

    def check(self, *, is_embedded: bool = False, patience: float | None = None) -> float:
        """Wait until no messages are unacknowledged; return how long that took, in seconds."""
        notice = self.notices.append
        check_acknowledged(
            cast(Management, self), "v", "jobs", self.ask, "again", notice, is_embedded=is_embedded, patience=patience
        )
        return self.now - 1000.0


@pytest.mark.parametrize(
    ("counts", "is_embedded", "looks"),
    [
        ([(0, None)], True, 1),
        ([(1, None), (0, None)], True, 2),
        ([(0, 1), (0, 2), (0, 3)], False, 3),
        ([(0, 1), (0, 1), (0, 2), (0, 2), (0, 3)], False, 5),
        ([(0, None), (0, 1), (0, None), (0, 2), (0, None), (0, 3)], False, 6),
        ([(0, 1), (1, 2), (1, 3), (0, None), (0, 4)], False, 5),
        ([(None, None), (None, 1), (0, 1), (0, 2), (0, 3)], False, 5),
        ([(None, 1), (0, 2), (1, 3), (0, 4)], False, 4),
    ],
)
def test_a_conversion_waits_for_a_current_count_of_unacknowledged_messages(
    monkeypatch: pytest.MonkeyPatch, counts: list[tuple[int | None, int | None]], *, is_embedded: bool, looks: int
) -> None:
    """`queue convert` waits until the management API reports a current count of 0 unacknowledged messages, and prints a
    notice if it must wait. RabbitMQ's count is current only if it comes with `reductions`, a counter of the queue's
    work, and this counter has changed twice since `queue convert` first read it. The embedded broker's count is always
    current.
    """
    api = FakeApi(monkeypatch, *counts)
    assert api.check(is_embedded=is_embedded) == (looks - 1) * 0.25
    waiting = "waiting until the broker reports that no messages of 'jobs' are unacknowledged"
    assert api.notices == [waiting] * (looks > 1)
    assert api.looked == looks


@pytest.mark.parametrize(("count", "text"), [(1, "1 message of 'jobs' is"), (2, "2 messages of 'jobs' are")])
def test_a_conversion_stops_if_messages_stay_unacknowledged(
    monkeypatch: pytest.MonkeyPatch, count: int, text: str
) -> None:
    """If a queue still has unacknowledged messages after more than 20 seconds, `queue convert` stops. The error
    contains their number.
    """
    api = FakeApi(monkeypatch, (count, None))
    with pytest.raises(Unavailable) as refused:
        api.check(is_embedded=True)
    assert str(refused.value) == f"{text} unacknowledged, and would be lost"
    assert refused.value.hint == "stop the clients, then: again"
    assert api.now == 1020.25


def test_queue_delete_waits_only_a_quarter_of_a_second_for_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    """`queue delete --if-empty --if-unused` does not wait 20 seconds for acknowledgements, as `queue convert` does.
    It stops with an error if messages are still unacknowledged after a quarter of a second.
    """
    api = FakeApi(monkeypatch, (1, None))
    with pytest.raises(Unavailable, match="1 message of 'jobs' is unacknowledged"):
        api.check(is_embedded=True, patience=0.0)
    assert api.now == 1000.25


@pytest.mark.parametrize(("view", "seconds"), [((None, None), 30.25), ((None, 1), 30.25), ((0, 1), 180.25)])
def test_a_conversion_stops_without_a_current_count_of_unacknowledged_messages(
    monkeypatch: pytest.MonkeyPatch, view: tuple[int | None, int | None], seconds: float
) -> None:
    """A conversion would lose unacknowledged messages, so `queue convert` asks the management API for their number. If
    the API reports no number for 30 seconds, or only an outdated one for 180 seconds, the conversion stops with an
    error.
    """
    api = FakeApi(monkeypatch, view)
    with pytest.raises(Unavailable) as refused:
        api.check()
    assert str(refused.value) == (
        "the broker does not say how many messages of 'jobs' are unacknowledged, which would be lost"
    )
    assert refused.value.hint == "have its management plugin collect metrics"
    assert api.now == 1000 + seconds
