"""Moving messages between queues, as `move`, `dlq redrive` and `worker` do: the headers of moved messages; that no
message is lost (on an embedded broker in this process); and how long a move waits (with a fake channel and clock).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika import spec

from mqtool.amqp import Channel, Connection, Receiving, administration, parse_addresses
from mqtool.amqp.consumer import Consumer
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.testing import Vhost
from mqtool.topology import Queue
from mqtool.work import transfer
from mqtool.work.transfer import (
    NotMoved,
    QueueTransfer,
    Until,
    elsewhere,
    failed,
    move,
    name_of,
    not_taken,
    redriven,
    size_of_headers,
    stays,
)
from tests.unit.scripted_broker import scripted_broker

JOB = Delivery(
    b"job", "", "jobs", "jobs", redelivered=False, delivery_tag=1,
    properties={"message_id": "a", "user_id": "me", "expiration": "5000", "delivery_mode": 1, "type": "t"},
)  # fmt: skip
FIRST = datetime(2026, 1, 31, 12, tzinfo=UTC)
#: Headers that the broker has added, and that a republished message must not have.
BROKERS = {
    "x-death": [{"queue": "jobs.wait.1s", "reason": "expired"}], "x-delivery-count": 3, "x-acquired-count": 3,
    "x-first-death-queue": "q", "x-first-death-exchange": "", "x-first-death-reason": "expired",
    "x-last-death-queue": "q", "x-last-death-exchange": "", "x-last-death-reason": "expired",
}  # fmt: skip
COPIES = {"CC": ["copy"], "BCC": ["secret"]}


def with_headers(headers: dict[str, Any], delivery: Delivery = JOB) -> Delivery:
    return replace(delivery, properties={**delivery.properties, "headers": headers})


def test_a_moved_message_does_not_expire_and_a_retry_is_persistent() -> None:
    """When `worker` retries a message, or `dlq redrive` moves one, the message is published without an expiration, and
    without a user id, which the broker could refuse. The message keeps its body, id and other properties. A retry is
    persistent; a redriven message keeps its delivery mode.
    """
    for message, mode in ((failed(JOB, "exit status 1", "other"), 2), (redriven(JOB, "other"), 1)):
        assert (message.body, message.exchange, message.routing_key) == (b"job", "", "other")
        assert message.message_id == "a"
        assert {**message.properties, "headers": None} == {"type": "t", "delivery_mode": mode, "headers": None}


def test_a_failed_message_contains_its_history_and_no_headers_of_the_broker() -> None:
    """When `worker` moves a message to a wait queue or the dead-letter queue after a failed attempt, the message's
    headers contain the number of failed attempts, the last error, the queue, and the time of the first failure. CC,
    BCC and the headers that the broker has added are removed. In a dead letter, the header mqtool-redrives, which
    counts the moves by `dlq redrive`, is kept only if its value is a number, because any other value must have been
    forged.
    """
    message = failed(with_headers({**BROKERS, **COPIES, "x": 1}), "exit status 1", "jobs.wait.1s")
    headers = dict(message.properties["headers"])
    first = headers.pop("mqtool-first-failure")
    assert abs((datetime.now(UTC) - first).total_seconds()) < 60
    assert first.microsecond == 0
    expected = {
        "x": 1, "mqtool-attempts": 1, "mqtool-last-error": "exit status 1", "mqtool-queue": "jobs",
        "mqtool-exchange": "", "mqtool-routing-key": "jobs",
    }  # fmt: skip
    assert headers == expected
    again = failed(with_headers({**expected, "mqtool-first-failure": FIRST}), "no", "jobs.dlq", "rejected")
    assert again.properties["headers"] == expected | {
        "mqtool-attempts": 2, "mqtool-last-error": "no", "mqtool-first-failure": FIRST, "mqtool-reason": "rejected",
    }  # fmt: skip
    returned = failed(with_headers({"mqtool-redrives": 2}), "no", "jobs.dlq", "rejected")
    assert returned.properties["headers"]["mqtool-redrives"] == 2
    forged = failed(with_headers({"mqtool-redrives": "many"}), "no", "jobs.dlq", "rejected")
    assert "mqtool-redrives" not in forged.properties["headers"]


def test_a_redriven_message_has_only_its_publishers_headers_its_origin_and_the_number_of_redrives() -> None:
    """When `dlq redrive` moves a message, it keeps the headers that the publisher has set, and those with the message's
    original exchange and routing key, if any. It adds or increments a header with the number of redrives. It removes
    all other headers.
    """
    ours = {
        "mqtool-attempts": 6, "mqtool-last-error": "no", "mqtool-queue": "jobs", "mqtool-first-failure": FIRST,
        "mqtool-reason": "rejected",
    }  # fmt: skip
    origin = {"mqtool-exchange": "logs", "mqtool-routing-key": "eu"}
    dead = with_headers({**ours, **origin, **COPIES, "x-delivery-count": 1, "x": 1})
    assert redriven(dead, "jobs").properties["headers"] == {**origin, "x": 1, "mqtool-redrives": 1}
    again = {**ours, **BROKERS, "x-death": None, "mqtool-redrives": 4}
    assert redriven(with_headers(again), "jobs").properties["headers"] == {"mqtool-redrives": 5}
    assert redriven(with_headers(BROKERS), "jobs").properties["headers"] == {"mqtool-redrives": 1}


def test_a_message_for_another_broker_keeps_its_properties() -> None:
    """When `move` moves a message to another broker, the message keeps its properties, including its expiration. `move`
    removes the headers CC, BCC and x-delivery-count. It keeps the user id only if mqtool logs in to the other
    broker as this user.
    """
    message = elsewhere(with_headers({**COPIES, "x-delivery-count": 1, "x": 1}), "other", "me")
    assert (message.body, message.exchange, message.routing_key, message.message_id) == (b"job", "", "other", "a")
    kept = {"user_id": "me", "expiration": "5000", "delivery_mode": 1, "type": "t"}
    assert message.properties == {**kept, "headers": {"x": 1}}
    assert elsewhere(JOB, "other", "you").properties == {**kept, "user_id": None}


def test_a_header_mqtool_convert_that_may_be_forged_is_renamed_when_its_message_is_moved() -> None:
    """`queue convert` adds the header mqtool-convert to messages while they are in its temporary queue. mqtool trusts
    this header only in a message that was published to its queue through the default exchange. When mqtool moves any
    other message with this header, which may be forged, it renames the header to mqtool-claimed.
    """
    headers = {"mqtool-convert": {"exchange": "", "routing_key": "jobs", "packed": True}}
    proven, forged = with_headers(headers), replace(with_headers(headers), exchange="mallory", routing_key="k")
    for kept, renamed in (
        (failed(proven, "e", "wait"), failed(forged, "e", "wait")),
        (redriven(proven, "jobs"), redriven(forged, "jobs")),
        (elsewhere(proven, "other", "me"), elsewhere(forged, "other", "me")),
    ):
        found, claimed = kept.properties["headers"], renamed.properties["headers"]
        assert (found["mqtool-convert"], "mqtool-claimed" in found) == (headers["mqtool-convert"], False)
        assert (claimed["mqtool-claimed"], "mqtool-convert" in claimed) == (headers["mqtool-convert"], False)


def test_the_reply_to_of_direct_replies_is_removed_from_a_moved_message() -> None:
    """A message in a stream, or one published over AMQP 1.0, can have the reply_to amq.rabbitmq.reply-to. If a client
    publishes a message with this reply_to without consuming from amq.rabbitmq.reply-to on the same channel, the
    broker closes the channel. mqtool therefore removes this reply_to from moved, redriven and retried messages.
    """
    request = replace(JOB, properties={"reply_to": "amq.rabbitmq.reply-to", "correlation_id": "1"})
    for message in (failed(request, "e", "wait"), redriven(request, "jobs"), elsewhere(request, "other", "me")):
        assert ("reply_to" in message.properties, message.properties["correlation_id"]) == (False, "1")
    answered = replace(JOB, properties={"reply_to": "amq.rabbitmq.reply-to.x"})
    assert elsewhere(answered, "other", "me").properties["reply_to"] == "amq.rabbitmq.reply-to.x"


def test_a_message_for_another_broker_loses_the_headers_that_name_its_origin_if_they_do_not_fit() -> None:
    """When `move` moves a message to another broker, it sets the headers mqtool-exchange and mqtool-routing-key to the
    message's original exchange and routing key. It replaces values that a publisher may have forged. If the headers
    then do not fit into a frame of the other broker, `move` leaves out these two headers, and keeps all others.
    """
    forged = {"mqtool-exchange": "", "mqtool-routing-key": "", "x": 1}
    published = with_headers(forged, replace(JOB, exchange="logs", routing_key="eu" * 100))
    origin = {"mqtool-exchange": "logs", "mqtool-routing-key": "eu" * 100}
    size = size_of_headers(elsewhere(published, "other", "me")) + 8
    for frame_max, headers in ((0, {**origin, "x": 1}), (size, {**origin, "x": 1}), (size - 1, {"x": 1})):
        message = elsewhere(published, "other", "me", frame_max)
        assert {**message.properties, "message_id": "a"} == {**JOB.properties, "headers": headers}


def test_a_message_is_named_by_its_id_or_the_start_of_its_body() -> None:
    """mqtool's notices name a message by its id or, if it has none, by the first 30 characters of its body."""
    assert name_of(JOB) == "message a"
    long = replace(JOB, body="é".encode() * 100_000, properties={})
    assert name_of(long) == f"a message without id ({'é' * 30!r})"
    assert name_of(replace(JOB, body=b"\xff", properties={})) == "a message without id ('\ufffd')"


