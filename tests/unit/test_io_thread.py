"""The I/O thread, and the requests that other threads make on it: each one ends with a reply, or with an error."""

import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pika import exceptions, spec
from pika.channel import Channel as PikaChannel

from mqtool import silence
from mqtool.amqp import io_thread
from mqtool.amqp.administration import declare_request
from mqtool.amqp.io_thread import Answer, IoThread, Requests
from mqtool.errors import NotConfirmed, StoppedWaiting, UsageError
from mqtool.topology import Queue
from tests.open_files import open_files
from tests.unit.scripted_broker import ScriptedBroker, scripted_broker

MISSING = 404, "NOT_FOUND - no queue 'q' in vhost '/'"
LOOK = declare_request(Queue("q"), passive=True)


class Clock:
    """The clock of a request, which advances only while the request waits for its reply.

    A thread that an earlier test has left may still wait for a reply of its own. It does not advance this clock.

    Attributes:
        events: what happens at each look for the reply, one after another.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[Callable[[], object]] = []
        self._wait, self._thread = io_thread.wait, threading.current_thread()

    def wait(self, answers: list[Answer[Any]], seconds: float) -> Any:
        if threading.current_thread() is not self._thread:
            return self._wait(answers, seconds)
        assert self.now < 200, "the request never ends"
        if not answers[0].done():
            self.now = round(self.now + seconds, 6)
            (self.events.pop(0) if self.events else int)()
        return SimpleNamespace(done={each for each in answers if each.done()})


class Channel(Requests):
    """The requests on a channel of a scripted broker.

    Attributes:
        refusals: the errors with which the broker closed the channel while no request waited for a reply.
        cancelled: the tags of the consumers that the broker has cancelled.
    """

    def __init__(self, broker: ScriptedBroker) -> None:
        self.refusals: list[exceptions.ChannelClosedByBroker] = []
        self.cancelled: list[str] = []
        super().__init__(
            broker.io,
            broker.open_pika_channel,
            broker.silence,
            lambda: broker.must_stop,
            lambda: broker.hopeless,
            on_refused=self.refusals.append,
            on_cancelled=self.cancelled.append,
        )


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker() as broker:
        yield broker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(io_thread, "wait", clock.wait)
    for module in (io_thread, silence):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def channel(broker: ScriptedBroker, clock: Clock) -> Channel:
    channel = Channel(broker)
    channel.open()
    return channel


def test_the_io_thread_runs_one_function_after_another() -> None:
    """The I/O thread runs one function after another, in the order in which they were scheduled, and a delayed function
    once its delay has passed. The thread is named mqtool-amqp. It is a daemon thread, so it does not keep a command
    from ending. stop() ends the thread, and closes its file descriptors.
    """
    before = open_files()
    errors: list[Exception] = []
    io = IoThread(errors.append)
    assert not open_files() <= before
    threads: list[threading.Thread] = []
    order: list[str] = []
    is_over = threading.Event()

    def over() -> None:
        threads.append(threading.current_thread())
        is_over.set()

    io.run(lambda: io.run_later(0.2, lambda: order.append("later")))
    io.run(lambda: order.append("first"))
    io.run(lambda: io.run_later(0.3, over))
    assert is_over.wait(20)
    assert order == ["first", "later"]
    [thread] = threads
    assert (thread.name, thread.daemon) == ("mqtool-amqp", True)
    io.stop()
    assert not thread.is_alive()
    assert open_files() <= before
    assert errors == []


def test_a_bug_that_ends_the_io_thread_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """If a function on the I/O thread raises an error, the thread ends. The error is passed to the callback that was
    given when the thread was created, so that no caller waits for a reply forever. The error is also logged, so that
    `--debug` shows it.
    """
    caplog.set_level(logging.ERROR)
    found: list[Exception] = []
    has_died = threading.Event()

    def died(error: Exception) -> None:
        found.append(error)
        has_died.set()

    def fail() -> None:
        raise ValueError("a bug")

    io = IoThread(died)
    given, never = Answer[int](), Answer[int]()
    given.give(1)
    assert (io.has_given(given), io.has_given(never)) == (True, False)
    io.run(fail)
    assert has_died.wait(20)
    io.stop()
    assert io.has_given(given) is True
    with pytest.raises(exceptions.ConnectionWrongStateError):
        io.has_given(never)
    assert [str(error) for error in found] == ["a bug"]
    assert [record.getMessage() for record in caplog.records if record.name == "pika"] == ["the I/O thread has died"]


def test_stopping_an_io_thread_does_not_wait_long_for_a_function_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a function on the I/O thread does not return, stop() gives up waiting for it after a short time."""
    monkeypatch.setattr(io_thread, "_PATIENCE", 0.001)
    blocks, may_end, ends = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        blocks.set()
        may_end.wait(20)
        ends.set()

    io = IoThread(pytest.fail)
    io.run(block)
    assert blocks.wait(20)
    io.stop()
    assert not ends.is_set()
    may_end.set()
    assert ends.wait(20)
    io.stop()


