"""The events of single messages, as `mqtool ui` shows them: see docs/reference/events.md."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mqtool.broker.embedded.model import message_events
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, encode_address
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.message_events import EventFields, MessageEvents
from mqtool.broker.embedded.model.queue import Why
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.field_tables import Int32
from tests.unit.embedded.test_queue import FakeClock, FakeConsumer, add_queue, message


class Channel:
    """A channel in confirm mode if `next`, the number of its next publish, is set."""

    next: int | None = None


@dataclass(eq=False)
class Consumer(FakeConsumer):
    client: object = field(default_factory=Channel)


class Scene:
    """A virtual host that is watched, with the queue `q`."""

    def __init__(self, vhost: VirtualHost, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vhost, self.clock = vhost, clock
        self.seconds = 1000.0
        times = {
            "monotonic": lambda: self.seconds,
            "monotonic_ns": lambda: int(self.seconds * 10**9),
            "time": lambda: 1_700_000_000.5,
        }
        monkeypatch.setattr(message_events, "time", SimpleNamespace(**times))
        self.q = add_queue(vhost)
        self.channel = Channel()
        self.found = self.new_events()
        vhost.watch(self.found)
        self.found.refill()
        self.seen = self.found.number

    def new_events(self) -> MessageEvents:
        """Return the events of a broker that starts now."""
        return MessageEvents(
            self.vhost,
            lambda source: {"client": type(source).__name__},
            lambda source: source.next if isinstance(source, Channel) else None,
            lambda consumer, queue: None if consumer is None else f"{queue.name}/{consumer.tag}",
        )

    def publish(self, key: str = "q", exchange: str = "", **headers: Any) -> BrokerMessage:
        table = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = message(key=key, headers=table).replace(address=(exchange, key))
        routing = self.vhost.route(self.vhost.exchanges[exchange], sent)
        if routing.message.address not in self.found.skipped:
            routing.source = self.channel
        self.vhost.enqueue(routing)
        return routing.message

    def events(self) -> list[EventFields]:
        """Return the events since the last call."""
        found = self.found.since(self.seen)
        assert found is not None
        self.seen = self.found.number
        assert [each.number for each in found] == sorted({each.number for each in found})
        assert all((each.message is not None) == (each.fields["what"] in _WITH_MESSAGE) for each in found)
        return [each.fields for each in found]

    def what(self) -> list[str]:
        return [each["what"] for each in self.events()]

    def get(self, *, no_ack: bool = False) -> BacklogEntry:
        entry = self.q.get(no_ack=no_ack)
        assert entry is not None
        return entry

    def exhaust(self) -> None:
        """Report 50 events, so that no new message is shown before the next request."""
        for _ in range(50):
            self.found.unknown_address(self.channel, "x")
        self.events()

    def pass_by(self, seconds: float) -> None:
        """Let this many seconds pass until the next request of `mqtool ui`."""
        self.seconds += seconds
        self.found.refill()


_WITH_MESSAGE = ("published", "replied", "unknown-exchange")
_FROM = {"client": "Channel"}


@pytest.fixture
def scene(vhost: VirtualHost, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(vhost, clock, monkeypatch)


# What happens to a message


def test_a_message_is_shown_from_its_publication_to_its_acknowledgement(scene: Scene) -> None:
    """`mqtool ui` gets an event when a message that it shows is published, becomes ready in a queue, is delivered, is
    requeued (with the reason) or is acknowledged. If the message is routed to several queues, each queue has its own
    copy. All events after `published` contain the number of the copy to which they belong.
    """
    before, consumer = scene.found.number, Consumer()
    scene.publish()
    entry = scene.get()
    scene.q.requeue([entry], Why.REJECTED)
    scene.clock.pass_by(0)
    assert scene.found.shown == {entry.position: ("q", True)}
    scene.get()
    scene.found.delivered(scene.q, entry, consumer, no_ack=False)
    scene.q.acknowledge(entry)
    of = {"queue": "q", "copy": entry.position}
    got = {"what": "delivered", **of, "consumer": None, "to": None, "no_ack": False}
    assert scene.events() == [
        {"what": "published", "message": 1, "from": _FROM, "paths": [["", "q"]]},
        {"what": "ready", "message": 1, **of},
        got | {"redelivered": False},
        {"what": "requeued", **of, "why": "rejected"},
        got | {"redelivered": True},
        got | {"redelivered": True, "consumer": "q/t", "to": _FROM},
        {"what": "acknowledged", **of},
    ]
    assert scene.found.shown == {}
    first = scene.found.since(before)
    assert first is not None
    assert (first[0].number, first[0].at, first[0].message is entry.message) == (before + 1, 1_700_000_000.5, True)
    scene.publish()
    last = scene.get(no_ack=True)
    assert scene.events()[0]["message"] == 2
    assert (scene.found.shown, last.position) == ({}, entry.position + 1)


def test_messages_removed_by_a_purge_or_with_their_queue_are_no_longer_shown(scene: Scene) -> None:
    """When a queue is purged, `mqtool ui` no longer shows the queue's ready messages. It still shows the queue's
    unacknowledged messages, and the messages of other queues. If an unacknowledged message is requeued after its queue
    was deleted, the broker drops the message, and `mqtool ui` no longer shows it.
    """
    other = add_queue(scene.vhost, "other")
    for key in ("q", "q", "other"):
        scene.publish(key)
    entry = scene.get()
    scene.events()
    scene.q.purge()
    assert scene.events() == [{"what": "purged", "queue": "q"}]
    kept = [position for position, (_, is_ready) in scene.found.shown.items() if not is_ready]
    assert (kept, len(scene.found.shown)) == ([entry.position], 2)
    scene.q.delete()
    scene.q.requeue([entry])
    scene.clock.pass_by(0)
    assert scene.what() == ["purged"]
    assert {*scene.found.shown.values()} == {("other", True)}
    assert other.get(no_ack=True) is not None


def test_a_dead_letter_is_shown_on_its_way_into_its_next_queue(scene: Scene) -> None:
    """When a message on display is dead-lettered, `mqtool ui` shows the reason, the queue that the message leaves,
    and the queue that it enters. `mqtool ui` shows this even while it leaves out newly published messages because
    there are too many. A dead letter that reaches no queue is shown as dropped, and a rejected message of a queue
    without a dead-letter exchange as discarded.
    """
    source = add_queue(scene.vhost, "source", x_dead_letter_exchange="", x_dead_letter_routing_key="q")
    nowhere = add_queue(scene.vhost, "nowhere", x_dead_letter_exchange="", x_dead_letter_routing_key="missing")
    for key in ("source", "nowhere", "q"):
        scene.publish(key)
    taken = [(queue, queue.get(no_ack=False)) for queue in (source, nowhere, scene.q)]
    scene.exhaust()
    for queue, entry in taken:
        assert entry is not None
        queue.reject(entry)
    scene.clock.pass_by(1)
    events = scene.events()
    assert [each["what"] for each in events] == [
        "dead-lettered", "published", "ready", "dead-lettered", "published", "dropped", "discarded",
    ]  # fmt: skip
    copies = [entry.position for _, entry in taken if entry is not None]
    ended = {"what": "dead-lettered", "queue": "source", "copy": copies[0], "reason": "rejected", "exchange": ""}
    assert (events[0], events[3]) == (ended, ended | {"queue": "nowhere", "copy": copies[1]})
    assert events[6] == {"what": "discarded", "queue": "q", "copy": copies[2], "reason": "rejected"}
    origin = {"queue": "source", "reason": "rejected"}
    assert events[1] == {"what": "published", "message": 4, "from": origin, "paths": [["", "q"]]}
    assert (events[2]["message"], events[4]["paths"], events[5]) == (4, [], {"what": "dropped", "message": 5})


def test_a_delayed_message_is_shown_until_its_delay_is_over(scene: Scene) -> None:
    """While an x-delayed-message exchange holds a message back, `mqtool ui` shows the time until which the message is
    delayed. When the delay is over, it shows that the exchange publishes the message, and whether the message is ready
    in a queue or was dropped.
    """
    exchange = BrokerExchange("d", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    scene.vhost.add_exchange(exchange)
    scene.vhost.bind(exchange, scene.q, "q", {})
    scene.events()
    scene.publish("q", "d", x_delay=Int32(5))
    scene.publish("lost", "d", x_delay=Int32(6))
    now = scene.clock.now()
    published, delayed, *others = scene.events()
    assert published == {"what": "published", "message": 1, "from": _FROM, "paths": []}
    copy = delayed["copy"]
    assert delayed == {"what": "delayed", "message": 1, "exchange": "d", "copy": copy, "until": now + 5}
    assert [each["what"] for each in others] == ["published", "delayed"]
    assert scene.found.shown == {copy: ("d", True), copy + 1: ("d", True)}
    assert scene.found.publishing == {}
    scene.exhaust()
    scene.clock.pass_by(10)
    released = {"what": "published", "message": 3, "from": {"exchange": "d", "copy": copy}, "paths": [["d", "q"]]}
    events = scene.events()
    assert events[0] == released
    assert [each["what"] for each in events] == ["published", "ready", "published", "dropped"]
    assert {*scene.found.shown.values()} == {("q", True)}


def test_a_delayed_message_that_was_left_out_is_not_shown_when_its_delay_is_over(scene: Scene) -> None:
    """If too many messages with the same exchange and routing key are published, `mqtool ui` leaves out some of them.
    It shows no event of a delayed message that it has left out, not even when the delay is over. If a later message
    with this exchange and routing key is not left out, all its events are shown.
    """
    exchange = BrokerExchange("d", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    scene.vhost.add_exchange(exchange)
    scene.vhost.bind(exchange, scene.q, "q", {})
    scene.exhaust()
    scene.publish("q", "d")
    scene.publish("q", "d", x_delay=Int32(5))
    scene.clock.pass_by(10)
    assert (scene.events(), len(scene.q.backlog)) == ([], 2)
    scene.publish("q", "d", x_delay=Int32(5))
    scene.pass_by(1)
    scene.publish("q", "d")
    assert scene.what() == ["published", "ready"]


def test_unroutable_messages_and_messages_that_a_full_queue_refuses_are_shown(scene: Scene) -> None:
    """`mqtool ui` shows whether an unroutable message was returned or dropped, and whether a full queue refused a
    message. It shows this only if it has also shown that the message was published.
    """
    add_queue(scene.vhost, "full", x_max_length=Int32(0), x_overflow="reject-publish")
    lost = scene.publish("missing")
    scene.found.unroutable(lost, returned=True)
    scene.found.unroutable(lost, returned=False)
    scene.publish("full")
    events = scene.events()
    assert [each["what"] for each in events] == ["published", "returned", "dropped", "published", "refused"]
    assert (events[0]["paths"], events[1:3]) == (
        [], [{"what": "returned", "message": 1}, {"what": "dropped", "message": 1}]
    )  # fmt: skip
    assert events[4] == {"what": "refused", "message": 2, "queue": "full"}
    scene.pass_by(0)
    scene.found.unroutable(lost, returned=True)
    scene.found.refused(scene.q, lost)
    assert scene.events() == []


def test_a_confirm_is_shown_with_the_messages_that_it_confirms(scene: Scene) -> None:
    """`mqtool ui` shows each publisher confirm with the number of messages that the confirm covers, and lists those
    messages that are on display. It leaves out a confirm if none of the confirmed messages are on display. It shows a
    nack as a separate event for each nacked message on display.
    """
    for number in (1, 3, 4, 7):
        scene.channel.next = number
        scene.publish()
    scene.channel.next = None
    scene.publish()
    scene.events()
    scene.found.confirmed(scene.channel, range(1, 1), [])
    scene.found.confirmed(Channel(), range(1, 9), [])
    scene.found.confirmed(scene.channel, range(1, 5), [2, 3])
    scene.found.confirmed(scene.channel, range(5, 7), [])
    scene.found.confirmed(scene.channel, range(7, 8), [7])
    scene.found.confirmed(scene.channel, range(1, 9), [])
    confirmed = {"what": "confirmed", "from": _FROM}
    assert scene.events() == [
        confirmed | {"messages": [2], "count": 1, "nack": True},
        confirmed | {"messages": [1, 3], "count": 2, "nack": False},
        confirmed | {"messages": [4], "count": 1, "nack": True},
    ]


def test_the_shortest_path_through_exchanges_to_each_queue_is_shown(scene: Scene) -> None:
    """`mqtool ui` shows the path that a message takes from its exchange to each queue. If there are several paths to a
    queue, it shows the shortest one. The path can lead through bound and alternate exchanges, even if exchanges are
    bound to each other in a cycle.
    """
    vhost = scene.vhost
    first = BrokerExchange("first", "fanout")
    second = BrokerExchange("second", "direct", arguments={"alternate-exchange": "last"})
    last, far, unused = BrokerExchange("last", "fanout"), BrokerExchange("far", "headers"), add_queue(vhost, "unused")
    a, b, c, d = (add_queue(vhost, name) for name in "abcd")
    for exchange in (first, second, last, far):
        vhost.add_exchange(exchange)
    bindings: list[tuple[BrokerExchange, Any, str]] = [
        (first, second, ""), (first, a, ""), (second, first, "k"), (second, a, "k"), (second, b, "cc"), (last, c, ""),
        (first, last, ""),
    ]  # fmt: skip
    for source, destination, key in bindings:
        vhost.bind(source, destination, key, {})
    vhost.bind(last, far, "", {})
    vhost.bind(far, d, "", {"h": "yes"})
    scene.events()
    scene.publish("k", "first", CC=["cc"], h="yes")
    scene.publish("none", "second")
    scene.publish("a", "", BCC=["b", "missing"])
    scene.pass_by(1)
    assert [each["paths"] for each in scene.events() if each["what"] == "published"] == [
        [["first", "a"], ["first", "second", "b"], ["first", "last", "c"], ["first", "last", "far", "d"]],
        [["second", "last", "c"]],
        [["", "a"], ["", "b"]],
    ]  # fmt: skip
    routing = vhost.route(first, message(key="k").replace(address=("first", "k")))
    vhost.delete_exchange(first)
    vhost.enqueue(routing)
    assert scene.events()[0]["paths"] == [["first", "a"], ["first", "c"]]
    assert not unused.unacked


# Streams, and events without a message of their own


def test_a_message_in_a_stream_is_shown_with_its_consumers(scene: Scene) -> None:
    """If a message is published to a stream over AMQP or the stream protocol, `mqtool ui` shows that it is appended to
    the stream, and which consumers read it. If a consumer reads a message that is not shown, `mqtool ui` only changes
    the offset that it shows for this consumer.
    """
    stream = add_queue(scene.vhost, "s", durable=True, x_queue_type="stream")
    scene.events()
    scene.publish("s")
    scene.found.streamed(scene.channel, "s", iter([(5, message(key="s")), (6, message(key="s"))]))
    published, appended = {"what": "published", "from": _FROM}, {"what": "appended", "queue": "s"}
    assert scene.events() == [
        published | {"message": 1, "paths": [["", "s"]]},
        appended | {"message": 1, "copy": 0},
        published | {"message": 2, "paths": [["s"]]},
        appended | {"message": 2, "copy": 5},
        published | {"message": 3, "paths": [["s"]]},
        appended | {"message": 3, "copy": 6},
    ]
    for position in (5, 7):
        scene.found.delivered(stream, BacklogEntry(message(), position), Consumer(), no_ack=False)
    scene.found.read("s", range(4, 7), "reader", scene.channel)
    scene.found.read("other", range(4, 7), "reader", scene.channel)
    read = {"what": "read", "queue": "s", "to": _FROM}
    assert scene.events() == [
        read | {"copy": 5, "consumer": "s/t", "no_ack": False},
        read | {"copy": 5, "consumer": "reader", "no_ack": True, "offset": 6},
        read | {"copy": 6, "consumer": "reader", "no_ack": True, "offset": 6},
    ]
    assert (scene.found.readers, scene.found.shown) == ({"s/t": 7}, {})


def test_stored_offsets_replies_and_messages_to_missing_destinations_are_shown(scene: Scene) -> None:
    """`mqtool ui` shows offsets that clients store in streams, direct replies, and messages to exchanges or addresses
    that do not exist. To reset a stored offset, a client stores -1 as an unsigned number. `mqtool ui` shows this offset
    as -1.
    """
    add_queue(scene.vhost, "s", durable=True, x_queue_type="stream")
    scene.events()
    scene.found.stored("s", "reader", 2**63 - 1, scene.channel)
    scene.found.stored("s", "reader", 2**64 - 1, scene.channel)
    scene.found.stored("gone", "reader", 2**63, scene.channel)
    assert scene.found.offsets == {"s": ("reader", -1), "gone": ("reader", -1)}
    scene.found.replied(scene.channel, message(), None)
    scene.found.replied(None, message(), scene.channel)
    scene.found.unknown_exchange(scene.channel, message())
    scene.found.unknown_address(scene.channel, "/queues/x")
    stored = {"what": "stored", "queue": "s", "name": "reader", "offset": 2**63 - 1, "from": _FROM}
    assert scene.events() == [
        stored,
        stored | {"offset": -1},
        stored | {"queue": "gone", "offset": -1},
        {"what": "replied", "message": 1, "from": _FROM, "to": {"client": "NoneType"}},
        {"what": "replied", "message": 2, "from": {"client": "NoneType"}, "to": _FROM},
        {"what": "unknown-exchange", "from": _FROM},
        {"what": "unknown-address", "from": _FROM, "address": "/queues/x"},
    ]
    scene.found.readers["r"] = 5
    before = scene.found.number, scene.found.changes
    scene.found.changed()
    assert (scene.found.number, scene.found.changes) == (before[0] + 1, before[1] + 1)
    assert (scene.found.offsets, scene.found.readers) == ({"s": ("reader", -1)}, {})


# How much is shown


def test_at_most_100_new_messages_per_second_are_recorded(scene: Scene) -> None:
    """For `mqtool ui`, the broker records at most 100 new messages per second, and at most 20 per second with the
    same exchange and routing key. However fast messages arrive, it records at most 50 of them between two requests of
    `mqtool ui`, and skips the others.
    """
    add_queue(scene.vhost, "other")

    def shown(*keys: str) -> list[int]:
        for key in keys:
            for _ in range(60):
                scene.publish(key)
        addresses = [each.message.address for each in scene.found.since(scene.seen) or () if each.message is not None]
        scene.events()
        return [addresses.count(encode_address("", key)) for key in keys]

    assert shown("q", "other", "a", "b") == [20, 20, 10, 0]
    assert scene.found.skipped == {encode_address("", key) for key in ("q", "other", "a", "b")}
    assert shown("q") == [0]
    scene.pass_by(0.25)
    assert scene.found.skipped == set()
    assert shown("q") == [0], "the same second"
    assert shown("c", "d") == [20, 5]
    scene.pass_by(0.75)
    assert shown("q", "c", "d") == [20, 20, 10]
    scene.pass_by(100)
    assert shown("q", "c", "d") == [20, 20, 10]
    scene.pass_by(1)
    for stream in ("s", "t\udcff", "s"):
        scene.found.streamed(scene.channel, stream, iter([(number, message()) for number in range(30)]))
    assert scene.what() == ["published", "appended"] * 40


def test_events_without_a_message_in_a_queue_count_towards_the_limit_of_new_messages(scene: Scene) -> None:
    """Events that do not belong to a message in a queue, such as direct replies, count towards the same limit as new
    messages: between two requests of `mqtool ui`, the broker records at most 50 new messages and such events
    together. When a consumer stores an offset, the broker remembers the offset even if it does not record this event.
    """
    for number in range(60):
        scene.found.stored("s", "r", number, scene.channel)
    assert len(scene.events()) == 50
    assert scene.found.offsets == {"s": ("r", 59)}
    scene.found.replied(scene.channel, message(), scene.channel)
    scene.found.unknown_exchange(scene.channel, message())
    scene.found.unknown_address(scene.channel, "x")
    scene.found.streamed(scene.channel, "s", iter([(1, message())]))
    scene.publish()
    assert scene.events() == []
    scene.pass_by(0.015)
    scene.found.unknown_address(scene.channel, "x")
    scene.found.unknown_address(scene.channel, "x")
    assert len(scene.events()) == 1


def test_at_most_2000_messages_are_shown_at_the_same_time(scene: Scene) -> None:
    """`mqtool ui` shows up to 2,000 messages at the same time. While it shows this many, the broker records no events
    of newly published messages. To skip them quickly, the broker remembers their exchanges and routing keys: at most
    1,000 pairs.
    """
    scene.found.shown = dict.fromkeys(range(10_000, 11_999), ("q", True))
    scene.publish("q")
    for number in range(1100):
        scene.publish(str(number))
    assert scene.what() == ["published", "ready"]
    assert len(scene.found.skipped) == 1000


def test_only_the_latest_4000_events_are_kept(scene: Scene) -> None:
    """For `mqtool ui`, the broker keeps the latest 4,000 events of messages, each with a number. since(number)
    returns the events after the event with this number. It returns None if the broker no longer keeps some of these
    events, or if the number is higher than that of the latest event.
    """
    start = scene.found.number
    assert scene.found.since(start) == []
    for _ in range(4001):
        scene.found.emptied(scene.q)
    assert scene.found.since(start) is None
    kept = scene.found.since(start + 1)
    assert kept is not None
    assert [each.number for each in kept] == [*range(start + 2, start + 4002)]
    assert [each.number for each in scene.found.since(start + 4000) or ()] == [start + 4001]
    assert scene.found.since(start + 4001) == []
    assert scene.found.since(start + 4002) is None


def test_numbers_of_events_are_not_used_again_after_a_restart(scene: Scene) -> None:
    """The broker numbers the events that it reports to `mqtool ui`, beginning with the time of its start in
    microseconds. After a restart, it therefore uses higher numbers than before, even if it had reported thousands of
    events within a second.
    """
    assert scene.found.number == 10**9
    assert scene.found.asked == scene.seconds
    for _ in range(5000):
        scene.found.emptied(scene.q)
    scene.seconds += 1
    assert scene.new_events().number > scene.found.number


def test_waiting_messages_are_listed_and_their_later_events_are_shown(scene: Scene) -> None:
    """When `mqtool ui` asks for waiting messages, the broker lists up to 20 ready messages of each queue, up to 20
    delayed messages of each exchange, and the unacknowledged messages, up to 1,000 messages in all. It then reports
    the later events of these messages. Messages in streams are not listed.
    """
    exchange = BrokerExchange("d", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    scene.vhost.add_exchange(exchange)
    stream = add_queue(scene.vhost, "s", durable=True, x_queue_type="stream")
    scene.exhaust()
    for _ in range(25):
        scene.publish("q")
        scene.publish("s")
        scene.publish("q", "d", x_delay=Int32(5))
    entry, consumer = scene.get(), Consumer()
    unacknowledged = [(scene.q, entry, consumer), (stream, BacklogEntry(message(), 7), consumer)]
    found = scene.found.waiting(unacknowledged)
    places = [place for _, place in found]
    assert (
        places
        == [{"exchange": "d", "until": scene.clock.now() + 5}] * 20
        + [{"queue": "q", "consumer": "q/t"}]
        + [{"queue": "q"}] * 20
    )
    states = [scene.found.shown[each.position] for each, _ in found]
    assert states == [("d", True)] * 20 + [("q", False)] + [("q", True)] * 20
    scene.q.acknowledge(entry)
    assert scene.what() == ["acknowledged"]
    assert len(scene.found.waiting([(scene.q, entry, None)] * 2000)) == 1000
