"""An AMQP 1.0 connection that is reopened after a loss, with what the broker sends in place of a socket."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from mqtool import silence
from mqtool.amqp import Address, Backoff
from mqtool.amqp10 import reopening_transport
from mqtool.amqp10.refusals import ClosedByBroker, Lost
from mqtool.amqp10.reopening_transport import ReopeningTransport
from mqtool.errors import AccessRefused, MqtoolError, StoppedWaiting, Unavailable

ONE, TWO = Address("one"), Address("two")
AT_ONCE = Backoff(first=0, attempts=2)
FORCED = ClosedByBroker("amqp:connection:forced", "shutdown")
CRASHED = ClosedByBroker("amqp:internal-error", "Session error: bad_return_value")
FORBIDDEN = ClosedByBroker("amqp:unauthorized-access", "no permission")
HELLO, WORK = b"hello", b"work"
#: Seconds to wait for what the I/O thread does.
_PATIENCE = 10.0


class Broker:
    """The broker's end of all connections, in place of a Transport.

    Attributes:
        now: the time in seconds.
        unreachable: the errors of the next attempts to connect; None for an attempt that succeeds.
        asked: the arguments of each attempt to connect.
        closed: whether each connection that was closed was closed politely.
        waits: how long each read waited at most.
        closing_fails: True if closing a connection raises an error.
        received_at: when the connection last received something.
    """

    def __init__(self) -> None:
        self.now = self.received_at = 1000.0
        self.properties = {"version": "4.1.0"}
        self.unreachable: list[MqtoolError | None] = []
        self.asked: list[tuple[Any, ...]] = []
        self.closed: list[bool] = []
        self.waits: list[float] = []
        self.closing_fails = False
        self._events = SimpleQueue[list[bytes] | BaseException]()

    def monotonic(self) -> float:
        return self.now

    def connect(self, *arguments: object, **options: object) -> "Broker":
        self.asked.append((*arguments, options))
        if self.unreachable and (error := self.unreachable.pop(0)):
            raise error
        return self

    def tells(self, *events: bytes | BaseException | None) -> None:
        """Let the next reads return these frames or nothing, or raise these errors."""
        for event in events:
            self._events.put(event if isinstance(event, BaseException) else [] if event is None else [event])

    # A Transport's methods.

    def read(self, timeout: float) -> list[bytes]:
        self.waits.append(timeout)
        try:
            event = self._events.get(timeout=0 if threading.current_thread() is threading.main_thread() else 30)
        except Empty:
            event = []
        if isinstance(event, BaseException):
            raise event
        self.now += 0 if event else timeout
        return event

    def wake(self) -> None:
        self.tells(None)

    def close(self, *, politely: bool = True) -> None:
        self.closed.append(politely)
        if self.closing_fails:
            raise OSError


class Session(ReopeningTransport):
    """A connection that begins with a frame from the broker, and records what happens to it."""

    def __init__(self, addresses: Sequence[Address] = (ONE,), backoff: Backoff | None = None, **options: Any) -> None:
        self.log: list[object] = []
        self.notices: list[str] = []
        before = {*threading.enumerate()}
        super().__init__(addresses, options.pop("context", None), backoff, self.notices.append, **options)
        self.threads = {*threading.enumerate()} - before

    def begin(self) -> None:
        greeted = len(self.log)
        self.log.append("begin")
        self.until(lambda: HELLO in self.log[greeted:], self.epoch)

    def take(self, body: bytes) -> None:
        if body == FORBIDDEN.reply_text.encode():
            raise FORBIDDEN
        self.log.append(body)

    def taken(self) -> None:
        self.log.append("taken")

    def lost(self) -> Callable[[], None]:
        self.log.append(("lost", self.is_lost))
        return lambda: self.log.append("resumed")

    def reopened(self) -> None:
        self.log.append(("reopened", self.epoch, self.is_lost))

    def has(self, what: object) -> None:
        """Wait until the log contains something."""
        self.reaches(lambda: what in self.log)

    def has_told(self, count: int) -> None:
        """Wait until there are this many notices."""
        self.reaches(lambda: len(self.notices) == count)

    def reaches(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true. Fails if it is not true in time."""
        deadline = time.monotonic() + _PATIENCE
        self.wait(lambda: condition() or time.monotonic() > deadline, None)
        assert condition(), f"{self.log}, {self.notices}"

    def failed(self) -> MqtoolError:
        """Wait until the connection and its I/O thread have ended for good; return the error."""
        with pytest.raises(MqtoolError) as caught:
            self.reaches(lambda: False)
        assert caught.value is self.failure
        for thread in self.threads:
            thread.join(_PATIENCE)
            assert not thread.is_alive()
        return caught.value


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    for module in (reopening_transport, silence):
        monkeypatch.setattr(module, "time", broker)
    monkeypatch.setattr(reopening_transport, "Transport", broker.connect)
    return broker


