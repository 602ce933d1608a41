"""Waiting messages on an embedded broker in this process: which are found, cancelled and delivered, and which stay."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mqtool import management
from mqtool.amqp import Channel, Connection, administration, parse_addresses
from mqtool.delays.wait_queues import RELAY, WaitQueue, wait_queue
from mqtool.errors import (
    AccessRefused,
    BadData,
    DeclaredDifferently,
    HeadersTooLarge,
    MqtoolError,
    NotConfirmed,
    Unavailable,
)
from mqtool.management import Management
from mqtool.message import DUE, Message
from mqtool.testing import EmbeddedBroker, Vhost
from mqtool.topology import DELAYED, Exchange, Queue
from mqtool.work.pending_delays import Exclusive, Waiting, WaitingMessages
from mqtool.work.transfer import NotMoved


class Place:
    """A virtual host with the queue `jobs`, and what waits in it.

    Attributes:
        skipped: the wait queues that were skipped, each with its error.
        left: the errors about messages that could not be delivered.
    """

    def __init__(self, broker: EmbeddedBroker, vhost: Vhost) -> None:
        self.vhost = vhost
        self.skipped: list[tuple[str, MqtoolError]] = []
        self.left: list[MqtoolError] = []
        self.connections: list[Connection] = []
        self.channel = self.connect()
        self.channel.declare(Queue("jobs", durable=True))
        self._api = Management(str(broker.management_url), "guest", "guest")

    def connect(self, kind: type[Connection] = Connection) -> Channel:
        self.connections.append(kind(parse_addresses(self.vhost.url)))
        return self.connections[-1].channel()

    def declare(self, name: str, *bodies: str, ttl: int = 3_600_000, key: str = "jobs", **more: Any) -> None:
        """Declare a wait queue for a queue, with these messages in it."""
        queue = wait_queue(name, ttl, "", key)
        self.channel.declare(queue._replace(arguments={**queue.arguments, **more}))
        self.fill(name, *(Message(body.encode(), message_id=body) for body in bodies))

    def fill(self, queue: str, *messages: Message) -> None:
        list(self.channel.publish(messages, routing_key=queue))

    def delete(self, queue: str) -> None:
        administration.delete_queue(self.channel, queue)

    def waiting(self, kind: type[Connection] = Connection) -> WaitingMessages:
        self.skipped.clear()
        return WaitingMessages(
            self.connect(kind), self._api, self.vhost.name, lambda *given: self.skipped.append(given)
        )

    def shown(self, to: str | None = None) -> list[str]:
        return [each.delivery.body.decode() for each in self.waiting().messages(to)]

    def now(self, *bodies: str, kind: type[Connection] = Connection) -> list[str]:
        """Deliver the messages with these bodies, or all messages without bodies given; return the delivered bodies."""

        def chosen(each: Waiting) -> bool:
            return not bodies or each.message.body.decode() in bodies

        return [each.message.body.decode() for each in self.waiting(kind).deliver(chosen, self.left.append)]

    def bodies(self, queue: str) -> list[str]:
        return [each.body.decode() for each in self.vhost.queue(queue).messages(0)]

    def has(self, queue: str, *bodies: str) -> bool:
        """Wait until a queue has exactly these messages, in this order."""
        return self.vhost.wait_for(lambda: self.bodies(queue) == [*bodies])


@pytest.fixture
def place(amqp_broker: EmbeddedBroker, amqp_vhost: Vhost) -> Iterator[Place]:
    place = Place(amqp_broker, amqp_vhost)
    yield place
    for each in place.connections:
        each.close()


def test_delayed_ls_lists_only_wait_queues_that_have_messages(place: Place, amqp_broker: EmbeddedBroker) -> None:
    """`delayed ls` lists the virtual host's wait queues that have messages, and the number of messages in each. It
    lists no other queues. Nor does it list a stream that looks like a wait queue, because publishers can forge the
    exchange and routing key of a message in a stream.
    """
    place.declare("jobs.delay.1h", "a", "b")
    place.declare("jobs.delay.2h", ttl=7_200_000)
    place.declare("jobs.wait.30m", "c", ttl=1_800_000)
    place.fill("jobs", Message(b"no delay"))
    place.channel.declare(Queue("s.relay", durable=True, arguments={RELAY: "s.relayed", "x-queue-type": "stream"}))
    place.fill("s.relay", Message(b"forged"))
    with amqp_broker.fresh_vhost() as other:
        elsewhere = Place(amqp_broker, other)
        elsewhere.declare("jobs.delay.1h", "x")
        elsewhere.connect().declare(wait_queue("e.delay.1h", 3_600_000, "", "e")._replace(exclusive=True))
        found = [*place.waiting().queues()]
        for each in elsewhere.connections:
            each.close()
    assert sorted(found, key=str) == [
        (WaitQueue("jobs.delay.1h", "", "jobs", 3600.0, "delay"), 2),
        (WaitQueue("jobs.wait.30m", "", "jobs", 1800.0, "retry"), 1),
    ]
    assert place.skipped == []


def test_an_exclusive_wait_queue_is_skipped(place: Place) -> None:
    """`delayed ls` lists the queues in which delayed messages wait. If such a queue is exclusive to another
    connection, `delayed ls` reports this as an error, and lists the other queues.
    """
    queue = wait_queue("a.delay.1h", 3_600_000, "", "a")
    place.connect().declare(queue._replace(exclusive=True))
    place.declare("jobs.delay.1h", "a")
    assert [(queue.name, count) for queue, count in place.waiting().queues()] == [("jobs.delay.1h", 1)]
    [(name, error)] = place.skipped
    assert (name, type(error), str(error)) == ("a.delay.1h", Exclusive, "it is exclusive to another connection")


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_a_wait_queue_that_is_deleted_while_queues_are_listed_is_skipped(place: Place, *, is_exclusive: bool) -> None:
    """If a wait queue is deleted while `delayed ls` is listing the wait queues, the command leaves out the deleted
    queue without an error. If another client declares an exclusive queue with the same name in the meantime, the
    command leaves out that queue, too, and reports the broker's error. It lists all other wait queues.
    """
    for hours in (1, 2, 3):
        place.declare(f"jobs.delay.{hours}h", "a", ttl=hours * 3_600_000)
    names = []
    for queue, _ in place.waiting().queues():
        names.append(queue.name)
        if queue.seconds == 3600:
            place.delete("jobs.delay.2h")
            if is_exclusive:
                place.channel.declare(Queue("jobs.delay.2h", exclusive=True))
    assert names == ["jobs.delay.1h", "jobs.delay.3h"]
    assert [(name, type(error)) for name, error in place.skipped] == [
        ("jobs.delay.2h", DeclaredDifferently)
    ] * is_exclusive


def test_delayed_ls_counts_the_messages_that_exchanges_of_type_x_delayed_message_hold(
    place: Place, amqp_broker: EmbeddedBroker
) -> None:
    """`delayed ls` lists the virtual host's exchanges of type x-delayed-message that hold messages, and the number of
    messages that each of them holds.
    """
    with amqp_broker.fresh_vhost() as other:
        elsewhere = Place(amqp_broker, other)
        for channel, name in ((place.channel, "empty"), (place.channel, "held"), (elsewhere.channel, "other")):
            channel.declare(Exchange(name, DELAYED, durable=True, arguments={"x-delayed-type": "fanout"}))
            held = Message(b"", "", name, {"headers": {"x-delay": 3_600_000}})
            list(channel.publish([] if name == "empty" else [held, held]))
        assert [*place.waiting().exchanges()] == [("held", 2)]
        elsewhere.connections[0].close()


def test_waiting_messages_are_shown_with_the_shortest_delay_first_and_stay_in_their_queues(place: Place) -> None:
    """`delayed show` shows the waiting messages for all destinations, or for one. Messages with the shortest delay come
    first. Each message is shown with the exchange and routing key that it will have when it is due, and stays in its
    wait queue.
    """
    place.declare("jobs.delay.2h", "d", ttl=7_200_000)
    place.declare("other.delay.1h", "c", key="other")
    place.declare("jobs.delay.1h", "a", "b")
    assert place.shown() == ["a", "b", "c", "d"]
    assert place.shown("jobs") == ["a", "b", "d"]
    assert place.has("jobs.delay.1h", "a", "b")
    first = next(place.waiting().messages())
    assert (first.queue.name, first.delivery.routing_key) == ("jobs.delay.1h", "jobs.delay.1h")
    assert (first.message.exchange, first.message.routing_key, first.message.message_id) == ("", "jobs", "a")
    assert place.has("jobs.delay.1h", "a", "b")


def test_delayed_now_replaces_the_forged_origin_of_a_message(place: Place) -> None:
    """The headers mqtool-exchange and mqtool-routing-key name the exchange and routing key with which a message was
    first published. If the publisher of a delayed message has forged them, `delayed now` replaces them with the
    exchange and routing key with which the message came to its wait queue.
    """
    place.declare("jobs.delay.1h")
    place.channel.declare(Exchange("public", "fanout"))
    place.channel.bind(Queue("jobs.delay.1h"), Exchange("public"))
    headers = {"mqtool-exchange": "forged", "mqtool-routing-key": "forged", "a": 1}
    list(place.channel.publish([Message(b"x", "k", "public", {"headers": headers, "type": "t"})]))
    assert place.now() == ["x"]
    [came] = place.vhost.queue("jobs").messages()
    assert came.headers == {"a": 1, "mqtool-exchange": "public", "mqtool-routing-key": "k"}
    assert came.properties["type"] == "t"


def test_only_the_chosen_messages_are_cancelled(place: Place) -> None:
    """`delayed cancel` deletes the chosen messages from their wait queues, and leaves the others in their order."""
    place.declare("jobs.delay.1h", "a", "b", "c", "d")
    place.declare("jobs.delay.2h", "e", ttl=7_200_000)
    cancelled = place.waiting().cancel(lambda each: each.message.body in (b"a", b"c", b"e"))
    assert [each.message.message_id for each in cancelled] == ["a", "c", "e"]
    assert place.has("jobs.delay.1h", "b", "d")
    assert place.has("jobs.delay.2h")
    assert place.bodies("jobs") == []


def test_only_the_chosen_messages_are_delivered(place: Place) -> None:
    """`delayed now` publishes the chosen messages to their destinations before they are due, and removes them from
    their wait queues. The others stay in their order.
    """
    place.declare("jobs.delay.1h", "a", "b", "c", "d")
    assert place.now("a", "c") == ["a", "c"]
    assert place.has("jobs.delay.1h", "b", "d")
    assert place.bodies("jobs") == ["a", "c"]
    assert place.left == []


def test_no_message_is_cancelled_or_delivered_after_a_signal(place: Place) -> None:
    """If a signal stops `delayed cancel` or `delayed now`, the message that is being handled is the last one; all
    others stay in their wait queues. If the signal arrives while no wait queue is being read, it interrupts the
    command.
    """
    place.declare("jobs.delay.1h", "a", "b", "c")
    place.declare("jobs.delay.2h", "d", ttl=7_200_000)
    waiting = place.waiting()
    with pytest.raises(KeyboardInterrupt):
        waiting.stop()
    cancelling = waiting.cancel(lambda _: True)
    assert next(cancelling).message.body == b"a"
    waiting.stop()
    assert [*cancelling] == []
    with pytest.raises(KeyboardInterrupt):
        waiting.stop()
    delivering = place.waiting().deliver(lambda _: True, place.left.append)
    assert next(delivering).message.body == b"b"
    delivering.close()
    place.vhost.wait_for(lambda: place.bodies("jobs.delay.1h") == ["c"])
    assert (place.bodies("jobs.delay.2h"), place.bodies("jobs"), place.left) == (["d"], ["b"], [])


def test_mqtool_requests_the_bindings_of_a_dead_letter_exchange_once_for_all_wait_queues(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait queues for `amq.topic` dead-letter to the exchange `mqtool.amq.topic.due`. To find out where this
    exchange routes messages, mqtool requests the exchange's bindings once, however many wait queues there are. It
    requests no bindings for `jobs.delay.1h`, because the name of this wait queue already shows that its messages are
    for `jobs`.
    """
    requested = []
    bindings_from = management.bindings_from
    monkeypatch.setattr(management, "bindings_from", lambda *given: requested.append(given[2]) or bindings_from(*given))
    place.declare("jobs.delay.1h", "a")
    due = Exchange("mqtool.amq.topic.due", "fanout")
    place.channel.declare(due)
    place.channel.bind(Exchange("amq.topic", "topic"), due)
    for hours in (1, 2):
        queue = wait_queue(f"mqtool.amq.topic.exchange.delay.{hours}h", hours * 3_600_000, due.name)
        place.channel.declare(queue)
        place.fill(queue.name, Message(b"x"))
    assert sorted(queue.to for queue, _ in place.waiting().queues()) == ["amq.topic", "amq.topic", "jobs"]
    assert requested == ["mqtool.amq.topic.due"]