def test_a_request_ends_with_its_first_reply_or_error() -> None:
    """A request to the I/O thread returns its first reply, or raises its first error. A reply or an error that arrives
    later, for example because the channel is closed, is ignored.
    """
    answer: Answer[int] = Answer()
    answer.give(1)
    answer.give(2)
    answer.refuse(ValueError())
    assert answer.result() == 1
    answer = Answer()
    answer.refuse(ValueError("first"))
    answer.refuse(KeyError())
    answer.give(1)
    with pytest.raises(ValueError, match="first"):
        answer.result()


def test_a_request_returns_the_brokers_reply(broker: ScriptedBroker, channel: Channel) -> None:
    """A request on a channel returns the broker's reply. A basic.get of an empty queue returns None, however often it
    is repeated.
    """
    broker.depth = 3
    assert channel.make(LOOK).method.message_count == 3
    for _ in range(2):
        assert channel.make(lambda pika, _done: pika.basic_get("q", pytest.fail)) is None


def test_a_request_waits_for_its_reply_up_to_its_time_limit(
    broker: ScriptedBroker, channel: Channel, clock: Clock
) -> None:
    """If the caller sets a time limit, a request waits for its reply for this long, and then raises NotConfirmed.
    Without a limit, it waits until the reply arrives. If the command is being stopped, and no reply can be expected,
    for example because the connection is lost, the request raises StoppedWaiting.
    """
    broker.silent = {spec.Queue.Declare}
    clock.events = [int] * 4 + [lambda: broker.send(spec.Queue.DeclareOk("q", 7, 0))]
    assert channel.make(LOOK, within=1).method.message_count == 7
    assert channel.is_unanswered is False
    with pytest.raises(NotConfirmed, match=r"^the broker did not reply within 1 s$"):
        channel.make(LOOK, within=1)
    assert channel.is_unanswered is True
    assert clock.now == pytest.approx(101.6, abs=0.11)
    clock.events = [int] * 300 + [lambda: setattr(broker, "hopeless", "the connection is lost")]
    clock.now = 150
    with pytest.raises(StoppedWaiting, match=r"^stopped: the connection is lost$"):
        channel.make(LOOK)
    assert clock.now == pytest.approx(180.1)


def test_a_stopped_command_waits_only_8_s_for_a_reply(broker: ScriptedBroker, channel: Channel, clock: Clock) -> None:
    """If a command has been told to stop, a request or the opening of a channel waits up to 8 s for the broker's
    reply, even if the broker still sends heartbeats, and then raises StoppedWaiting. The next request, even on
    another channel, waits only a second. Once the broker has replied to a request, a later request waits up to 8 s
    again.
    """
    broker.silent = {spec.Queue.Declare, spec.Channel.Open}

    def waited(request: Callable[[], object]) -> float:
        before = clock.now
        with pytest.raises(StoppedWaiting, match=r"^stopped: the broker does not reply$"):
            request()
        assert channel.is_unanswered is True
        return clock.now - before

    clock.events = [int] * 300 + [broker.stop]
    clock.now = 150
    assert waited(lambda: channel.make(LOOK)) == pytest.approx(38.1, abs=0.11)
    assert waited(channel.open) == pytest.approx(1.1, abs=0.11)
    assert waited(Channel(broker).open) == pytest.approx(1.1, abs=0.11)
    clock.now, broker.silent = 110, set()
    channel.open()
    channel.make(LOOK)
    assert channel.is_unanswered is False
    broker.silent = {spec.Queue.Declare, spec.Channel.Open}
    assert waited(channel.open) == pytest.approx(8.1, abs=0.11)
    assert waited(lambda: channel.make(LOOK, within=5)) == pytest.approx(1.1, abs=0.11)


def test_a_request_that_the_broker_refuses_raises_its_error(broker: ScriptedBroker, channel: Channel) -> None:
    """If the broker closes a channel because of a request, the request raises the broker's error. Further requests fail
    immediately, until the channel is opened again.
    """
    broker.refused = {spec.Queue.Declare: MISSING}
    with pytest.raises(exceptions.ChannelClosedByBroker) as error:
        channel.make(LOOK)
    assert error.value.reply_code == 404
    assert (channel.pika, channel.refusals) == (None, [])
    with pytest.raises(exceptions.ConnectionWrongStateError):
        channel.make(LOOK)
    broker.refused = {}
    channel.open()
    assert channel.make(LOOK).method.queue == "q"
    assert channel.epoch == 2


def test_a_request_on_a_channel_that_is_closing_fails_immediately(broker: ScriptedBroker, channel: Channel) -> None:
    """If mqtool closes a channel while a request waits for its reply, the request fails immediately. So do further
    requests on this channel.
    """
    pika = channel.pika
    assert pika is not None
    broker.silent = {spec.Basic.Get}

    def close_too(pika: PikaChannel, _done: Callable[[Any], None]) -> None:
        pika.basic_get("q", pytest.fail)
        pika.close()

    with pytest.raises(exceptions.ConnectionWrongStateError):
        channel.make(close_too)
    assert (channel.pika, channel.refusals) == (None, [])
    channel.pika = pika
    with pytest.raises(exceptions.ConnectionWrongStateError):
        channel.make(LOOK)
    assert channel.pika is None