@pytest.fixture
def connect(broker: Broker) -> Iterator[Callable[..., Session]]:
    """Open a connection. It is closed at the end of the test."""
    sessions = []

    def open_one(*arguments: Any, **options: Any) -> Session:
        broker.tells(HELLO)
        sessions.append(Session(*arguments, **options))
        return sessions[-1]

    yield open_one
    broker.closing_fails = False
    for session in sessions:
        session.close()


class Clocked(threading.Condition):
    """Waits only by the broker's clock."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self.broker = broker

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout
        self.broker.now += timeout
        return False


Connect = Callable[..., Session]


def test_a_connection_uses_the_first_node_that_accepts_it(
    broker: Broker, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An AMQP 1.0 connection is opened to the first node that accepts it, under the name in $MQTOOL_CONNECTION_NAME. If
    the connection is lost, mqtool first tries the node that it was connected to. If this node then closes the socket
    during the login, mqtool treats this as a network failure, not as a refused login, because it has logged in there
    before.
    """
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "nightly")
    broker.unreachable = [Unavailable("no route")]
    context = ssl.create_default_context()
    session = connect([ONE, TWO], AT_ONCE, context=context)
    assert (session.address, session.lacks_a_node) == (TWO, True)
    first = {"logged_in_before": False}
    assert broker.asked == [(ONE, context, "nightly", first), (TWO, context, "nightly", first)]
    broker.tells(EOFError(), HELLO)
    session.has(("reopened", 1, False))
    assert broker.asked[2:] == [(TWO, context, "nightly", {"logged_in_before": True})]
    assert not session.lacks_a_node


def test_the_error_of_the_last_node_is_raised_if_none_can_be_reached(broker: Broker) -> None:
    """If no node can be reached, opening an AMQP 1.0 connection raises the error of the last node that was tried. If a
    node refuses the connection, its error is raised, even if other nodes cannot be reached.
    """
    broker.unreachable = [Unavailable("no route to one"), Unavailable("no route to two")]
    with pytest.raises(Unavailable, match=r"^no route to two$"):
        Session([ONE, TWO])
    broker.unreachable = [Unavailable("no route to one"), AccessRefused("no such vhost"), Unavailable("no route")]
    with pytest.raises(AccessRefused, match=r"^no such vhost$"):
        Session([ONE, TWO, Address("three")])
    with pytest.raises(Unavailable, match=r"^no address to connect to$"):
        Session([])


def test_a_connection_to_rabbitmq_3_is_closed(broker: Broker, connect: Connect) -> None:
    """If the broker is RabbitMQ 3, opening an AMQP 1.0 connection raises Unavailable, which names the version, and
    closes the connection. A broker that does not send its version is accepted.
    """
    broker.properties = {"version": "3.13.7"}
    with pytest.raises(Unavailable, match=r"the broker is RabbitMQ 3\.13\.7$"):
        Session()
    assert broker.closed == [True]
    broker.properties = {}
    assert not connect().lacks_a_node


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (EOFError(), Unavailable, "lost the connection to amqp://guest@one:5672: closed by the other end"),
        (OSError(104, "Connection reset"), Unavailable,
         "lost the connection to amqp://guest@one:5672: connection reset"),
        (OSError(), Unavailable, "lost the connection to amqp://guest@one:5672: the broker sent something unreadable"),
        (None, Unavailable, "lost the connection to amqp://guest@one:5672: the broker does not answer"),
        (FORBIDDEN, AccessRefused, "no permission"),
    ],
    ids=["closed", "reset", "nameless", "silent", "refused"],
)  # fmt: skip
def test_the_error_about_a_session_that_cannot_begin_gives_the_reason(
    broker: Broker, event: BaseException | None, kind: type[MqtoolError], words: str
) -> None:
    """When an AMQP 1.0 connection is opened, it begins a session. If that fails, for example because the broker
    refuses the session or does not answer within 20 s, the call that opens the connection raises an error with the
    reason, and closes the socket.
    """
    broker.tells(event)
    with pytest.raises(kind) as caught:
        Session()
    assert str(caught.value) == words
    assert broker.closed == [False]
    assert event or broker.now == pytest.approx(1020, abs=0.5)


