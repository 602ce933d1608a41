"""RPC: the replies of a server's functions and programs, to repeated requests, and the order of replies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from mqtool.amqp.administration import Depth, LooksUp
from mqtool.errors import BadData, TimedOut, Unavailable
from mqtool.message import ERROR_REPLY, Delivery, Message
from mqtool.topology import Queue
from mqtool.work import rpc_functions
from mqtool.work.deduplication import HandledMessages
from mqtool.work.exec_command import ExecCommand
from mqtool.work.rpc_functions import FUNCTIONS
from mqtool.work.runner import Ending
from mqtool.work.worker import CommandBroken

_NO_INTEGER = "the request {} is not an integer"


def request(body: bytes = b"5", tag: int = 1, **properties: Any) -> Delivery:
    return Delivery(body, "", "rpc", "rpc", redelivered=False, properties=properties, delivery_tag=tag)


@pytest.mark.parametrize(
    ("body", "reply"), [(b"0", b"0"), (b"1", b"1"), (b"2", b"1"), (b"10", b"55"), (b" 90 ", b"2880067194370816120")]
)
def test_fib_replies_with_a_fibonacci_number(body: bytes, reply: bytes) -> None:
    """If a request to `rpc-server` contains the integer n, its function fib replies with the n-th Fibonacci number."""
    assert rpc_functions.of_integer(FUNCTIONS["fib"])(request(body)) == Message(reply)


def test_fib_accepts_integers_from_0_to_20000() -> None:
    """The function fib of `rpc-server` accepts integers from 0 to 20,000, and raises BadData for others. The function
    fib_from_0 returns 0 for a negative integer, as the server of some RabbitMQ tutorials does.
    """
    assert len(str(rpc_functions.fib(20_000))) == 4180
    assert (rpc_functions.fib_from_0(-1), rpc_functions.fib_from_0(1), rpc_functions.fib_from_0(6)) == (0, 1, 8)
    for n, shown in ((20_001, "20001"), (-1, "-1"), (10**50, "1" + "0" * 39)):
        with pytest.raises(BadData) as error:
            rpc_functions.fib(n)
        assert str(error.value) == f"fib({shown}): n must be from 0 to 20000"


def test_add100_takes_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function add100 of `rpc-server` replies with the request's integer plus 100, after two seconds."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    assert rpc_functions.of_integer(FUNCTIONS["add100"])(request(b"-5")) == Message(b"95")
    assert slept == [2]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"five", _NO_INTEGER.format("'five'")),
        (b"1.5", _NO_INTEGER.format("'1.5'")),
        (b"", _NO_INTEGER.format("''")),
        (b"\xff1", _NO_INTEGER.format(r"'\\xff1'")),
        (b"1" * 4301, _NO_INTEGER.format(repr("1" * 40))),
        (b"-1", "fib(-1): n must be from 0 to 20000"),
    ],
    ids=["word", "fraction", "empty", "not UTF-8", "too many digits", "negative"],
)
def test_a_request_that_is_not_an_integer_is_answered_with_an_error(body: bytes, says: str) -> None:
    """If a request does not contain an integer that the function of `rpc-server` accepts, the reply explains this,
    and has the type "error". The explanation quotes up to 40 bytes of the request.
    """
    answered = rpc_functions.answering_errors(rpc_functions.of_integer(FUNCTIONS["fib"]))
    assert answered(request(body)) == Message(says.encode(), properties={"type": "error"})
    assert answered(request(b"5")) == Message(b"5")


class Program:
    """A program that has ended in a given way.

    Attributes:
        runs: how many times it was run.
    """

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        self.runs = 0

    def run(self, delivery: Delivery) -> Ending:
        assert delivery.body == b"5"
        self.runs += 1
        return self.ending


def reply_of(program: Program) -> Message:
    return rpc_functions.of_program(cast(ExecCommand, program))(request())


@pytest.mark.parametrize(
    ("ending", "status", "stderr"),
    [
        (Ending(0, b"", b"out"), 0, ""),
        (Ending(3, b"no\xff\n", b"out"), 3, "no\ufffd\n"),
        (Ending(137, b"slow\n", b"out", timed_out=1.5), 124, "slow\ntimed out after 1.5 s: slow\n"),
    ],
    ids=["success", "failure", "time limit"],
)
def test_a_programs_stdout_is_the_reply(ending: Ending, status: int, stderr: str) -> None:
    """With `rpc-server --exec`, the program's stdout is the reply to a request. The reply's headers exit-status and
    stderr contain the program's exit status and the end of its stderr. If the program exceeded the time limit,
    exit-status is 124, and the header stderr ends with a line about the time limit.
    """
    headers = {"exit-status": status, "stderr": stderr}
    assert reply_of(Program(ending)) == Message(b"out", properties={"headers": headers})


def test_a_request_whose_program_prints_too_much_is_answered_with_an_error() -> None:
    """If the program that `rpc-server --exec` runs for a request prints more than the output limit, BadData is
    raised. The error, which the server sends as its reply, names the limit.
    """
    with pytest.raises(BadData) as error:
        reply_of(Program(Ending(137, b"", b"", too_much=1000)))
    assert str(error.value) == "the program printed more than 1,000 bytes"


@pytest.mark.parametrize("status", [126, 127])
def test_a_program_that_cannot_be_run_ends_the_rpc_server(status: int) -> None:
    """If the exit status in a reply of `rpc-server --exec` says that the program could not be run (126), or was not
    found (127), the server ends with an error, whose hint names `--exec`. The server continues after any other exit
    status, and after a reply without an exit status, such as one that reports bad data in the request.
    """
    with pytest.raises(CommandBroken) as error:
        rpc_functions.stop_if_broken(reply_of(Program(Ending(status, b"no permission\n"))))
    assert (str(error.value), error.value.hint) == ("the program cannot be run: no permission", "correct --exec")
    for reply in (reply_of(Program(Ending(1))), Message(b""), Message(b"", properties={"type": ERROR_REPLY})):
        rpc_functions.stop_if_broken(reply)


# Repeated requests


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "handled.db"


@pytest.fixture
def handled(store: Path) -> HandledMessages:
    return HandledMessages(store, 86_400.0)


class Answering:
    """A server that answers each request once, and its notices. Its replies are numbered."""

    def __init__(self, handled: HandledMessages, cluster: str = "rabbit@host/") -> None:
        self.notices: list[str] = []
        self.count = 0
        self.error: BaseException | None = None
        self.properties: dict[str, Any] = {"type": "t"}
        self.answer = rpc_functions.answering_once(self._compute, handled, cluster, self.notices.append, lambda: False)

    def _compute(self, delivery: Delivery) -> Message:
        assert delivery.body == b"5"
        if self.error is not None:
            raise self.error
        self.count += 1
        return Message(b"%d" % self.count, properties=self.properties)


@pytest.mark.parametrize("name", ["message_id", "correlation_id"])
def test_a_repeated_request_gets_the_stored_reply(handled: HandledMessages, store: Path, name: str) -> None:
    """With `--deduplicate`, an RPC server stores its reply to a request in a file, under the request's message id or,
    failing that, its correlation id. If the request is repeated, the server, or another one that opens the file later,
    sends the same reply again, and prints a notice.
    """
    server = Answering(handled)
    again = request(**{name: "a"})
    assert (server.answer(again).body, server.notices) == (b"1", [])
    for each in (server, Answering(HandledMessages(store, 86_400.0))):
        found = each.answer(again)
        assert (found.body, found.properties) == (b"1", {"type": "t"})
        assert each.notices == ["request a was answered before; sending the same reply"]


def test_requests_without_an_id_are_all_answered(handled: HandledMessages) -> None:
    """An RPC server with `--deduplicate` never treats a request as a repeated one if it has neither a message id nor
    a correlation id. Each request without these ids gets its own reply.
    """
    server = Answering(handled)
    assert [server.answer(request()).body for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    "other",
    [{"message_id": "b"}, {"user_id": "you"}, {"reply_to": "yours"}, {"user_id": None}, {"reply_to": None}],
    ids=["id", "user", "reply queue", "no user", "no reply queue"],
)
def test_a_client_never_gets_the_stored_reply_for_another_client(
    handled: HandledMessages, other: dict[str, Any]
) -> None:
    """With `--deduplicate`, an RPC server considers a request repeated only if its id, user and reply queue are the
    same. Therefore, a client never gets the reply that was stored for another client that uses the same ids.
    """
    ours = {"message_id": "a", "correlation_id": "c", "user_id": "me", "reply_to": "mine"}
    server = Answering(handled)
    replies = [server.answer(request(**properties)).body for properties in (ours, ours | other, ours, ours | other)]
    assert replies == [b"1", b"2", b"1", b"2"]


def test_a_request_to_another_queue_or_cluster_is_not_a_repeated_one(handled: HandledMessages) -> None:
    """With `--deduplicate`, an RPC server does not consider a request repeated if a request with the same id was sent
    to another queue or another cluster.
    """
    ours, elsewhere = Answering(handled), Answering(handled, "rabbit@other/")
    assert [each.answer(request(message_id="a")).body for each in (ours, elsewhere)] == [b"1", b"1"]
    assert elsewhere.notices == []
    other = request(message_id="a")
    other.queue = "other"
    assert ours.answer(other).body == b"2"


@pytest.mark.parametrize("error", [BadData("no"), KeyboardInterrupt()], ids=["error", "interrupted"])
def test_a_request_that_was_not_answered_is_answered_when_it_is_repeated(
    handled: HandledMessages, error: BaseException
) -> None:
    """With `--deduplicate`, an RPC server stores no reply if its function fails, or if the server is interrupted. When
    the request is repeated, the server runs the function again and replies.
    """
    server = Answering(handled)
    server.error = error
    with pytest.raises(type(error)):
        server.answer(request(message_id="a"))
    server.error = None
    assert server.answer(request(message_id="a")).body == b"1"


def test_an_rpc_server_stores_no_reply_if_its_program_cannot_be_run(handled: HandledMessages) -> None:
    """`rpc-server --exec --deduplicate` does not store the reply to a request for which its program could not be run.
    After `--exec` has been corrected, the program answers the repeated request.
    """
    server = Answering(handled)
    server.properties = {"headers": {"exit-status": 127, "stderr": "not found"}}
    server.answer(request(message_id="a"))
    server.properties = {"headers": {"exit-status": 0, "stderr": ""}}
    assert server.answer(request(message_id="a")).body == b"2"
    assert server.answer(request(message_id="a")).body == b"2"


# The order of replies


class Lookup:
    """A channel to a broker whose queue "requests" has this depth."""

    def __init__(self, ready: int, consumers: int) -> None:
        self.found = Depth(ready, consumers)

    def exists(self, queue: Queue) -> bool:
        raise NotImplementedError

    def depth(self, queue: str, within: float | None = None) -> Depth:
        assert within == 1
        assert queue == "requests"
        return self.found

    def purge(self, queue: str) -> int:
        raise NotImplementedError


def ordered(*numbers: int, of: int, lookup: LooksUp | None = None) -> Iterator[int]:
    """Yield the numbers of the requests whose replies arrive in this order; then the time limit passes."""

    def replies() -> Iterator[tuple[int, Delivery]]:
        for number in numbers:
            yield number, request(tag=number)
        if len(numbers) < of:
            raise TimedOut("no message within 1 s")

    channel = lookup or Lookup(0, 1)
    return (reply.delivery_tag for reply in rpc_functions.in_order(replies(), channel, Queue("requests"), of))


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 0, 3, 1)])
def test_an_rpc_client_yields_replies_in_the_order_of_their_requests(numbers: tuple[int, ...]) -> None:
    """An RPC client yields the replies to several requests in the order of the requests, not in the order in which the
    replies arrive.
    """
    assert [*ordered(*numbers, of=4)] == [0, 1, 2, 3]


def test_an_rpc_client_yields_a_reply_as_soon_as_it_and_all_earlier_ones_have_arrived() -> None:
    """An RPC client yields a reply as soon as this reply and those to all earlier requests have arrived. If a server
    is running, but replies are still missing when the time limit has passed, it yields those that have arrived behind
    them, in the order of their requests. The error says which are missing, and the hint names `--timeout`, which sets a
    longer limit.
    """
    replies = ordered(0, 1, 7, 3, of=8)
    assert [next(replies) for _ in range(4)] == [0, 1, 3, 7]
    with pytest.raises(TimedOut) as error:
        next(replies)
    told = "4 of 8 replies did not come in time: requests 3, 5-7"
    assert (str(error.value), error.value.hint) == (told, "--timeout waits longer")


@pytest.mark.parametrize(("ready", "consumers", "is_missing"), [(1, 0, True), (1, 1, False), (0, 0, True)])
def test_an_rpc_client_without_a_server_says_how_to_start_one(ready: int, consumers: int, *, is_missing: bool) -> None:
    """If no reply has arrived in time, and the queue has no consumer, the error says that there is no RPC server, and
    the hint contains the command that starts one. Otherwise, the error says how many replies are missing.
    """
    with pytest.raises(Unavailable if is_missing else TimedOut) as error:
        [*ordered(of=2, lookup=Lookup(ready, consumers))]
    if is_missing:
        assert str(error.value) == "no RPC server consumes from queue 'requests'"
        hint = "the requests in the queue have expired; start a server: mqtool rpc-server --queue=requests"
        assert error.value.hint == hint
    else:
        assert str(error.value) == "2 of 2 replies did not come in time"
