"""RPC: functions that compute a server's replies, and one that sorts replies into the order of their requests.

A program's stdout becomes the body of the reply; its exit status and the end of its stderr become headers.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mqtool import ndjson
from mqtool.amqp import administration
from mqtool.amqp.administration import Asks, LooksUp
from mqtool.errors import BadData, ExitCode, MqtoolError, NotConfirmed, NotFound, StoppedWaiting, TimedOut, Unavailable
from mqtool.message import ERROR_REPLY, Delivery, Message
from mqtool.spelling import starting_a_server
from mqtool.topology import Queue
from mqtool.work.deduplication import HandledMessages, MessageKey
from mqtool.work.exec_command import ExecCommand
from mqtool.work.runner import CANNOT_RUN, NOT_FOUND
from mqtool.work.worker import CommandBroken

#: Computes the reply to a request.
Function = Callable[[Delivery], Message]

#: Headers of a program's reply.
EXIT_STATUS, STDERR = "exit-status", "stderr"
#: Seconds to wait, after the time limit, until the broker has counted the consumers.
_PATIENCE = 1.0
#: The most ranges of requests without a reply to name.
_RANGES = 20
#: The largest argument of fib(), whose result has 4,180 digits.
_FIB_MAX = 20_000
_fibonacci = [0, 1]


def fib(n: int) -> int:
    """Return the n-th Fibonacci number. Raises BadData unless n is between 0 and 20,000."""
    if not 0 <= n <= _FIB_MAX:
        raise BadData(f"fib({str(n)[:40]}): n must be from 0 to {_FIB_MAX}")
    while len(_fibonacci) <= n:
        _fibonacci.append(_fibonacci[-1] + _fibonacci[-2])
    return _fibonacci[n]


def fib_from_0(n: int) -> int:
    """Return the n-th Fibonacci number, or 0 for a negative n. Raises BadData if n is above 20,000."""
    return fib(max(n, 0))


def add100(n: int) -> int:
    """Return n + 100, after two seconds."""
    time.sleep(2)
    return n + 100


FUNCTIONS: Mapping[str, Callable[[int], int]] = {"fib": fib, "add100": add100}


def of_integer(compute: Callable[[int], int]) -> Function:
    """Return a function that computes the reply from the integer in the request's body."""

    def answer(request: Delivery) -> Message:
        try:
            return Message(str(compute(int(request.body))).encode())
        except ValueError as error:  # also for integers of more than 4,300 digits
            shown = request.body[:40].decode("utf-8", "backslashreplace")
            raise BadData(f"the request {shown!r} is not an integer") from error

    return answer


def of_program(command: ExecCommand) -> Function:
    """Return a function that runs a program and replies with its stdout. `command` must capture stdout."""

    def answer(request: Delivery) -> Message:
        ending = command.run(request)
        headers = {EXIT_STATUS: ending.status, STDERR: ending.stderr.decode("utf-8", "replace")}
        if ending.too_much is not None:
            raise BadData(f"the program {ending.reason}")
        if ending.timed_out is not None:
            headers |= {EXIT_STATUS: ExitCode.TIMED_OUT, STDERR: f"{headers[STDERR]}{ending.reason}\n"}
        return Message(ending.stdout, properties={"headers": headers})

    return answer


def stop_if_broken(reply: Message) -> None:
    """Raise CommandBroken if the program behind a reply could not be run."""
    if _is_broken(reply):
        what = reply.properties["headers"][STDERR].strip()
        raise CommandBroken(f"the program cannot be run: {what}", "correct --exec")


def _is_broken(reply: Message) -> bool:
    return (reply.properties.get("headers") or {}).get(EXIT_STATUS) in (CANNOT_RUN, NOT_FOUND)


def answering_errors(function: Function) -> Function:
    """Wrap a function so that BadData becomes an error reply (type "error") instead of an exception."""

    def answer(request: Delivery) -> Message:
        try:
            return function(request)
        except BadData as error:
            return Message(str(error).encode(), properties={"type": ERROR_REPLY})

    return answer