def test_frames_are_processed_as_they_arrive(broker: Broker, connect: Connect) -> None:
    """An AMQP 1.0 connection processes frames on a daemon thread as they arrive. After the frames of each read, the
    thread does other work, such as sending messages that have been waiting. If some messages are to be sent again at a
    later time, the thread checks every 0.1 s whether this time has come.
    """
    session = connect()
    [thread] = session.threads
    assert (thread.name, thread.daemon) == ("mqtool-amqp10", True)
    assert not session.reads_here
    broker.tells(None, WORK)
    session.has(WORK)
    assert session.log == ["begin", HELLO, "taken", WORK, "taken"]
    session.due_at = 1000.5
    broker.tells(WORK, None, b"last")
    session.has(b"last")
    assert session.log[5:] == [WORK, "taken", "taken", b"last", "taken"]
    assert {*broker.waits[1:3]} == {1.0}
    assert {*broker.waits[4:]} == {0.1}
    assert session.has_progressed
    assert session.epoch == 0


def test_a_connection_without_an_io_thread_reads_when_it_is_run(broker: Broker, connect: Connect) -> None:
    """An AMQP 1.0 connection without an I/O thread processes frames only while its caller runs it: run() waits for
    frames up to the given time, and returns whether any have arrived. A connection that the caller has closed does not
    count as failed.
    """
    session = connect(threaded=False)
    assert session.reads_here
    broker.tells(WORK)
    assert session.run(2.5) is True
    assert WORK in session.log
    assert session.run(7) is False
    assert broker.waits[-2:] == [2.5, 7]
    session.close()
    session.check()
    assert broker.closed == [True]


def test_a_lost_amqp_1_0_connection_is_reopened_and_its_work_resumed(broker: Broker, connect: Connect) -> None:
    """When an AMQP 1.0 connection is lost, mqtool closes its socket, reconnects, begins a new session, and resumes the
    interrupted work. If an attempt fails, for example because the broker is shutting down, mqtool closes the socket of
    this attempt and tries again. Notices report the loss, each failed attempt, and how long reconnecting took.
    """
    session = connect([ONE], Backoff(first=0))
    broker.unreachable = [Unavailable("no route"), None, None, None]
    broker.tells(OSError(110, "Timed out"), EOFError(), FORCED, *[None] * 10, HELLO)
    session.has("resumed")
    session.reaches(lambda: not session.is_lost)
    broker.tells(WORK)
    session.has(WORK)
    assert session.notices == [
        "lost the connection to amqp://guest@one:5672: timed out",
        "attempt 1 to reconnect failed: no route",
        "attempt 2 to reconnect failed: closed by the other end",
        "attempt 3 to reconnect failed: shutdown",
        "connected again to amqp://guest@one:5672 after 2.0 s",
    ]
    assert broker.closed == [False] * 3
    assert session.log == [
        "begin", HELLO, "taken", ("lost", True), "begin", "begin", "begin", HELLO, "taken", "resumed",
        ("reopened", 1, False), "taken", WORK, "taken",
    ]  # fmt: skip
    assert session.epoch == 1
    assert session.failure is None


@pytest.mark.parametrize(
    ("event", "words"),
    [(ValueError(), "the broker sent something unreadable"), (FORCED, "shutdown")],
    ids=["unreadable", "shutdown"],
)
def test_losing_a_connection_that_does_not_reconnect_raises_an_error(
    broker: Broker, connect: Connect, event: BaseException, words: str
) -> None:
    """If an AMQP 1.0 connection that does not reconnect is lost, each call that waits raises an error that gives the
    reason for the loss.
    """
    session = connect()
    broker.tells(event)
    failure = session.failed()
    assert (type(failure), str(failure)) == (Unavailable, f"the connection was lost: {words}")
    assert session.refused is False
    assert session.is_lost
    assert session.notices == []
    session.close()
    assert session.failure is failure
    assert broker.closed == [False]


