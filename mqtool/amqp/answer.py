"""What a request to the broker waits for."""

from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Answer(Future[T]):
    """The broker's answer, awaited by one thread and given by the I/O thread.

    Only the first one counts: a channel that closes answers all that waits on it, and the request that was on its way
    there, or pika, which tells twice of a line that breaks in the moment of opening, may come after.
    """

    def give(self, value: T) -> None:
        """The broker has answered."""
        if not self.done():
            self.set_result(value)

    def refuse(self, error: BaseException) -> None:
        """There will be no answer; result() raises this."""
        if not self.done():
            self.set_exception(error)