def test_the_error_about_a_message_that_was_not_moved_says_where_it_is() -> None:
    """If a queue does not accept a message that mqtool moves to it, the error names this queue, the message and the
    broker's reason. The hint names the queue that still contains the message.
    """
    error = not_taken(JOB, Receipt(Message(b"", "other"), Confirmation.RETURNED, "NO_ROUTE"))
    assert (str(error), error.hint) == ("'other' did not take message a: NO_ROUTE", "it is still in jobs")


@pytest.fixture
def connect(amqp_vhost: Vhost) -> Iterator[Callable[[], Channel]]:
    """Open a channel of mqtool's own client on the broker in this process."""
    with Connection(parse_addresses(amqp_vhost.url)) as connection:
        yield connection.channel


@pytest.fixture
def channel(connect: Callable[[], Channel]) -> Channel:
    return connect()


def fill(channel: Channel, count: int, queue: str = "from") -> None:
    """Publish messages with the bodies "0", "1", "2" … into a queue."""
    channel.declare(Queue(queue, durable=True))
    assert all(
        receipt.confirmation is Confirmation.CONFIRMED
        for receipt in channel.publish((Message(b"%d" % number) for number in range(count)), routing_key=queue)
    )


def drained(vhost: Vhost, channel: Channel, queue: str, count: int) -> list[int]:
    """Wait until a queue has this many messages, and return all, in the order in which they are delivered."""
    vhost.wait_for(lambda: channel.depth_of(queue) >= count)
    ready = channel.depth_of(queue)
    consumed = islice(channel.consume(Queue(queue), Receiving(acknowledge=False)), ready)
    return [int(each.body) for each in consumed]