def test_a_request_is_repeated_after_a_reconnection(broker: Broker, connect: Connect) -> None:
    """If an AMQP 1.0 connection is lost after a request was sent, mqtool repeats the request once the connection is
    open again, even if it was reopened before mqtool began to wait for the reply. A request that the broker refuses is
    not repeated. A connection without an I/O thread repeats no request.
    """
    session = connect([ONE], AT_ONCE)
    epochs = []

    def request() -> str:
        epochs.append(epoch := session.epoch)
        if epoch == 0:
            broker.tells(EOFError(), HELLO)
            session.reaches(lambda: session.epoch == 1)
        else:
            broker.tells(WORK)
        session.until(lambda: WORK in session.log, epoch)
        return "reply"

    assert session.retrying(request) == "reply"
    assert epochs == [0, 1]

    def refuse() -> None:
        raise FORBIDDEN

    with pytest.raises(AccessRefused, match="no permission"):
        session.retrying(refuse)
    session.close()

    def lose() -> None:
        raise Lost

    with pytest.raises(Lost):
        connect(threaded=False).retrying(lose)


def test_a_request_is_given_up_after_20_seconds(broker: Broker, connect: Connect) -> None:
    """If the broker does not answer a request over AMQP 1.0 within 20 s, or within the time that the caller gives, the
    request raises Unavailable. If the caller waits for another event, such as a confirm, for a limited time, waiting
    ends without an error.
    """
    session = connect()
    session.changed = Clocked(broker)
    with pytest.raises(Unavailable, match=r"^the broker did not answer within 20 s$"):
        session.until(lambda: False, session.epoch)
    assert broker.now == pytest.approx(1020, abs=0.5)
    with pytest.raises(Unavailable, match=r"^the broker did not answer within 2.5 s$"):
        session.until(lambda: False, session.epoch, 2.5)
    began = broker.now
    session.wait(lambda: False, 0.5)
    assert broker.now == pytest.approx(began + 0.5)


def test_mqtool_gives_up_reconnecting_when_the_limit_of_attempts_is_reached(broker: Broker, connect: Connect) -> None:
    """If an AMQP 1.0 connection is lost within 60 s of being reopened, and before a message has been confirmed or
    settled, mqtool does not reset its count of attempts to reconnect. When the count reaches the limit (2 in this
    test), each call that waits raises Unavailable.
    """
    session = connect([ONE, TWO], AT_ONCE)
    for epoch in (1, 2):
        broker.tells(EOFError(), HELLO)
        session.has(("reopened", epoch, False))
        session.reaches(lambda: not session.is_lost)
    broker.now += 60
    broker.tells(EOFError())
    failure = session.failed()
    words = "gave up reconnecting to amqp://guest@one:5672 after 2 attempts"
    assert (type(failure), str(failure)) == (Unavailable, words)
    assert not session.refused


@pytest.mark.parametrize("progresses", [True, False])
def test_attempts_to_reconnect_are_counted_from_1_after_a_stable_connection(
    broker: Broker, connect: Connect, *, progresses: bool
) -> None:
    """If a message has been confirmed or settled on an AMQP 1.0 connection, or the connection has been open for more
    than 60 s, the attempts to reconnect are counted from 1 again after the next loss.
    """
    session = connect([ONE], AT_ONCE)
    for epoch in range(1, 5):
        broker.unreachable = [Unavailable("no route")]
        broker.tells(FORCED, HELLO)
        session.has(("reopened", epoch, False))
        session.has_told(3 * epoch)
        assert session.notices[-2] == "attempt 1 to reconnect failed: no route"
        assert not session.has_progressed
        if progresses:
            session.has_progressed = True
        else:
            broker.now += 60.5