@pytest.mark.parametrize("lost", [exceptions.ConnectionClosed(0, "lost"), exceptions.ChannelWrongStateError("closed")])
def test_a_request_that_cannot_be_sent_because_the_connection_is_lost_can_be_repeated(
    channel: Channel, lost: Exception
) -> None:
    """If a request on a channel cannot be sent because the connection has just been lost, the caller gets pika's own
    exception, and thus knows that it can repeat the request on the next connection. Nothing more is sent on this
    channel.
    """

    def request(_pika: PikaChannel, _done: Callable[[Any], None]) -> None:
        raise lost

    with pytest.raises(type(lost)) as error:
        channel.make(request)
    assert error.value is lost
    assert channel.pika is None


def test_a_request_that_cannot_be_encoded_raises_an_error_that_says_why(channel: Channel) -> None:
    """If the arguments of a request cannot be encoded, for example because a name is too long, the request raises an
    error that gives the reason. The channel stays open.
    """
    with pytest.raises(UsageError, match=r"^the name or key is 300 bytes long; AMQP allows 255$"):
        channel.make(declare_request(Queue("q" * 300)))
    assert channel.make(LOOK).method.queue == "q"


@pytest.mark.usefixtures("clock")
def test_a_channel_that_cannot_be_opened_raises_pikas_error(broker: ScriptedBroker) -> None:
    """If a channel cannot be opened because the connection is closed, open() raises pika's error, which tells the
    caller to reconnect.
    """
    lost = exceptions.ConnectionWrongStateError("closed")

    def open_pika_channel(_on_open: Callable[[PikaChannel], None]) -> PikaChannel:
        raise lost

    broker.open_pika_channel = open_pika_channel  # type: ignore[method-assign]
    channel = Channel(broker)
    with pytest.raises(exceptions.ConnectionWrongStateError) as error:
        channel.open()
    assert error.value is lost
    assert (channel.pika, channel.epoch) == (None, 0)
    with pytest.raises(exceptions.ConnectionWrongStateError):
        channel.make(LOOK)


def test_a_channel_that_the_broker_closes_without_a_request_is_reported(
    broker: ScriptedBroker, channel: Channel
) -> None:
    """If the broker closes a channel while no request waits for a reply, the object that opened the channel gets the
    broker's error. It also gets the consumer tag of each consumer that the broker cancels.
    """
    broker.send(spec.Basic.Cancel("tag", True))
    assert channel.cancelled == ["tag"]
    broker.send(spec.Channel.Close(*MISSING, 0, 0))
    [refusal] = channel.refusals
    assert refusal.reply_code == 404
    assert channel.pika is None


def test_closing_a_replaced_channel_does_not_affect_the_new_one(
    broker: ScriptedBroker, channel: Channel, clock: Clock
) -> None:
    """If mqtool has replaced a channel with a new one, and the broker then closes the old channel, no error is
    reported, and a request on the new channel gets its reply.
    """
    old = channel.leave()
    assert old is not None
    assert channel.pika is None
    channel.open()
    new = channel.pika
    broker.silent = {spec.Queue.Declare}
    clock.events = [
        lambda: broker.send(spec.Channel.Close(*MISSING, 0, 0), old.channel_number),
        lambda: broker.send(spec.Queue.DeclareOk("q", 7, 0)),
    ]
    assert channel.make(LOOK).method.message_count == 7
    assert (channel.pika, channel.refusals) == (new, [])
    oldest = channel.leave()
    channel.open()
    broker.send(spec.Channel.Close(*MISSING, 0, 0), oldest.channel_number if oldest else None)
    assert channel.refusals == []


def test_a_method_without_a_reply_is_sent_only_on_the_channel_that_it_is_for(channel: Channel) -> None:
    """A method without a reply, such as basic.ack, is sent on the channel that it is for. If this channel has been
    reopened or lost in the meantime, the method is not sent, since its delivery tag is no longer valid.
    """
    sent: list[PikaChannel] = []
    channel.send(1, sent.append)
    assert sent == [channel.pika]
    channel.send(2, sent.append)
    channel.leave()
    channel.send(1, sent.append)
    channel.open()
    channel.send(1, sent.append)
    assert len(sent) == 1
    channel.send(2, sent.append)
    assert sent[1:] == [channel.pika]
    assert channel.pika is not None
    channel.pika.close()
    channel.send(2, sent.append)
    assert len(sent) == 2


def test_all_deliveries_up_to_a_delivery_tag_are_requeued_on_their_channel(
    broker: ScriptedBroker, channel: Channel
) -> None:
    """Requests.requeue() requeues all unacknowledged deliveries up to a delivery tag with one basic.nack, unless the
    channel has been reopened in the meantime.
    """
    broker.silent = {spec.Basic.Nack}  # it has no reply
    channel.requeue(1, 7)
    channel.requeue(2, 8)
    assert [(each.delivery_tag, each.multiple, each.requeue) for each in broker.of(spec.Basic.Nack)] == [
        (7, True, True)
    ]