@pytest.mark.parametrize("leads_on", [True, False])
def test_a_message_with_two_waits_is_delivered_only_if_the_second_wait_queue_leads_to_amq_topic(
    place: Place, *, leads_on: bool
) -> None:
    """A long delay for `amq.topic` is divided between two wait queues: the first one dead-letters to an exchange to
    which the second one is bound. `delayed now` delivers the messages of the first queue to `amq.topic` only if the
    second queue dead-letters to `mqtool.amq.topic.due`, which routes to `amq.topic`. Otherwise, the messages stay in
    the first queue, and an error says that this queue only claims to be for `amq.topic`.
    """
    place.channel.bind(Queue("jobs"), Exchange("amq.topic", "topic"), "#")
    router, due = Exchange("mqtool.amq.topic.exchange.delay", "topic"), Exchange("mqtool.amq.topic.due", "fanout")
    for exchange in (router, due):
        place.channel.declare(exchange)
    place.channel.bind(Exchange("amq.topic", "topic"), due)
    second = wait_queue(f"{router.name}.1m", 60_000, due.name if leads_on else "amq.fanout")
    place.channel.declare(second)
    place.channel.bind(second, router, "#")
    first = wait_queue(f"{router.name}.2h.more", 7_200_000, router.name)
    place.channel.declare(first)
    place.fill(first.name, Message(b"x", message_id="m"))
    assert [queue.exchange for queue, _ in place.waiting().queues()] == ["amq.topic" if leads_on else None]
    assert place.now() == ["x"] * leads_on
    if leads_on:
        assert place.has("jobs", "x")
    else:
        [error] = place.left
        assert str(error) == (
            f"message m stays in '{first.name}', which says that its messages are for 'amq.topic': anyone who declares "
            "a queue can say that; if it is true, the broker delivers it when it is due"
        )
        assert place.has(first.name, "x")