@pytest.mark.parametrize(
    ("unreachable", "events", "kind", "words"),
    [
        ([AccessRefused("wrong password")], [EOFError()], AccessRefused, "wrong password"),
        ([], [FORCED, FORBIDDEN], AccessRefused, "no permission"),
    ],
    ids=["login", "session"],
)
def test_reconnecting_ends_if_the_broker_refuses_the_connection(
    broker: Broker,
    connect: Connect,
    unreachable: list[MqtoolError | None],
    events: list[BaseException],
    kind: type[MqtoolError],
    words: str,
) -> None:
    """If the broker refuses the login or the session when an AMQP 1.0 connection is opened again, mqtool makes no
    further attempt, and each call that waits raises the broker's error.
    """
    session = connect([ONE], Backoff(first=0))
    broker.unreachable = [*unreachable]
    broker.tells(*events)
    failure = session.failed()
    assert (type(failure), failure.args[0]) == (kind, words)
    assert not session.refused
    assert len(broker.asked) == 2


@pytest.mark.parametrize("reason", ["vhost 'test\n' is deleted", "shutdown"])
def test_a_login_that_ends_without_a_reason_counts_as_refused_if_the_virtual_host_was_deleted(
    broker: Broker, connect: Connect, reason: str
) -> None:
    """RabbitMQ refuses a missing virtual host by closing the connection without a reason. If the broker has closed an
    AMQP 1.0 connection because its virtual host was deleted, mqtool therefore treats a connection that ends during
    the next login as a refusal. If the broker has given another reason, such as a shutdown, mqtool treats it as a
    network failure.
    """
    session = connect([ONE], AT_ONCE)
    broker.tells(ClosedByBroker("amqp:connection:forced", reason), HELLO)
    session.has(("reopened", 1, False))
    assert broker.asked[1][-1] == {"logged_in_before": reason == "shutdown"}
    session.has_progressed = True
    broker.tells(EOFError(), ClosedByBroker("amqp:connection:forced", reason), HELLO)
    session.has(("reopened", 2, False))
    assert [each[-1]["logged_in_before"] for each in broker.asked[2:]] == [True, reason == "shutdown"]


def test_an_attempt_to_reconnect_ends_when_the_session_is_closed(broker: Broker, connect: Connect) -> None:
    """If an AMQP 1.0 session is closed while mqtool is reconnecting, the attempt ends, and its socket is closed. No
    notice reports that the attempt has failed or succeeded.
    """
    session = connect([ONE], Backoff(first=0))
    broker.tells(EOFError())
    session.reaches(lambda: session.log.count("begin") == 2)
    session._closing.set()
    broker.tells(HELLO)
    [thread] = session.threads
    thread.join(_PATIENCE)
    assert not thread.is_alive()
    assert (session.is_lost, session.epoch, len(session.notices)) == (True, 0, 1)
    assert broker.closed == [False, False]


def test_a_session_that_the_broker_ends_is_not_begun_again(broker: Broker, connect: Connect) -> None:
    """If the broker ends an AMQP 1.0 session because of an error, mqtool does not begin a new session or reconnect, and
    each call that waits raises the broker's error.
    """
    session = connect([ONE], AT_ONCE)
    broker.tells(FORBIDDEN.reply_text.encode())
    assert isinstance(session.failed(), AccessRefused)
    assert (session.refused, session.is_lost) == (True, False)
    assert session.notices == []


def test_a_session_that_crashes_three_times_in_a_row_is_not_begun_again(broker: Broker, connect: Connect) -> None:
    """If a fault in the broker ends an AMQP 1.0 session, mqtool reconnects. If this happens three times in a row,
    each time within 60 s of the reconnection and before a message was confirmed or settled, mqtool gives up, and its
    error contains the broker's error and a hint. RabbitMQ's session crashes each time it is about to deliver a
    message that it cannot convert to AMQP 1.0, so reconnecting does not help.
    """
    session = connect([ONE], Backoff(first=0))
    events = [CRASHED, CRASHED, EOFError(), CRASHED, CRASHED, FORCED, CRASHED, CRASHED]
    for epoch, event in enumerate(events, 1):
        broker.tells(event, HELLO)
        session.has(("reopened", epoch, False))
        session.reaches(lambda: not session.is_lost)
    broker.now += 60
    broker.tells(CRASHED, HELLO)
    session.has(("reopened", 9, False))
    session.reaches(lambda: not session.is_lost)
    broker.tells(CRASHED, HELLO)
    session.has(("reopened", 10, False))
    session.reaches(lambda: not session.is_lost)
    session.has_progressed = True
    broker.tells(CRASHED, HELLO)
    session.has(("reopened", 11, False))
    session.reaches(lambda: not session.is_lost)
    broker.tells(CRASHED, HELLO)
    session.has(("reopened", 12, False))
    broker.now += 59
    broker.tells(CRASHED)
    failure = session.failed()
    assert str(failure) == "the broker ended the session because of an internal error, several times in a row"
    assert failure.hint is not None
    assert failure.hint.startswith("a message that it cannot convert to AMQP 1.0 would do this: try --protocol")
    assert isinstance(failure, Unavailable)
    assert session.refused
    assert len(broker.asked) == 13