def answering_once(
    function: Function,
    handled: HandledMessages,
    cluster: str,
    notice: Callable[[str], None],
    give_up: Callable[[], bool],
) -> Function:
    """Wrap a function so that a repeated request gets the stored reply, and the function is not called again.

    Requests are identified by id, user and reply queue, so a client never gets the reply that was stored for another
    client with the same ids.

    Args:
        cluster: the cluster name and virtual host that the requests come from (Connection.cluster).
        give_up: returns True to stop waiting for another server that handles a copy of the request. The returned
            function then raises Interrupted.
    """

    def answer(request: Delivery) -> Message:
        request_id = request.message_id or request.properties.get("correlation_id")
        if not request_id:
            return function(request)
        client = f"{request.properties.get('user_id') or ''}\n{request.properties.get('reply_to') or ''}"
        key = MessageKey(cluster, request.queue, request_id, client)
        before = handled.begin(key, give_up)
        if before is not None and before.reply is not None:
            notice(f"request {request_id} was answered before; sending the same reply")
            return ndjson.to_message(before.reply, "the stored reply")
        try:
            reply = function(request)
        except BaseException:
            handled.failed(key)
            raise
        if _is_broken(reply):  # when --exec has been corrected, a stored reply would stop the server again
            handled.failed(key)
        else:
            handled.done(key, ndjson.from_message(reply))
        return reply

    return answer


def in_order(
    replies: Iterable[tuple[int, Delivery]], channel: Asks | LooksUp, queue: Queue, count: int, deadline: float = 0.0
) -> Iterator[Delivery]:
    """Yield replies in the order of their requests. At the time limit, those behind a missing one follow.

    Args:
        replies: (request number, reply) pairs; the numbers start at 0.
        queue: the queue to which the requests were published.
        count: the number of requests sent.
        deadline: the time (`time.monotonic()`) at which the channel stops waiting for a broker that cannot reply.

    Raises:
        Unavailable: the time limit has passed, and no server consumes from the queue.
        TimedOut: the time limit has passed for another reason.
    """
    early: dict[int, Delivery] = {}
    due = 0
    try:
        for number, reply in replies:
            early[number] = reply
            while due in early:
                yield early.pop(due)
                due += 1
    except (TimedOut, StoppedWaiting, NotConfirmed) as error:
        missing = sorted(set(range(due, count)) - early.keys())
        for _, reply in sorted(early.items()):
            yield reply
        if time.monotonic() < deadline:
            raise  # a signal has stopped the command, or the broker has refused a request
        if _has_no_server(channel, queue):
            raise Unavailable(
                f"no RPC server consumes from queue {queue.name!r}",
                f"the requests in the queue have expired; start a server: {starting_a_server(queue.name)}",
            ) from error
        raise TimedOut(
            f"{len(missing)} of {count} replies did not come in time{_which(missing, count)}", "--timeout waits longer"
        ) from error


def _which(missing: Sequence[int], count: int) -> str:
    """Name the requests without a reply, counted from 1, in ranges; nothing if none has a reply."""
    if len(missing) == count:
        return ""
    runs: list[list[int]] = []
    for number in missing:
        if runs and number == runs[-1][-1]:
            runs[-1][-1] += 1
        else:
            runs.append([number + 1, number + 1])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:_RANGES]]
    more = ", …" if len(runs) > _RANGES else ""
    return f": {'request' if len(missing) == 1 else 'requests'} {', '.join(shown)}{more}"


def _has_no_server(channel: Asks | LooksUp, queue: Queue) -> bool:
    """True if no server consumes from the queue, where requests have just expired; False if the broker does not reply.

    Raises:
        NotFound: the queue does not exist.
    """
    try:
        depth = administration.depth(channel, queue.name, _PATIENCE)
    except NotFound:
        raise
    except MqtoolError:
        return False
    return not depth.consumers