def to(queue: str, *, every: int = 1) -> Callable[[Delivery], Message | None]:
    """Choose every nth message, and move it to a queue."""
    return lambda delivery: redriven(delivery, queue) if int(delivery.body) % every == 0 else None


def test_all_messages_are_moved_in_order(amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]) -> None:
    """If a command such as `move` moves all messages of a queue, they keep their order in the target queue, and the
    source queue is empty afterwards. Each message is reported as moved once the broker has confirmed it.
    """
    fill(channel, 250)
    channel.declare(Queue("to", durable=True))
    source = connect()
    moving = QueueTransfer(source, connect(), "from", to("to"), until=Until(), chooses=False)
    assert [int(delivery.body) for delivery in moving] == [*range(250)]
    assert moving.kept == 0
    source.close()
    other = connect()
    assert drained(amqp_vhost, other, "to", 250) == [*range(250)]
    assert other.depth_of("from") == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_messages_that_are_not_selected_stay_in_their_queue_in_order(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel], kind: str
) -> None:
    """If a command such as `move` moves only some messages of a queue, the others stay in the queue in their order,
    even if there are hundreds of them and they have been requeued before.
    """
    channel.declare(Queue("from", durable=True, arguments={"x-queue-type": kind}))
    channel.declare(Queue("to", durable=True))
    list(channel.publish((Message(b"%d" % number) for number in range(450)), routing_key="from"))
    for every in (5, 7):
        source = connect()
        moving = QueueTransfer(source, connect(), "from", to("to", every=every), until=Until())
        moved = [int(delivery.body) for delivery in moving]
        source.close()
        assert moved == [number for number in range(450) if number % every == 0 and (every == 5 or number % 5)]
        left = [number for number in range(450) if number % 5 and (every == 5 or number % 7)]
        assert moving.kept == len(left)
        amqp_vhost.wait_for(lambda left=left: channel.depth_of("from") == len(left))  # type: ignore[misc]
    assert drained(amqp_vhost, connect(), "from", len(left)) == left