@pytest.mark.parametrize(("used", "shown"), [("due", "due"), ("other", "other"), ("other", "due")])
def test_a_message_for_amq_topic_is_delivered_only_if_its_wait_queue_dead_letters_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, used: str, shown: str
) -> None:
    """Anyone can declare a queue with the name of a wait queue for `amq.topic`. `delayed now` therefore delivers the
    queue's messages to `amq.topic` only if the broker itself would do so through the queue's dead-letter exchange. It
    is not enough that the management API shows the correct dead-letter exchange: if a queue was declared with two
    dead-letter exchanges, RabbitMQ uses one and shows the other.
    """
    place.channel.bind(Queue("jobs"), Exchange("amq.topic", "topic"), "#")
    exchanges = {"due": "mqtool.amq.topic.due", "other": "mqtool.amq.topic.other"}
    for each in exchanges.values():
        place.channel.declare(Exchange(each, "fanout"))
    place.channel.bind(Exchange("amq.topic", "topic"), Exchange(exchanges["due"]))
    name = "mqtool.amq.topic.exchange.delay.1h"
    place.channel.declare(wait_queue(name, 3_600_000, exchanges[used]))
    place.fill(name, Message(b"x", message_id="m"))
    listed = management.queues

    def showing(*given: Any) -> Iterator[dict[str, Any]]:
        for view in listed(*given):
            is_wait_queue = view["name"] == name
            changed = {"x-dead-letter-exchange": exchanges[shown]} if is_wait_queue else {}
            yield {**view, "arguments": {**view["arguments"], **changed}}

    monkeypatch.setattr(management, "queues", showing)
    is_proven = used == "due"
    assert [queue.exchange for queue, _ in place.waiting().queues()] == ["amq.topic" if is_proven else None]
    assert place.now() == ["x"] * is_proven
    assert place.has("jobs", *["x"] * is_proven)


