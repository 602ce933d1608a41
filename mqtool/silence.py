"""How long a command that must stop still waits for a broker that does not reply."""

import math
import time

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

    def deadline(self) -> float:
        """Return the time (`time.monotonic()`) up to which to wait for a reply from now on."""
        return time.monotonic() + (_AGAIN if self.has_given_up else LAST_PATIENCE)

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