def test_an_auto_delete_queue_keeps_the_messages_that_are_not_moved(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """If a command such as `move` moves only some messages of an auto-delete queue, the broker does not delete the
    queue. The others stay there in their order, even if there are hundreds of them.
    """
    channel.declare(Queue("from", durable=True, auto_delete=True))
    channel.declare(Queue("to", durable=True))
    list(channel.publish((Message(b"%d" % number) for number in range(450)), routing_key="from"))
    for until, moved in (Until(), [*range(0, 450, 5)]), (Until(moved=3), [1, 2, 3]):
        source = connect()
        message_for = to("to", every=1 if until.moved else 5)
        moving = QueueTransfer(source, connect(), "from", message_for, until=until, gets=True)
        assert [int(delivery.body) for delivery in moving] == moved
        source.close()
        left = 360 - (until.moved or 0)
        amqp_vhost.wait_for(lambda left=left: channel.depth_of("from") == left)  # type: ignore[misc]
    bodies = [int(delivery.body) for delivery in iter(lambda: channel.get("from"), None)]
    assert bodies == [number for number in range(4, 450) if number % 5]


def test_a_move_out_of_an_auto_delete_queue_waits_for_more_messages(
    channel: Channel, connect: Callable[[], Channel]
) -> None:
    """With `--idle-timeout`, `move` also moves messages that arrive in an auto-delete queue after it has started. It
    ends when no message has arrived for the given time, or when it is stopped.
    """
    channel.declare(Queue("from", durable=True, auto_delete=True))
    channel.declare(Queue("to", durable=True))
    list(channel.publish([Message(b"0"), Message(b"1")], routing_key="from"))
    moved = list[int]()
    for delivery in QueueTransfer(connect(), connect(), "from", to("to"), until=Until(idle=0.3), gets=True):
        moved.append(int(delivery.body))
        if moved == [0, 1]:
            list(channel.publish([Message(b"2")], routing_key="from"))
    assert moved == [0, 1, 2]
    source = connect()
    list(channel.publish([Message(b"3"), Message(b"4")], routing_key="from"))
    stopped = QueueTransfer(source, connect(), "from", to("to"), until=Until(idle=60), gets=True)
    source.stop()
    assert list(stopped) == []


@pytest.mark.parametrize(("kind", "count"), [("classic", None), ("classic", 2), ("classic", 150), ("quorum", None)])
def test_messages_that_cannot_be_moved_do_not_block_those_behind_them(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel], kind: str, count: int | None
) -> None:
    """If some messages cannot be moved, even hundreds at the head of the queue, a command such as `move` moves the
    other messages, up to its limit, if any. The messages that it does not move stay in the queue in their order.
    """
    channel.declare(Queue("from", durable=True, arguments={"x-queue-type": kind}))
    channel.declare(Queue("to", durable=True))
    list(channel.publish((Message(b"%d" % number) for number in range(600)), routing_key="from"))
    left, possible = [*range(600)], [number for number in range(220, 600) if number % 9]

    def message_for(delivery: Delivery) -> Message | None:
        return redriven(delivery, "to") if int(delivery.body) in possible else None

    for _ in range(2):  # the second time, the messages were requeued before
        source = connect()
        moving = QueueTransfer(source, connect(), "from", message_for, until=Until(moved=count), chooses=False)
        moved = [int(delivery.body) for delivery in moving]
        source.close()
        assert moved == [number for number in left if number in possible][:count]
        left = [number for number in left if number not in moved]
        amqp_vhost.wait_for(lambda left=left: channel.depth_of("from") == len(left))  # type: ignore[misc]
    assert drained(amqp_vhost, connect(), "from", len(left)) == left


