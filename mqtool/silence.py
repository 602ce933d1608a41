"""How long a command that must stop still waits for a broker that does not reply."""

import math
import time
from collections.abc import Callable, Iterator

from mqtool.errors import StoppedWaiting

#: Seconds for which such a command waits: less than the 10 seconds after which containers are killed, and longer than a
#: busy broker takes to reply.
LAST_PATIENCE = 8.0
_AGAIN = 1.0


class Silence:
    """Measures for how long a broker has sent nothing, while a command waits for it and asks again and again.

    Attributes:
        has_given_up: True after a command that must stop has waited for a reply in vain. Until another reply arrives,
            its next requests wait only a second.
    """

    def __init__(self) -> None:
        self.has_given_up = False
        self._received = 0.0
        self._since = self._asked_at = -math.inf

    def until(self, has_reply: Callable[[], bool], must_stop: Callable[[], bool]) -> Iterator[float]:
        """Yield the time (`time.monotonic()`) again and again until there is a reply.

        Args:
            has_reply: waits a moment for the reply; returns True if it is there.
            must_stop: returns True if the command must stop. The reply then has a few seconds left to arrive.

        Raises:
            StoppedWaiting: no reply has arrived in these seconds, although the broker may still send heartbeats.
        """
        give_up_at = math.inf
        while not has_reply():
            now = time.monotonic()
            if give_up_at == math.inf and must_stop():
                give_up_at = now + (_AGAIN if self.has_given_up else LAST_PATIENCE)
            if now > give_up_at:
                self.has_given_up = True
                raise StoppedWaiting("stopped: the broker does not reply")
            yield now
        self.has_given_up = False

    def lasts(self, received: float) -> bool:
        """Return True if nothing has been received for too long. After a pause of a second, it starts anew.

        Args:
            received: a number that changes whenever something is received, such as the number of bytes so far.
        """
        now = time.monotonic()
        if received != self._received or now - self._asked_at > 1.0:
            self._received, self._since = received, now
        self._asked_at = now
        return now - self._since > LAST_PATIENCE