def test_a_message_behind_one_that_is_due_later_is_shown_as_waiting_behind_it(place: Place) -> None:
    """Messages leave a wait queue in their order. If a message is due later than the one behind it, `delayed show`
    therefore marks the second message as waiting behind the first.
    """
    place.declare("jobs.delay.1h")
    now = round(time.time() * 1000)
    first = Message(b"first", properties={"headers": {DUE: now + 3_600_000}})
    second = Message(b"second", properties={"headers": {DUE: now + 60_000}, "expiration": "60000"})
    place.fill("jobs.delay.1h", first, second)
    assert [each.is_behind for each in place.waiting().messages()] == [False, True]


def test_a_message_whose_destination_may_be_forged_is_not_delivered(place: Place) -> None:
    """Anyone can declare a queue like those in which `mqtool delayed relay` keeps messages, with an argument that
    names any exchange as the messages' destination. For the queue `tasks.relay`, `delayed now` therefore accepts only
    the exchange `tasks.relayed`. If the argument names another exchange, each message stays in the queue, with an
    error that names the message, the queue and the exchange.
    """
    place.channel.declare(Queue("tasks.relay", durable=True, arguments={RELAY: "orders"}))
    place.fill("tasks.relay", Message(b"x", message_id="m"))
    place.declare("jobs.delay.1h", "a")
    assert place.now() == ["a"]
    [error] = place.left
    assert type(error) is BadData
    assert str(error) == (
        "message m stays in 'tasks.relay', which says that its messages are for 'orders': anyone who declares a queue "
        "can say that; a relay delivers it"
    )
    assert place.has("tasks.relay", "x")


