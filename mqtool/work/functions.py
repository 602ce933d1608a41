"""The functions of an RPC server: fib and add100, as in the tutorials."""

import time
from collections.abc import Callable, Mapping

from mqtool.errors import BadData
from mqtool.message import Delivery, Message

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
        raise BadData(f"fib({n}): n must be from 0 to {_FIB_MAX}")
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
            n = int(request.body)
        except ValueError as error:
            shown = request.body[:40].decode("utf-8", "backslashreplace")
            raise BadData(f"the request {shown!r} is not an integer") from error
        return Message(str(compute(n)).encode())

    return answer


def answering_errors(function: Function) -> Function:
    """Answer a request that the function cannot handle (BadData) with the error."""

    def answer(request: Delivery) -> Message:
        try:
            return function(request)
        except BadData as error:
            return Message(str(error).encode(), properties={"type": ERROR})

    return answer