def test_stopping_ends_the_wait_for_a_lost_connection(broker: Broker, connect: Connect) -> None:
    """After stop() has been called on an AMQP 1.0 connection, a call that waits for the broker continues to wait
    while the connection is open. If the connection is lost, the call raises StoppedWaiting, instead of waiting until
    the connection is reopened. stop() also wakes the connection's I/O thread, so that this thread notices the stop
    immediately.
    """
    session = connect([ONE], Backoff(first=3600))
    session.stop()
    session.reaches(lambda: session.log.count("taken") == 2)
    assert (session.stopping, session.hopeless) == (True, None)
    broker.tells(EOFError())
    with pytest.raises(StoppedWaiting, match=r"^stopped: the connection is lost$"):
        session.wait(lambda: False, None)
    session.wait(lambda: False, 0)
    session.close()
    assert {*broker.closed} == {False}
    assert str(session.failure) == "the connection is closed"
    assert len(broker.asked) == 1


def test_a_stopped_command_waits_only_8_s_for_an_amqp_1_0_broker(broker: Broker, connect: Connect) -> None:
    """After stop() has been called on an AMQP 1.0 connection, a request waits up to 8 s for the broker's reply, and
    then raises StoppedWaiting. The next request waits only a second, unless the broker has replied in the meantime.
    Another call that waits for the broker, for example for credit or an outcome, gives up if the broker has sent
    nothing at all for 8 s while the call waits. A call that gives up earlier, because of its own time limit, does not
    shorten the wait of later calls.
    """
    session = connect()
    session.changed = Clocked(broker)
    session.stop()
    with pytest.raises(Unavailable, match=r"^the broker did not answer within 2 s$"):
        session.until(lambda: False, session.epoch, 2)

    def waited(wait: Callable[[], object]) -> float:
        began = broker.now
        with pytest.raises(StoppedWaiting, match=r"^stopped: the broker does not reply$"):
            wait()
        return broker.now - began

    for seconds in (8.3, 1.3):
        assert waited(lambda: session.until(lambda: False, session.epoch)) == pytest.approx(seconds, abs=0.21)
    session.until(lambda: True, session.epoch)
    assert waited(lambda: session.until(lambda: False, session.epoch)) == pytest.approx(8.3, abs=0.21)
    assert waited(lambda: session.wait(lambda: False, None)) == pytest.approx(8.1, abs=0.21)
    assert session.hopeless == "the broker does not reply"
    broker.received_at = broker.now
    assert session.hopeless is None
    assert waited(lambda: session.wait(lambda: False, None)) == pytest.approx(8.1, abs=0.21)
    broker.now += 60
    assert session.hopeless is None


@pytest.mark.parametrize("closing_fails", [True, False])
def test_a_closed_connection_is_not_opened_again(broker: Broker, connect: Connect, *, closing_fails: bool) -> None:
    """close() of an AMQP 1.0 connection sends a close frame, and ends the I/O thread, even if the socket fails. After
    that, the connection is not opened again: calls that wait raise Unavailable. A second close() has no effect.
    """
    session = connect([ONE], AT_ONCE)
    broker.closing_fails = closing_fails
    session.close()
    session.close()
    assert broker.closed == [True]
    assert not any(thread.is_alive() for thread in session.threads)
    failure = session.failed()
    assert (type(failure), str(failure)) == (Unavailable, "the connection is closed")
    assert session.notices == []
