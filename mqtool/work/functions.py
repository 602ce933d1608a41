"""The functions of an RPC server: fib and add100, as in the tutorials."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mqtool import ndjson
from mqtool.errors import BadData
from mqtool.message import Delivery, Message

if TYPE_CHECKING:
    from mqtool.work.deduplication import HandledMessages

Function = Callable[[Delivery], Message]

#: The type property of a reply that says why there is no result.
ERROR = "error"
#: fib(20000) has 4,180 digits already.
_FIB_MAX = 20_000
_fibonacci = [0, 1]


def fib(n: int) -> int:
    """The n-th Fibonacci number, each computed only once.

    Raises:
        BadData: n is not from 0 to 20,000.
    """
    if not 0 <= n <= _FIB_MAX:
        raise BadData(f"fib({str(n)[:40]}): n must be from 0 to {_FIB_MAX}")
    while len(_fibonacci) <= n:
        _fibonacci.append(_fibonacci[-1] + _fibonacci[-2])
    return _fibonacci[n]


def add100(n: int) -> int:
    """n + 100, after two seconds of hard thinking."""
    time.sleep(2)
    return n + 100


FUNCTIONS: Mapping[str, Callable[[int], int]] = {"fib": fib, "add100": add100}


def of_integer(compute: Callable[[int], int]) -> Function:
    """Compute the reply from the integer in the request's body."""

    def answer(request: Delivery) -> Message:
        try:
            return Message(str(compute(int(request.body))).encode())
        except ValueError as error:  # Python gives up on integers beyond 4,300 digits, too
            shown = request.body[:40].decode("utf-8", "backslashreplace")
            raise BadData(f"the request {shown!r} is not an integer") from error

    return answer


def answering_errors(function: Function) -> Function:
    """Answer a request that the function cannot handle (BadData) with the error."""

    def answer(request: Delivery) -> Message:
        try:
            return function(request)
        except BadData as error:
            return Message(str(error).encode(), properties={"type": ERROR})

    return answer


def answering_once(
    function: Function, handled: "HandledMessages", queue: str, notice: Callable[[str], None]
) -> Function:
    """Answer a request that arrives again with the same reply, without computing it again."""

    def answer(request: Delivery) -> Message:
        request_id = request.message_id or request.properties.get("correlation_id")
        if not request_id:
            return function(request)
        before = handled.begin(queue, request_id)
        if before is not None and before.reply is not None:
            notice(f"request {request_id} was answered before; sending the same reply")
            return ndjson.to_message(before.reply, "the stored reply")
        try:
            reply = function(request)
        except BaseException:
            handled.failed(queue, request_id)
            raise
        handled.done(queue, request_id, ndjson.from_message(reply))
        return reply

    return answer