def test_a_move_ends_with_an_error_if_the_target_queue_rejects_a_message(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """If the target queue rejects a message, a command such as `move` ends with an error that names the message. Each
    message is then in exactly one of the two queues, in order.
    """
    fill(channel, 150)
    channel.declare(Queue("to", durable=True, arguments={"x-max-length": 20, "x-overflow": "reject-publish"}))
    moved, source = list[int](), connect()
    moving = QueueTransfer(source, connect(), "from", to("to"), until=Until(), chooses=False)
    with pytest.raises(NotMoved, match="'to' did not take a message without id"):
        moved.extend(int(delivery.body) for delivery in moving)
    source.close()  # requeues what was prefetched
    assert drained(amqp_vhost, connect(), "to", len(moved)) == sorted(moved)
    left = [number for number in range(150) if number not in moved]
    assert drained(amqp_vhost, connect(), "from", len(left)) == left
    assert left


def test_only_confirmed_messages_are_removed_if_the_target_broker_closes_the_channel(
    channel: Channel, connect: Callable[[], Channel]
) -> None:
    """If the broker of the target queue confirms the second message but not the first, and then closes the channel, a
    command such as `move` acknowledges the second message. The first stays in the source queue.
    """
    fill(channel, 3)
    source = connect()
    with scripted_broker() as target:
        target.confirms = False

        def message_for(delivery: Delivery) -> Message:
            if delivery.body == b"2":
                target.io.run_due()
                assert len(target.published) == 2
                target.send(spec.Basic.Ack(2))
                target.send(spec.Channel.Close(406, "PRECONDITION_FAILED", 60, 40))
            return redriven(delivery, "to")

        moved = list[bytes]()
        moving = QueueTransfer(source, target.channel(), "from", message_for, until=Until())
        with pytest.raises(MqtoolError, match="PRECONDITION_FAILED"):
            moved.extend(delivery.body for delivery in moving)
        assert moved == [b"1"]
    source.close()
    left = islice(connect().consume(Queue("from"), Receiving(acknowledge=False)), 2)
    assert [delivery.body for delivery in left] == [b"0", b"2"]


def test_a_move_can_continue_after_an_unroutable_message(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """If a message is unroutable because its target queue is missing, a command that moves messages can either stop
    or continue with the next message. `dlq redrive` without `--to` continues: it leaves the unroutable message in its
    own queue, and moves the other messages.
    """
    fill(channel, 30)
    channel.declare(Queue("to", durable=True))
    refused = list[str]()

    def goes_on(error: NotMoved, message: Message) -> bool:
        refused.append(f"{message.body.decode()}: {message.routing_key}")
        return "NO_ROUTE" in str(error)

    def alternately(delivery: Delivery) -> Message:
        return redriven(delivery, "to" if int(delivery.body) % 2 else "missing")

    source = connect()
    moving = QueueTransfer(source, connect(), "from", alternately, until=Until(), goes_on=goes_on)
    assert [int(delivery.body) for delivery in moving] == [*range(1, 30, 2)]
    source.close()
    assert refused == [f"{number}: missing" for number in range(0, 30, 2)]
    assert drained(amqp_vhost, connect(), "from", 15) == [*range(0, 30, 2)]
    assert moving.kept == 0


@pytest.mark.parametrize("chooses", [True, False])
@pytest.mark.parametrize(
    ("until", "every", "moved"),
    [(Until(moved=3), 1, [0, 1, 2]), (Until(moved=2), 4, [0, 4]), (Until(seen=5), 2, [0, 2, 4]),
     (Until(idle=0.01), 4, [0, 4, 8])],
    ids=["three moved", "two moved", "five received", "idle"],
)  # fmt: skip
def test_a_move_ends_at_its_limit(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel], *, until: Until, every: int, moved: list[int],
    chooses: bool,
) -> None:  # fmt: skip
    """A command such as `move` can have a limit on the number of messages that it moves, or on the number that it
    receives, including those that do not meet its condition. The command ends when it reaches its limit or, with an
    idle timeout, when no message has arrived for that time. Messages that were not moved stay in the queue.
    """
    fill(channel, 10)
    channel.declare(Queue("to", durable=True))
    choose, source = to("to", every=every if chooses else 1), connect()
    found = [int(each.body) for each in QueueTransfer(source, connect(), "from", choose, until=until, chooses=chooses)]
    source.close()
    if not chooses:
        moved = [*range(until.moved or until.seen or 10)]
    assert found == moved
    left = [number for number in range(10) if number not in moved]
    assert drained(amqp_vhost, connect(), "from", len(left)) == left


def test_a_move_includes_deliveries_that_arrive_after_the_queue_was_reported_as_empty(
    monkeypatch: pytest.MonkeyPatch, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """RabbitMQ may report a queue as empty before its last deliveries have arrived. A command such as `move` waits
    for these deliveries, and also moves their messages.
    """
    fill(channel, 50)
    replies, arrives, depth = list[int](), Consumer.arrives, administration.depth

    def counted(channel: Channel, queue: str) -> administration.Depth:
        reply = depth(channel, queue)
        replies.append(reply.ready)
        return reply

    monkeypatch.setattr(administration, "depth", counted)
    monkeypatch.setattr(Consumer, "arrives", lambda self, within: len(replies) > 1 and arrives(self, within))
    dropping = QueueTransfer(connect(), None, "from", to("nowhere"), until=Until())
    assert [int(delivery.body) for delivery in dropping] == [*range(50)]
    assert replies[:2] == [0, 0]


def test_a_move_can_be_stopped(amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]) -> None:
    """If a command such as `move` is stopped, for example by Ctrl-C, it ends without an error, and no message is lost
    or duplicated.
    """
    fill(channel, 250)
    source, moved = connect(), list[int]()
    for delivery in QueueTransfer(source, None, "from", to("nowhere"), until=Until()):
        moved.append(int(delivery.body))
        source.stop()
    source.close()
    left = drained(amqp_vhost, connect(), "from", 250 - len(moved))
    assert moved + left == [*range(250)]
    assert left


def test_a_move_without_a_target_deletes_messages(channel: Channel, connect: Callable[[], Channel]) -> None:
    """`dlq drop` is a move without a target queue: the chosen messages are deleted, and the others are kept."""
    fill(channel, 10)
    dropping = QueueTransfer(connect(), None, "from", to("nowhere", every=2), until=Until())
    assert [int(delivery.body) for delivery in dropping] == [0, 2, 4, 6, 8]
    assert channel.depth_of("from") == 5


def test_a_limit_on_moved_messages_also_applies_without_a_target_queue(
    channel: Channel, connect: Callable[[], Channel]
) -> None:
    """A move without a target queue, such as `dlq drop`, deletes messages. If the number of messages to move is
    limited, it deletes no more than this number.
    """
    fill(channel, 10)
    source = connect()
    dropping = QueueTransfer(source, None, "from", to("nowhere", every=2), until=Until(moved=2))
    assert [int(delivery.body) for delivery in dropping] == [0, 2]
    source.close()
    assert channel.depth_of("from") == 8


def test_messages_that_could_not_be_moved_are_requeued_when_the_move_ends(
    amqp_vhost: Vhost, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """Messages that a command such as `move` receives, but that no queue accepts, are requeued as soon as the move
    ends, and not only when the channel is closed.
    """
    fill(channel, 3)
    moving = QueueTransfer(connect(), connect(), "from", to("missing"), until=Until(), goes_on=lambda *_: True)
    assert [*moving] == []
    amqp_vhost.wait_for(lambda: channel.depth_of("from") == 3)


def test_messages_are_moved_no_faster_than_the_rate(
    monkeypatch: pytest.MonkeyPatch, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """With a rate limit of 100 messages per second, a command such as `move` moves on average at most one message every
    10 ms.
    """
    fill(channel, 5)
    pauses = list[float]()
    sleep = transfer.time.sleep

    def counting_sleep(seconds: float) -> None:
        pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(transfer.time, "sleep", counting_sleep)
    moving = QueueTransfer(connect(), None, "from", to("nowhere"), until=Until(), per_second=100)
    began = transfer.time.monotonic()
    assert len([*moving]) == 5
    assert transfer.time.monotonic() - began > 0.038
    assert max(pauses) <= 0.012  # a pause of less than 2 ms is added to the next one


def test_a_move_ends_with_an_error_if_the_broker_delivers_nothing(
    monkeypatch: pytest.MonkeyPatch, channel: Channel, connect: Callable[[], Channel]
) -> None:
    """If a queue has messages, but the broker delivers none, for example because another consumer is the single active
    one, a command such as `move` ends with an error. The hint names the possible causes.
    """
    monkeypatch.setattr(transfer, "_STALLED", 0.3)
    queue = channel.declare(Queue("from", durable=True, arguments={"x-single-active-consumer": True}))
    list(channel.publish([Message(b"0"), Message(b"1")], routing_key="from"))
    active = connect().consume(queue, Receiving(prefetch=1, acknowledge=False))
    next(active)
    with pytest.raises(Unavailable, match="'from' has 1 more, but the broker delivers none") as error:
        list(QueueTransfer(connect(), None, "from", to("nowhere"), until=Until()))
    hint = "it is a stream, or another consumer has a higher priority or is the single active one"
    assert error.value.hint == hint
    assert channel.depth_of("from") == 1


def test_moving_a_message_fails_unless_a_queue_accepts_it(channel: Channel) -> None:
    """If no queue accepts a message, moving it raises NotMoved, so that the caller does not acknowledge it."""
    channel.declare(Queue("to", durable=True))
    move(channel, JOB, Message(b"x", "to", ""))
    with pytest.raises(NotMoved, match="'missing' did not take message a"):
        move(channel, JOB, Message(b"x", "missing", ""))
    assert channel.depth_of("to") == 1


class Source:
    """A channel, its consumer, and the time: deliveries arrive at the given seconds, and waiting takes no real time.

    Attributes:
        given_back: each call of give_back(), as the tags and the count of ready messages that the queue has reported.
    """

    stopping = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *arrivals: float, requeued: int = 0) -> None:
        self.now, self.pauses = 0.0, list[float]()
        self.is_open, self.ready = True, 0
        self.receiving: list[Receiving] = []
        self.given_back: list[tuple[list[int], int]] = []
        self._allowed = self._reported = 0
        self.left = deque(
            (when, replace(JOB, delivery_tag=tag, redelivered=tag <= requeued)) for tag, when in enumerate(arrivals, 1)
        )
        monkeypatch.setattr(transfer, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def consumer(self, _queue: Queue, receiving: Receiving) -> "Source":
        self.receiving.append(receiving)
        self._allowed = receiving.prefetch or 0
        return self

    def arrives(self, within: float) -> bool:
        if self._allowed and self.left and self.left[0][0] <= self.now + within:
            self.now = max(self.now, self.left[0][0])
            return True
        self.now += within
        return False

    def deliveries(self) -> Iterator[Delivery]:
        while True:
            self._allowed -= 1
            yield self.left.popleft()[1]

    def depth_of(self, _queue: str) -> int:
        assert self.is_open
        self._reported = min(self._reported + 1, self.ready)
        return self._reported

    def ask(self, _request: object, _within: float | None = None) -> SimpleNamespace:
        return SimpleNamespace(method=SimpleNamespace(message_count=self.depth_of("from"), consumer_count=0))

    def give_back(self, through: Iterable[Delivery]) -> None:
        if tags := [each.delivery_tag for each in through]:
            self.given_back.append((tags, self._reported))
            self.ready = tags[-1]

    def acknowledge(self, _delivery: Delivery) -> None:
        """Do nothing."""

    def closing(self) -> None:
        """Do nothing."""

    def publish(self, messages: Iterable[Message | None], *, mandatory: bool, window: int) -> Iterator[Receipt]:
        """Confirm each message a quarter of a second after it has been published."""
        assert mandatory
        assert window == transfer.AT_ONCE
        waiting, sequence = deque[Receipt](), 0
        for message in messages:
            if message is not None:
                sequence += 1
                waiting.append(Receipt(message, Confirmation.CONFIRMED, "", sequence))
            elif waiting:
                self.now += 0.25
                yield waiting.popleft()
        yield from waiting

    def moves(self, until: Until, *, keeps: bool = False, **options: Any) -> list[int]:
        """Move the messages, and return the tags of those that were moved."""

        def message_for(delivery: Delivery) -> Message | None:
            return None if keeps else redriven(delivery, "to")

        channel = cast(Channel, self)
        moving = QueueTransfer(channel, channel, "from", message_for, until=until, **options)
        return [delivery.delivery_tag for delivery in moving]


def test_a_message_in_transit_is_handled_before_a_consumer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that a command such as `move` leaves in the queue stay unacknowledged, and can use up the prefetch of
    the command's consumer. The command then replaces the consumer. Before that, it handles the messages that the
    broker has already sent to the old consumer.
    """
    unhandled = list[int]()

    class Busy(Source):
        def consumer(self, queue: Queue, receiving: Receiving) -> Source:
            unhandled.append(len(self.left))
            return super().consumer(queue, receiving)

        def give_back(self, through: Iterable[Delivery]) -> None:
            self.now = 0.5  # until then, the second message was in transit
            super().give_back(through)

    source = Busy(monkeypatch, 0.0, 0.5)
    assert source.moves(Until(moved=2), keeps=True, chooses=False) == []
    assert unhandled == [2, 0]


def test_waiting_for_requeued_messages_ends_when_they_are_ready_or_after_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a command such as `move` has requeued messages, it asks every 10 ms how many messages of the queue are
    ready. It stops asking when all requeued messages are ready, or when the given time is over.
    """
    source = Source(monkeypatch)
    source.ready = 3
    transfer.wait_for(cast(Channel, source), "from", 3)
    assert source.pauses == [0.01, 0.01]
    transfer.wait_for(cast(Channel, source), "from", 4, 0.03)
    assert source.pauses == [0.01] * 5


def test_idle_time_includes_the_time_spent_waiting_for_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an idle time limit of 1 s, a command such as `move` ends 1 s after the last message arrived. The time that
    it spends waiting for confirms counts towards this second.
    """
    source = Source(monkeypatch, 0.0, 0.9, 1.8, 2.9)
    assert source.moves(Until(idle=1.0)) == [1, 2, 3]
    assert source.now == pytest.approx(2.8)


def test_a_move_ends_immediately_when_the_queue_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an idle timeout, a command such as `move` ends as soon as the queue reports no ready messages. It does
    not wait for messages that arrive in the queue later.
    """
    source = Source(monkeypatch, 0.0, 0.5)
    assert source.moves(Until()) == [1]
    assert source.now == 0.25  # the time of the confirm


def test_a_move_without_a_condition_receives_no_more_messages_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a command such as `move` has a limit of N messages and no condition, it receives no more than N messages from
    the queue. With a condition, it may receive more, because some messages do not match.
    """
    every, some = Source(monkeypatch, 0.0, 0.0), Source(monkeypatch, 0.0, 0.0)
    for source, chooses in ((every, False), (some, True)):
        monkeypatch.setattr(transfer, "time", source)
        assert source.moves(Until(moved=1), chooses=chooses) == [1]
    assert [(each.prefetch, each.acknowledge, each.count) for each in every.receiving] == [(100, False, 1)]
    assert [each.count for each in some.receiving] == [None]


@pytest.mark.parametrize(("keeps", "until"), [(False, Until(moved=2, idle=2.0)), (True, Until(idle=2.0))])
def test_a_move_that_waits_for_messages_keeps_its_consumer(
    monkeypatch: pytest.MonkeyPatch, until: Until, *, keeps: bool
) -> None:
    """While a command such as `move` waits for further messages, it keeps the same consumer, whether it has moved the
    earlier messages or left them in the queue. Its limit on moved messages still applies.
    """
    source = Source(monkeypatch, 0.0, 1.0, 2.0)
    assert source.moves(until, keeps=keeps, chooses=keeps) == ([] if keeps else [1, 2])
    assert [each.count for each in source.receiving] == [until.moved]


def test_a_move_asks_ten_times_a_second_whether_a_queue_without_deliveries_has_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a queue reports ready messages, but the broker delivers none of them, a command such as `move` asks the
    broker every 0.1 s how many messages the queue has. After 10 s without a delivery, the command raises Unavailable.
    """
    source = Source(monkeypatch)
    source.ready = 1_000
    with pytest.raises(Unavailable, match="the broker delivers none"):
        source.moves(Until())
    assert source.now == pytest.approx(10.1, abs=0.11)
    assert source._reported == pytest.approx(102, abs=2)  # one more with each question


@pytest.mark.parametrize(("requeued", "chooses", "left"), [(3, True, 1), (3, False, 4), (0, True, 4)])
def test_all_requeued_messages_are_received_if_some_of_them_stay_in_the_queue(
    monkeypatch: pytest.MonkeyPatch, requeued: int, *, chooses: bool, left: int
) -> None:
    """If a command such as `move` leaves some of a quorum queue's requeued messages in the queue, because they do not
    meet its condition, it also receives all other requeued messages, even if it has already moved `--count` messages.
    At the end, it requeues all unmoved messages at the same time, so that they keep their order. Without a condition,
    or if no messages were requeued earlier, it stops receiving at `--count`.
    """
    source = Source(monkeypatch, 0.0, 0.0, 0.2, 0.25, 0.25, requeued=requeued)
    assert source.moves(Until(moved=1), chooses=chooses) == [1]
    assert len(source.left) == left
    assert source.given_back == ([([4], 0)] if left == 1 else [])


def test_a_move_ends_with_the_error_of_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection is lost, a command such as `move` raises the connection's error. mqtool does not requeue the
    messages that were received but not moved, because the broker does.
    """
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    monkeypatch.setattr(transfer, "_TOGETHER", 1)
    source = Source(monkeypatch, 0.0, 0.0)

    def message_for(delivery: Delivery) -> Message | None:
        if delivery.delivery_tag == 2:
            source.is_open = False
            raise Unavailable("gone")
        return None

    with pytest.raises(Unavailable, match="gone"):
        list(QueueTransfer(cast(Channel, source), None, "from", message_for, until=Until()))


def test_a_warning_says_that_a_message_stays_because_its_new_headers_do_not_fit_into_a_frame() -> None:
    """`move` and `dlq redrive` may add headers to the messages that they move, such as the number of redrives. If the
    headers and properties of a message no longer fit into a frame of the broker, the message stays in its queue. A
    warning names the message and the queue, and says how large the headers and properties would be, and how large the
    broker allows them to be.
    """
    received = Delivery(b"", "", "jobs", "jobs", False, {"message_id": "m"}, 1)
    changed = Message(b"", properties={"headers": {"h": "x" * 1000}}, message_id="m")
    assert stays(received, changed, 1027 + 8) is None
    assert stays(received, changed, 1027 + 7) == (
        "message m stays in 'jobs': the headers and properties are 1,027 bytes long; the broker takes up to 1,026"
    )
