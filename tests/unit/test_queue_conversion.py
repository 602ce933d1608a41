"""Conversions of queues on an embedded broker in this process: their steps, what stops them, and how they continue."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from mqtool.amqp import Channel, Connection, Receiving, administration, parse_addresses
from mqtool.errors import BadData, NotFound, Unavailable, UsageError
from mqtool.management import Management, path
from mqtool.message import Confirmation, Message
from mqtool.testing import EmbeddedBroker, Vhost
from mqtool.topology import Exchange, Queue
from mqtool.work import conversion_plan, held_messages, mover, queue_conversion
from mqtool.work.conversion_plan import ConversionNames, Definition, Refusal
from mqtool.work.queue_conversion import Conversion, ConversionTally, Stopped, left_behind, refused_by_broker
from tests.unit.test_queue_limits import not_counted

NAMES = ConversionNames.of("jobs")
#: The number of messages in `jobs` at the start; and in one batch of a conversion.
COUNT, AT_ONCE = 10, 4


class Place:
    """A virtual host with the queue `jobs`, and what it contains.

    Attributes:
        connections: all connections that a test has opened.
    """

    def __init__(self, broker: EmbeddedBroker, vhost: Vhost) -> None:
        self.api = Management(str(broker.management_url), "guest", "guest")
        self.name = vhost.name
        self.connections: list[Connection] = []
        self._url = vhost.url
        self._published = 0
        self.channel = self.connect().channel()

    def connect(self) -> Connection:
        connection = Connection(parse_addresses(self._url))
        self.connections.append(connection)
        return connection

    def fill(self, kind: str = "classic", count: int = COUNT, **arguments: Any) -> None:
        """Declare `jobs`, bound to the exchange `logs`, with messages whose bodies are their numbers."""
        self.channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": kind, **arguments}))
        self.channel.declare(Exchange("logs", "topic", durable=True))
        self.channel.bind(Queue("jobs"), Exchange("logs"), "kern.#", {"note": "kept"})
        self.publish(count)

    def publish(self, count: int = 1, exchange: str = "logs", key: str = "kern.info") -> None:
        for _ in range(count):
            message = Message(b"%d" % self._published, key, exchange, {"delivery_mode": 2})
            [receipt] = self.channel.publish([message], mandatory=True)
            assert receipt.confirmation is Confirmation.CONFIRMED
            self._published += 1

    def conversion(
        self, to: str = "quorum", plan: conversion_plan.ConversionPlan | None = None, **options: Any
    ) -> Conversion:
        """A new conversion or, with the plan of one that has begun, its continuation."""
        if plan is None:
            found = conversion_plan.prospect(self.api, self.name, "jobs", to, options.pop("changes", {}), not_counted)
            plan = replace(found.plan, at_once=AT_ONCE)
        options = {"young": 0.0, "quiet": 0.0, **options}
        return Conversion(self.connect(), self.api, self.name, plan, user="guest", **options)

    def unfinished(self) -> conversion_plan.ConversionPlan | None:
        return conversion_plan.unfinished(self.api, self.name).plans.get("jobs")

    def resume(self, *, undo: bool = False, **options: Any) -> ConversionTally:
        """Continue the conversion that has begun, with a new connection."""
        conversion = self.conversion(plan=self.unfinished(), **options)
        conversion.lock()
        for _ in conversion.run(undo=undo):
            pass
        return conversion.tally

    def view(self, queue: str = "jobs") -> Any:
        return self.api.get(path("queues", self.name, queue))

    def depths(self) -> dict[str, int]:
        """The number of messages in each queue."""
        names = [each["name"] for each in self.api.items(path("queues", self.name))]
        return {name: self.channel.depth_of(name) for name in names if name != NAMES.lock}

    def exchanges(self) -> set[str]:
        found = self.api.items(path("exchanges", self.name))
        return {each["name"] for each in found if each["name"] and not each["name"].startswith("amq.")}

    def bindings(self) -> list[tuple[str, str, str, Any]]:
        found = self.api.items(path("bindings", self.name))
        return [
            (each["source"], each["destination"], each["routing_key"], each["arguments"])
            for each in found
            if each["source"]
        ]

    def bodies(self, queue: str = "jobs") -> list[int]:
        """Take all messages out of a queue."""
        count = self.channel.depth_of(queue)
        return [int(each.body) for each in self.channel.consume(Queue(queue), Receiving(count=count))] if count else []

    def check_converted(self, kind: str, count: int = COUNT) -> None:
        """Assert that `jobs` has its new type, all its messages and its binding, and that nothing else is left."""
        assert self.view()["type"] == kind
        assert self.depths() == {"jobs": count}
        assert self.exchanges() == {"logs"}
        assert self.bindings() == [("logs", "jobs", "kern.#", {"note": "kept"})]
        assert self.bodies() == [*range(count)]


class Clock:
    """Time that passes only while a conversion sleeps.

    Attributes:
        now: the number of seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def place(amqp_broker: EmbeddedBroker, amqp_vhost: Vhost) -> Iterator[Place]:
    place = Place(amqp_broker, amqp_vhost)
    yield place
    for each in place.connections:
        each.close()


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
def test_a_converted_queue_has_its_messages_in_order_and_its_bindings(place: Place, before: str, after: str) -> None:
    """`queue convert` moves a queue's messages to a temporary queue and back, in batches, and reports the size of each
    batch. Afterwards, the queue has its new type and arguments, all its messages in order, and its bindings. The
    temporary queues and exchanges of the conversion are deleted.
    """
    place.fill(before)
    conversion = place.conversion(after, changes={"x-max-length": 1000})
    assert not conversion.has_begun
    conversion.begin()
    assert conversion.has_begun
    assert [*conversion.run()] == [4, 4, 2, 4, 4, 2]
    tally = conversion.tally
    assert tally == ConversionTally(COUNT, COUNT, 0, tally.absence, 0, 0)
    assert tally.total == COUNT
    assert tally.absence is not None
    assert 0 < tally.absence < 60
    assert place.view()["arguments"] == {"x-queue-type": after, "x-max-length": 1000}
    place.check_converted(after)