def test_a_message_whose_destination_queue_does_not_exist_stays_in_its_wait_queue(place: Place) -> None:
    """If the destination queue of a waiting message does not exist, `delayed now` leaves the message in its wait queue,
    and reports an error that names the message and the destination. It delivers messages for other destinations.
    """
    place.declare("gone.delay.1h", "x", key="gone")
    place.declare("jobs.delay.1h", "a")
    assert place.now() == ["a"]
    [error] = place.left
    assert (type(error), str(error)) == (NotMoved, "'gone' did not take message x: NO_ROUTE (312)")
    assert place.has("gone.delay.1h", "x")


def test_a_message_whose_exchange_was_deleted_stays_in_its_wait_queue(place: Place) -> None:
    """If the destination exchange of waiting messages has been deleted, `delayed now` leaves the messages in their wait
    queue. For each, it reports an error that names the message, the queue and the exchange. It delivers messages for
    other destinations.
    """
    place.channel.declare(wait_queue("logs.exchange.delay.1h", 3_600_000, "logs"))
    place.fill("logs.exchange.delay.1h", Message(b"x", message_id="x"), Message(b"y", message_id="y"))
    place.declare("jobs.delay.2h", "a", ttl=7_200_000)
    assert place.now() == ["a"]
    stay = "stays in 'logs.exchange.delay.1h': no exchange 'logs'"
    assert [type(error) for error in place.left] == [NotMoved, NotMoved]
    assert [str(error).partition(" in vhost")[0] for error in place.left] == [f"message x {stay}", f"message y {stay}"]
    assert place.has("logs.exchange.delay.1h", "x", "y")
    assert place.skipped == []


def test_a_message_whose_headers_would_not_fit_into_a_frame_stays_in_its_wait_queue(place: Place) -> None:
    """If a publisher has forged the headers mqtool-exchange and mqtool-routing-key, `delayed now` replaces them with
    the exchange and routing key with which the message came to its wait queue. If the headers are then too large for
    a frame, the message stays in its wait queue, and an error names the message and the queue. `delayed now` delivers
    other messages.
    """
    place.declare("jobs.delay.1h", "a")
    place.channel.declare(Exchange("public", "fanout"))
    place.channel.bind(Queue("jobs.delay.1h"), Exchange("public"))
    headers = {"mqtool-exchange": "", "padding": "x" * (131_072 - 70)}
    list(place.channel.publish([Message(b"full", "k", "public", {"headers": headers}, "m")]))
    assert place.now() == ["a"]
    [error] = place.left
    assert type(error) is HeadersTooLarge
    assert str(error).startswith("message m stays in 'jobs.delay.1h': the headers and properties are 131,")
    assert place.has("jobs.delay.1h", "full")


def test_a_wait_queue_that_is_deleted_while_messages_are_read_is_skipped(place: Place) -> None:
    """If a wait queue is deleted after it was listed, and before `delayed show` reads its messages, `delayed show`
    continues with the next queue and reports no error, since no message is left in the deleted one.
    """
    place.declare("jobs.delay.1h", "a")
    place.declare("jobs.delay.2h", "b", ttl=7_200_000)
    place.declare("jobs.delay.3h", "c", ttl=10_800_000)
    found = []
    for each in place.waiting().messages():
        found.append(each.message.body)
        place.delete("jobs.delay.2h")
    assert found == [b"a", b"c"]
    assert place.skipped == []


def test_a_wait_queue_that_another_client_consumes_exclusively_is_skipped(place: Place) -> None:
    """If another client has an exclusive consumer on a wait queue, `delayed show` and `delayed now` cannot read this
    queue. They report the broker's error for the queue, and show or deliver the messages of the other wait queues.
    """
    place.declare("a.delay.1h", "x", key="a")
    place.declare("jobs.delay.1h", "a", "b")
    hers = place.connect()
    hers.ask(administration.prefetch_request(1))
    hers.ask(lambda pika, done: pika.basic_consume("a.delay.1h", lambda *_: None, exclusive=True, callback=done))
    place.declare("a.delay.1h", "y", key="a")
    for found in (place.shown, place.now):
        assert found() == ["a", "b"]
        assert [(name, type(error)) for name, error in place.skipped] == [("a.delay.1h", AccessRefused)]


def test_reading_wait_queues_ends_if_the_connection_is_lost(place: Place) -> None:
    """If the connection is lost while `delayed show` is reading waiting messages, it raises Unavailable, and does not
    report the loss as an error of one of the wait queues.
    """
    place.declare("jobs.delay.1h", "a")
    place.declare("jobs.delay.2h", "b", ttl=7_200_000)
    messages = place.waiting().messages()
    next(messages)
    place.vhost.faults.cut_connections()
    with pytest.raises(Unavailable):
        next(messages)
    assert place.skipped == []


class Impatient(Connection):
    """A connection whose channels wait only 50 ms for a confirm."""

    def channel(self, **options: Any) -> Channel:
        return super().channel(**{**options, "confirm_timeout": 0.05})


def test_delayed_now_ends_if_a_confirm_does_not_arrive(place: Place) -> None:
    """If the broker does not confirm a message in time, `delayed now` raises NotConfirmed, and tries no other wait
    queue, because later messages would not be confirmed either. The messages stay in their wait queues.
    """
    place.declare("jobs.delay.1h", "a", "b")
    place.declare("jobs.delay.2h", "c", ttl=7_200_000)
    with place.vhost.faults.delay_confirms(), pytest.raises(NotConfirmed):
        place.now(kind=Impatient)
    assert place.has("jobs.delay.1h", "a", "b")
    [c] = place.vhost.queue("jobs.delay.2h").messages()
    assert (c.body, c.redelivered) == (b"c", False)
    assert (place.skipped, place.left) == ([], [])


def test_a_message_near_the_delivery_limit_is_reported_even_if_no_further_queue_is_read(place: Place) -> None:
    """`delayed show` requeues the messages that it shows. If a message is so near the delivery limit of its wait queue
    that the queue would drop it if it were requeued once more, mqtool reports an error for this queue, even if reading
    stops before the next queue.
    """
    place.declare("jobs.delay.1h", "a", "b", **{"x-queue-type": "quorum", "x-delivery-limit": 3})
    place.declare("jobs.delay.2h", "c", ttl=7_200_000)
    first, second, third = (place.connect() for _ in range(3))
    first.get("jobs.delay.1h")
    second.get("jobs.delay.1h")
    second.close()
    assert place.has("jobs.delay.1h", "b")
    third.get("jobs.delay.1h")
    first.close()
    assert place.has("jobs.delay.1h", "a")
    third.close()
    assert place.has("jobs.delay.1h", "a", "b")
    messages = place.waiting().messages()
    assert [next(messages).message.body for _ in range(2)] == [b"a", b"b"]
    messages.close()
    [(name, error)] = place.skipped
    assert name == "jobs.delay.1h"
    assert "'jobs.delay.1h' drops it if it is requeued once more" in str(error)