def begin_and_stop(place: Place, batches: int, to: str = "quorum") -> Conversion:
    """Begin a conversion, and end its connection once it has moved this many batches."""
    conversion = place.conversion(to)
    conversion.begin()
    with closing(conversion.run()) as running:
        for _ in range(batches):
            next(running)
    place.connections[-1].close()
    return conversion


@pytest.mark.parametrize(
    ("batches", "held", "returned", "meanwhile"), [(1, 7, 11, 0), (3, 1, 11, 0), (4, 0, 6, 1), (6, 0, 0, 1)]
)
@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
def test_a_conversion_continues_where_it_was_stopped(
    place: Place, before: str, after: str, batches: int, held: int, returned: int, meanwhile: int
) -> None:
    """`queue convert` stores the plan of a conversion on the broker. If the command is stopped after any batch of
    messages, the next run continues with this plan. If a client publishes a message between the two runs, this message
    comes after all others in the converted queue.
    """
    place.fill(before)
    begin_and_stop(place, batches, after)
    place.publish()
    tally = place.resume()
    assert (tally.held, tally.returned, tally.meanwhile, tally.overtaken) == (held, returned, meanwhile, 0)
    place.check_converted(after, COUNT + 1)


def test_a_conversion_does_not_delete_messages_that_a_client_has_taken_from_its_temporary_queue(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During `queue convert`, a temporary queue holds the messages. If another client, such as `peek`, has
    unacknowledged messages of this queue, the conversion fails and does not delete the queue. Once the client has
    ended, the conversion can be completed, and no message is lost.
    """
    monkeypatch.setattr(held_messages, "_PATIENCE", 0.1)
    place.fill()
    begin_and_stop(place, 3)
    peeking = place.connect()
    assert peeking.channel().get(NAMES.held) is not None
    with pytest.raises(Unavailable, match=r"^1 message of 'jobs[.]mqtool-convert' is unacknowledged"):
        place.resume()
    place.connections[-1].close()
    peeking.close()
    place.resume()
    assert sorted(place.bodies()) == [*range(COUNT)]


@pytest.mark.parametrize("batches", [1, 3])
def test_a_conversion_can_be_undone_until_it_has_replaced_the_queue(place: Place, batches: int) -> None:
    """A stopped `queue convert` that has not replaced the queue yet can be undone. The queue then has its original
    type, all its messages in order, and its bindings.
    """
    place.fill()
    begin_and_stop(place, batches)
    place.publish()
    assert not place.conversion(plan=place.unfinished()).is_replaced()
    place.resume(undo=True)
    place.check_converted("classic", COUNT + 1)


def test_an_undo_can_leave_messages_that_the_broker_does_not_deliver(place: Place) -> None:
    """If the broker cannot deliver a message of the queue over AMQP 0-9-1, an undo leaves the messages that are still
    in the queue, and adds those that were moved out of it behind them.
    """
    place.fill()
    begin_and_stop(place, 1)
    conversion = place.conversion(plan=place.unfinished())
    conversion.lock()
    assert [*conversion.run(undo=True, leaves=True)] == [4]
    assert (place.view()["type"], place.depths()) == ("classic", {"jobs": COUNT})
    assert place.bodies() == [*range(4, COUNT), *range(4)]
    assert conversion.tally.overtaken == 4


def test_a_conversion_that_was_interrupted_says_how_many_messages_may_be_doubled(place: Place) -> None:
    """If a conversion was interrupted, the next run says, before it moves a message, that up to a batch of messages may
    be in the queue twice. It counts those that the broker delivers again.
    """
    place.fill()
    begin_and_stop(place, 1)
    notices: list[str] = []
    conversion = place.conversion(plan=place.unfinished())
    place.connections[-1].notice = notices.append  # type: ignore[method-assign]
    conversion.lock()
    assert len([*conversion.run()]) > 1
    assert notices == ["the last run was interrupted: up to 4 messages may be in 'jobs' twice"]
    assert 0 < conversion.tally.doubled <= AT_ONCE
    place.check_converted("quorum")


def test_an_undo_that_was_stopped_is_completed_by_the_next_run(place: Place) -> None:
    """If `queue convert --undo` is stopped while it moves the messages back to the queue, the next run of `queue
    convert --resume` completes the undo, even without --undo.
    """
    place.fill()
    begin_and_stop(place, 3)
    undoing = place.conversion(plan=place.unfinished())
    undoing.lock()
    with closing(undoing.run(undo=True)) as running:
        assert next(running) == 4
    place.connections[-1].close()
    assert place.resume().held == 0
    place.check_converted("classic")


def test_an_undo_declares_a_deleted_queue_with_its_original_type_and_arguments(place: Place) -> None:
    """If a conversion was stopped, and another client has deleted the queue, `queue convert --undo` declares the queue
    with its original type and arguments, and moves the messages back to it.
    """
    place.fill(**{"x-max-length": 1000})
    begin_and_stop(place, 3)
    administration.delete_queue(place.channel, "jobs")
    place.resume(undo=True)
    assert place.view()["arguments"] == {"x-queue-type": "classic", "x-max-length": 1000}
    assert place.bodies() == [*range(COUNT)]


def deeply_nested() -> list[Any]:
    """Lists in each other, the innermost of which the management client leaves out."""
    deep: list[Any] = []
    for _ in range(62):
        deep = [deep]
    return deep


def test_an_undo_refuses_to_declare_a_queue_whose_arguments_are_not_known_completely(place: Place) -> None:
    """The management client leaves out the innermost part of a deeply nested argument. If the original queue had such
    an argument, and has been deleted or replaced, `queue convert --undo` raises BadData instead of declaring the
    queue with an incomplete argument. If the queue was replaced, the hint says how to convert it back without the
    argument.
    """
    place.fill(note=deeply_nested())
    conversion = place.conversion(changes={"note": None})
    conversion.begin()
    administration.delete_queue(place.channel, "jobs")
    with pytest.raises(BadData, match=r"^'jobs' cannot become classic again: its argument 'note' is nested") as raised:
        list(conversion.run(undo=True))
    assert raised.value.hint is None, "only --resume can continue, and says so"
    list(conversion.run())
    place.connections[-1].close()
    assert place.view()["type"] == "quorum"
    done = conversion._plan
    back = place.conversion(plan=replace(done, source=done.target, target=done.source))
    with pytest.raises(BadData, match=r"^'jobs' cannot become classic again: its argument 'note' is nested") as raised:
        back.begin()
    assert raised.value.hint == "instead, convert it with --to classic --argument note:=null"
    assert place.view()["type"] == "quorum"


@pytest.mark.parametrize(("batches", "left"), [(0, 22), (1, 18), (3, 12), (4, 7), (6, 1)])
def test_the_number_of_remaining_moves_shrinks_with_each_batch(place: Place, batches: int, left: int) -> None:
    """`queue convert` moves each message twice: out of the queue, and back. Conversion.remaining() is the number of
    moves that are still to be made: two for each message in the queue that is being converted, and one for each message
    in the conversion's other queues.
    """
    place.fill()
    begin_and_stop(place, batches)
    place.publish()
    assert place.conversion(plan=place.unfinished()).remaining() == left


def test_messages_that_are_published_while_a_queue_is_replaced_go_to_another_queue(place: Place) -> None:
    """While `queue convert` replaces a queue, a temporary quorum queue without a delivery limit holds its messages. A
    second temporary queue, of the original type and with the original dead-letter exchange, receives the messages that
    clients publish. At the end, the converted queue contains the messages of both.
    """
    place.fill(**{"x-message-ttl": 3_600_000, "x-dead-letter-exchange": "amq.fanout"})
    begin_and_stop(place, 4)
    place.publish()
    assert place.depths() == {"jobs": 4, NAMES.held: 6, NAMES.meanwhile: 1}
    meanwhile, held = place.view(NAMES.meanwhile), place.view(NAMES.held)
    assert meanwhile["type"] == "classic"
    assert meanwhile["arguments"]["x-dead-letter-exchange"] == "amq.fanout"
    assert "x-delivery-limit" not in meanwhile["arguments"]
    assert (held["type"], held["durable"]) == ("quorum", True)
    assert held["arguments"]["x-delivery-limit"] == -1
    assert "x-dead-letter-exchange" not in held["arguments"]
    place.resume()
    assert place.bodies() == [*range(11)]


def test_only_one_conversion_of_a_queue_runs_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one `queue convert` process converts a queue, a second process for the same queue waits for up to 20 s. If
    the first process's connection is closed in this time, before the conversion is complete, the second process
    continues the conversion. If the first process is still connected after 20 s, the second process fails.
    """
    place.fill()
    conversion = place.conversion()
    conversion.begin()
    first = place.connections[-1]
    other = place.conversion(plan=place.unfinished())
    monkeypatch.setattr(queue_conversion, "_LOOK", 0.9)  # tries every 9 s, so the last attempt is after 27 s
    clock = Clock()
    monkeypatch.setattr(queue_conversion, "time", clock)
    with pytest.raises(Unavailable, match=r"^another mqtool converts 'jobs'$") as raised:
        other.lock()
    assert clock.now == 27
    assert raised.value.hint == "if it was killed, the broker notices within a minute or two: try again then"
    monkeypatch.setattr(queue_conversion, "time", time)
    monkeypatch.setattr(queue_conversion, "_LOOK", 0.001)
    sleep = time.sleep

    def end_the_first(seconds: float) -> None:
        first.close()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", end_the_first)
    other.lock()
    monkeypatch.undo()
    assert [*other.run()] == [4, 4, 2, 4, 4, 2]
    place.check_converted("quorum")


def test_a_conversion_to_arguments_that_the_broker_refuses_changes_nothing(place: Place) -> None:
    """If the broker does not accept the new arguments of a queue, `queue convert` does not begin the conversion. Its
    error gives the broker's reason, with the names of the queue and the argument. refused_by_broker(), which tests the
    arguments before a conversion, returns the same reason.
    """
    place.fill()
    conversion = place.conversion(changes={"x-max-length": "many"})
    plan = conversion._plan
    refusal = refused_by_broker(place.connect(), plan)
    assert refusal is not None
    assert refusal.what.startswith("invalid arg 'x-max-length' for queue 'jobs'")
    assert refusal == Refusal(refusal.what, "see --to and --argument")
    with pytest.raises(UsageError, match=r"^invalid arg 'x-max-length' for queue 'jobs'") as raised:
        conversion.begin()
    assert raised.value.hint == "see --to and --argument"
    assert not conversion.has_begun
    assert place.depths() == {"jobs": COUNT}
    assert place.unfinished() is None


@pytest.mark.parametrize("to", ["quorum", "classic", "stream"])
def test_a_trial_of_a_queues_new_definition_leaves_no_queue_behind(place: Place, to: str) -> None:
    """refused_by_broker() finds out whether the broker would accept the new definition of a queue: it declares a
    queue with this definition under another name, and deletes this trial queue again. If an earlier run has left a
    trial queue behind, no error is raised.
    """
    place.fill("quorum" if to == "classic" else "classic")
    plan = place.conversion(to)._plan
    assert refused_by_broker(place.connect(), plan) is None
    assert place.depths() == {"jobs": COUNT}
    place.channel.declare(Queue(NAMES.trial, durable=True, arguments={"x-queue-type": "classic"}))
    assert refused_by_broker(place.connect(), plan) is None


@pytest.mark.parametrize(
    ("limit", "effect"), [({}, "drops"), ({"x-overflow": "reject-publish"}, "rejects")], ids=["drop-head", "reject"]
)
def test_a_conversion_counts_the_messages_again_before_it_changes_anything(
    place: Place, limit: dict[str, Any], effect: str
) -> None:
    """If more messages have arrived since the plan of `queue convert` was made, and the new queue would drop or
    reject some of the messages because of its limit, the command says how many, and changes nothing.
    """
    place.fill()
    conversion = place.conversion(changes={"x-max-length": COUNT, **limit})
    place.publish(2)
    with pytest.raises(Unavailable) as raised:
        conversion.begin()
    assert str(raised.value) == (
        f"'jobs' cannot be converted: as a quorum queue with these arguments, it {effect} 2 of 12 messages: "
        "max-length is 10"
    )
    assert raised.value.hint == "consume messages first, or set a higher limit"
    assert not conversion.has_begun
    place.connections[-1].close()
    assert place.depths() == {"jobs": COUNT + 2}


def test_a_conversion_waits_until_the_queue_has_no_consumers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """If consumers appear after `queue convert` has made its checks, the command waits for up to 20 s until the queue
    has none. If some remain, it fails, and the hint says how to continue. With --force, it does not wait for
    consumers, but still fails while messages of the queue are unacknowledged.
    """
    place.fill()
    consumer = place.connect().channel()
    consumer.consumer(Queue("jobs"), Receiving(prefetch=1))
    monkeypatch.setattr(queue_conversion, "_LOOK", 9.0)  # the last look is after 27 s
    conversion, clock = place.conversion(), Clock()
    conversion.begin()
    monkeypatch.setattr(queue_conversion, "time", clock)
    with pytest.raises(Unavailable, match=r"^'jobs' has 1 consumer$") as raised:
        list(conversion.run())
    assert clock.now == 27
    monkeypatch.undo()
    assert raised.value.hint == "stop them, then: mqtool queue convert --resume jobs"
    place.connections[-1].close()
    monkeypatch.setattr(held_messages, "_PATIENCE", 0.0)
    with pytest.raises(Unavailable, match="1 message of 'jobs' is unacknowledged"):
        place.resume(force=True)
    place.connections[-1].close()
    consumer.connection.close()
    place.resume()
    assert place.view()["type"] == "quorum"
    assert sorted(place.bodies()) == [*range(COUNT)]


def test_with_force_a_queue_is_replaced_although_it_has_consumers(place: Place) -> None:
    """`queue convert --force` replaces a queue even if it has consumers, which the broker then cancels. It does not
    wait to see whether clients publish to the queue through the default exchange.
    """
    place.fill(count=0)
    place.connect().channel().consumer(Queue("jobs"), Receiving(prefetch=1))
    conversion = place.conversion(force=True, quiet=100_000.0)
    conversion.begin()
    list(conversion.run())
    assert place.view()["type"] == "quorum"
    assert administration.depth(place.channel, "jobs").consumers == 0


def direct(place: Place, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Publish to `jobs` by its name whenever the conversion waits for messages, this many times."""
    left, sleep = times, queue_conversion.time.sleep

    def publish_directly(seconds: float) -> None:
        nonlocal left
        if left and seconds == queue_conversion._LOOK:
            left -= 1
            place.publish(exchange="", key="jobs")
        sleep(seconds)

    monkeypatch.setattr(queue_conversion.time, "sleep", publish_directly)


def test_a_queue_is_not_replaced_while_clients_publish_to_it_directly(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before `queue convert` replaces a queue, it waits to see whether clients publish to the queue through the
    default exchange, because messages that they publish during the replacement may be lost. If messages arrive again
    and again, the conversion stops, and the hint says how to continue. If messages arrive only once, the conversion
    moves them and continues.
    """
    place.fill()
    direct(place, monkeypatch, 2)
    conversion = place.conversion(quiet=20.0)
    conversion.begin()
    said = "^clients publish to 'jobs' through the default exchange: messages may be lost when it is replaced$"
    with pytest.raises(Unavailable, match=said) as raised:
        list(conversion.run())
    assert raised.value.hint == (
        "stop these clients, then: mqtool queue convert --resume jobs; or, to accept the loss, add --force"
    )
    assert place.view()["type"] == "classic"
    place.connections[-1].close()
    direct(place, monkeypatch, 1)
    tally = place.resume(quiet=5.0)
    assert tally.held == 2
    place.check_converted("quorum", COUNT + 3)


def visited(place: Place, monkeypatch: pytest.MonkeyPatch, conversion: Conversion, times: int) -> None:
    """Subscribe to `jobs` and take a message when the conversion begins to look whether it is used, this many times.

    Each client ends when the conversion says that it waits until the queue has no consumers.
    """
    first_use, clients, left = queue_conversion._first_use, list[Connection](), times

    def used(*arguments: Any) -> administration.Depth:
        nonlocal left
        if left:
            left -= 1
            clients.append(place.connect())
            clients[0].channel().consumer(Queue("jobs"), Receiving(prefetch=1))
            place.publish(exchange="", key="jobs")
        return first_use(*arguments)

    monkeypatch.setattr(queue_conversion, "_first_use", used)
    conversion._connection.notice = lambda _: clients.pop().close()


@pytest.mark.parametrize("to", ["quorum", "classic"])
def test_a_message_that_a_new_consumer_takes_just_before_a_queue_is_replaced_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """If a client subscribes to a queue while `queue convert` waits to see whether the queue is still used, and takes a
    message that was published through the default exchange, the conversion waits until the client has ended. The
    message is then requeued, and the conversion moves it.
    """
    place.fill({"quorum": "classic", "classic": "quorum"}[to])
    conversion = place.conversion(to, quiet=5.0)
    visited(place, monkeypatch, conversion, 1)
    conversion.begin()
    list(conversion.run())
    place.check_converted(to, COUNT + 1)


def test_a_queue_is_not_replaced_while_clients_keep_subscribing_to_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If clients subscribe to a queue again and again while `queue convert` waits to see whether the queue is still
    used, the conversion stops, and the hint says how to continue. No message is lost.
    """
    place.fill()
    conversion = place.conversion(quiet=5.0)
    visited(place, monkeypatch, conversion, 3)
    conversion.begin()
    with pytest.raises(Unavailable, match=r"^clients keep subscribing to 'jobs'") as raised:
        list(conversion.run())
    assert raised.value.hint == (
        "stop these clients, then: mqtool queue convert --resume jobs; or, to accept the loss, add --force"
    )
    monkeypatch.undo()
    for each in place.connections[1:]:
        each.close()
    place.resume()
    place.check_converted("quorum", COUNT + 3)


def test_a_message_of_a_consumer_that_subscribes_at_the_last_moment_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` deletes a classic queue only if it has no consumers, because they may have unacknowledged
    messages. If a client subscribes just before the deletion, the conversion waits until the client has ended, and
    tries again.
    """
    place.fill()
    replace_queue, client = Conversion._replace, list[Connection]()

    def replaced(*arguments: Any, **options: Any) -> bool:
        if not client:
            client.append(place.connect())
            client[0].channel().consumer(Queue("jobs"), Receiving(prefetch=1))
            place.publish(exchange="", key="jobs")
            try:
                return replace_queue(*arguments, **options)
            finally:
                client[0].close()
        return replace_queue(*arguments, **options)

    monkeypatch.setattr(Conversion, "_replace", replaced)
    conversion = place.conversion()
    conversion.begin()
    list(conversion.run())
    place.check_converted("quorum", COUNT + 1)


def test_a_message_that_arrives_just_before_a_classic_queue_is_replaced_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` deletes a classic queue only if it is empty. If a client publishes to the queue just before the
    deletion, the conversion moves this message and tries again. If a message arrives before each of several attempts
    (3 in this test), the conversion stops, and the hint says how to continue. No message is lost.
    """
    place.fill()
    replace_queue, late = Conversion._replace, 3

    def replaced(*arguments: Any, **options: Any) -> bool:
        nonlocal late
        if late:
            late -= 1
            place.publish(exchange="", key="jobs")
        return replace_queue(*arguments, **options)

    monkeypatch.setattr(Conversion, "_replace", replaced)
    monkeypatch.setattr(queue_conversion, "_TRIES", 3)
    conversion = place.conversion()
    conversion.begin()
    with pytest.raises(Unavailable, match="'jobs' gets messages faster than they can be moved") as raised:
        list(conversion.run())
    assert raised.value.hint == "stop their publishers, then: mqtool queue convert --resume jobs"
    assert place.view()["type"] == "classic"
    place.connections[-1].close()
    late = 1
    place.resume()
    place.check_converted("quorum", COUNT + 3 + 1)


def test_a_stopped_conversion_ends_after_the_current_batch(place: Place) -> None:
    """If `queue convert` is stopped, for example by Ctrl-C, it ends after the current batch of messages, and the
    conversion can be continued.
    """
    place.fill()
    conversion = place.conversion()
    conversion.begin()

    def run() -> None:
        for _ in conversion.run():
            conversion.stop()

    with pytest.raises(Stopped):
        run()
    assert conversion.tally.held == 4
    place.connections[-1].close()
    place.resume()
    place.check_converted("quorum")


def test_a_conversion_that_is_stopped_while_a_channel_opens_moves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `queue convert` is stopped while it opens the channel on which it moves messages, it ends before it moves
    any.
    """
    place.fill()
    conversion, connection = place.conversion(), place.connections[-1]
    conversion.begin()
    opened = connection.channel

    def channel(**settings: Any) -> Channel:
        conversion.stop()
        return opened(**settings)

    monkeypatch.setattr(connection, "channel", channel)
    with pytest.raises(Stopped):
        list(conversion.run())
    assert conversion.tally.held == 0


def test_a_conversion_can_be_stopped_while_it_waits_for_messages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before `queue convert` replaces a queue, it waits to see whether clients publish to the queue through the
    default exchange. If the command is stopped during this wait, it ends immediately.
    """
    place.fill()
    conversion = place.conversion(quiet=1000.0)
    conversion.begin()
    sleep = queue_conversion.time.sleep

    def stop(seconds: float) -> None:
        conversion.stop()
        sleep(seconds)

    running = conversion.run()
    assert [next(running) for _ in range(3)] == [4, 4, 2]
    monkeypatch.setattr(queue_conversion.time, "sleep", stop)
    with pytest.raises(Stopped):
        next(running)


@pytest.mark.parametrize("holds", ["a consumer", "an unacknowledged message"])
def test_a_conversion_says_that_it_waits_for_clients_and_can_be_stopped(
    place: Place, monkeypatch: pytest.MonkeyPatch, holds: str
) -> None:
    """`queue convert` waits until the queue has neither consumers nor unacknowledged messages. During this wait, a
    notice says what the command is waiting for. If the command is stopped, the queue stays as it is, and the conversion
    can be continued.
    """
    place.fill()
    client = place.connect().channel()
    if holds == "a consumer":
        client.consumer(Queue("jobs"), Receiving(prefetch=1))
    else:
        client.get("jobs")
    conversion, notices = place.conversion(), list[str]()
    place.connections[-1].notice = notices.append
    conversion.begin()
    monkeypatch.setattr(queue_conversion.time, "sleep", lambda _: notices and conversion.stop())
    with pytest.raises(Stopped):
        list(conversion.run())
    waits_for = {
        "a consumer": "waiting until 'jobs' has no consumers",
        "an unacknowledged message": "waiting until the broker reports that no messages of 'jobs' are unacknowledged",
    }
    assert [notice.partition(",")[0] for notice in notices] == [waits_for[holds]]
    assert place.view()["type"] == "classic"
    monkeypatch.undo()
    place.connections[-1].close()
    client.connection.close()
    place.resume()
    assert place.view()["type"] == "quorum"
    assert sorted(place.bodies()) == [*range(COUNT)]


def test_a_conversion_can_be_stopped_while_it_waits_for_another_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `queue convert` is stopped while it waits for another conversion of the same queue to end, it ends without
    changing anything.
    """
    place.fill()
    place.conversion().lock()
    waiting, waits = place.conversion(), list[float]()

    def stop(seconds: float) -> None:
        waits.append(seconds)
        waiting.stop()

    monkeypatch.setattr(queue_conversion.time, "sleep", stop)
    with pytest.raises(Stopped):
        waiting.begin()
    assert len(waits) == 1
    assert not waiting.has_begun
    assert place.view()["type"] == "classic"
    assert place.depths() == {"jobs": COUNT}


@pytest.mark.parametrize(
    ("by_policy", "way"), [(False, ""), (True, " or raise the limit of its policy,")], ids=["argument", "policy"]
)
def test_messages_that_do_not_fit_into_the_converted_queue_stay_in_the_temporary_queue(
    place: Place, monkeypatch: pytest.MonkeyPatch, by_policy: bool, way: str
) -> None:
    """During a conversion, a temporary queue holds the messages. If the converted queue is full and rejects messages,
    `queue convert` fails, but loses none of them: those that do not fit stay in the temporary queue. The hint says how
    to continue. It suggests raising the converted queue's limit only if a policy sets this limit, since no policy can
    raise a limit that is set by a queue argument.
    """
    monkeypatch.setattr(mover, "_STALLED", 0.3)
    limit = {"max-length": COUNT, "overflow": "reject-publish"}
    if by_policy:
        place.api.put(path("policies", place.name, "limit"), {"pattern": "^jobs$", "definition": limit})
    place.fill(**{} if by_policy else {f"x-{name}": value for name, value in limit.items()})
    conversion = place.conversion()
    conversion.begin()
    running = conversion.run()
    for _ in range(4):
        next(running)
    place.channel.bind(Queue("jobs"), Exchange("amq.direct"), "now")
    place.publish(6, "amq.direct", "now")
    with pytest.raises(Unavailable, match=r"^'jobs' is full, and messages that it had before or") as raised:
        list(running)
    assert raised.value.hint == f"consume messages from 'jobs',{way} then: mqtool queue convert --resume jobs"
    place.connections[-1].close()
    found = place.bodies()
    assert [each for each in found if each < COUNT] == [0, 1, 2, 3]
    place.resume()
    assert sorted(found + place.bodies()) == [*range(16)]


def test_a_conversion_fails_if_the_queue_that_holds_its_messages_is_deleted(place: Place) -> None:
    """During `queue convert`, a temporary queue holds the messages. If another client deletes this queue, the
    conversion fails with an error that names the queue.
    """
    place.fill()
    conversion = place.conversion()
    conversion.begin()
    running = conversion.run()
    next(running)
    assert not conversion.is_robbed()
    administration.delete_queue(place.channel, NAMES.held)
    assert conversion.is_robbed()
    with pytest.raises(NotFound, match=f"^queue '{NAMES.held}' was deleted during the conversion$"):
        next(running)


@pytest.mark.parametrize(
    ("batches", "kind", "bodies"), [(1, "classic", [*range(4, 11)]), (4, "quorum", [0, 1, 2, 3, 10])]
)
def test_a_conversion_whose_temporary_queue_was_deleted_can_be_finished(
    place: Place, batches: int, kind: str, bodies: list[int]
) -> None:
    """If a stopped conversion's temporary queue, which held the messages, was deleted, its messages are lost, but the
    conversion can be finished. The queue then has its bindings and all other messages. It has its new type if the
    conversion had replaced it, and otherwise its original one.
    """
    place.fill()
    assert left_behind(place.api, place.name, "jobs") is None
    begin_and_stop(place, batches)
    place.publish()
    administration.delete_queue(place.channel, NAMES.held)
    plan = left_behind(place.api, place.name, "jobs")
    assert plan is not None
    assert (plan.queue, plan.target) == ("jobs", Definition(kind, True, {}))
    last = place.conversion(plan=plan)
    last.begin()
    assert sum(last.run()) == (batches == 4)
    assert place.exchanges() == {"logs"}
    assert place.bindings() == [("logs", "jobs", "kern.#", {"note": "kept"})]
    assert place.depths() == {"jobs": len(bodies)}
    assert place.bodies() == bodies
    assert left_behind(place.api, place.name, "jobs") is None


def test_the_bindings_of_a_queue_with_a_deeply_nested_argument_are_restored(place: Place) -> None:
    """If a stopped conversion's temporary queue is deleted before the original queue has been replaced, finishing the
    conversion restores the queue's bindings. This is true even if the queue has an argument that is nested too deeply
    for mqtool to declare the queue again.
    """
    place.fill(note=deeply_nested())
    conversion = place.conversion(changes={"note": None})
    conversion.begin()
    with closing(conversion.run()) as running:
        next(running)
    place.connections[-1].close()
    administration.delete_queue(place.channel, NAMES.held)
    plan = left_behind(place.api, place.name, "jobs")
    assert plan is not None
    last = place.conversion(plan=plan)
    last.begin()
    list(last.run())
    assert place.bindings() == [("logs", "jobs", "kern.#", {"note": "kept"})]
    assert place.view()["type"] == "classic"


def test_a_conversion_cannot_be_finished_without_its_queue(place: Place) -> None:
    """If a conversion was stopped, and both the queue to convert and the temporary queue that held the messages were
    deleted, finishing the conversion raises NotFound. The error names the queue to convert, and the hint says to
    declare it.
    """
    place.fill()
    begin_and_stop(place, 3)
    for name in (NAMES.held, "jobs"):
        administration.delete_queue(place.channel, name)
    with pytest.raises(NotFound, match=r"^queue 'jobs' does not exist$") as raised:
        left_behind(place.api, place.name, "jobs")
    assert raised.value.hint == "declare it as you want it, then run this again"


def test_a_resumed_conversion_declares_the_new_queue_again_if_a_client_has_deleted_it(place: Place) -> None:
    """During `queue convert`, a temporary queue holds the messages while the queue is deleted and declared with its new
    type. If the conversion stops, and another client deletes the new queue before its messages have been moved back,
    the resumed conversion declares the queue again with its new type. No message is lost.
    """
    place.fill()
    begin_and_stop(place, 3)
    administration.delete_queue(place.channel, "jobs")
    place.resume()
    assert place.view()["type"] == "quorum"
    assert place.bodies() == [*range(COUNT)]
