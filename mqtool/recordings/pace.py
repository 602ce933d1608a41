"""When each message of a recording is due, as it is played again."""

import time
from collections.abc import Callable

from mqtool.recordings.reading import Recorded

#: Seconds by which a clock may have been set back, or lines be out of order, within one recording.
_JITTER = 1.0
#: Seconds that a given rate may fall behind and catch up again; a broker that blocked us for longer is spared the rest.
_CATCH_UP = 1.0


class Pace:
    """Tells when messages are due, counted from the first one, so that delays do not add up.

    A message that passed before the one in front of it is due at once. Where time goes back by more than a second, or a
    file begins before the end of the one in front of it, another recording begins, without a gap.

    Args:
        speed: how many times as fast as recorded; infinity ignores the recorded gaps.
        rate: messages a second instead, evenly.
        clock: seconds, from any point on.
    """

    def __init__(
        self, speed: float = 1.0, rate: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.speed = speed
        self.rate = rate
        self._clock = clock
        self._is_first = True
        self._count = 0
        self._start = self._due = 0.0
        self._origin: float | None = None  # the moment that is due at _start
        self._latest = 0.0

    def due(self, message: Recorded) -> float:
        """When the next message is due, by the clock."""
        if self._is_first:
            self._is_first = False
            self._start = self._due = self._clock()
        if self.rate is not None:
            self._due = self._evenly(self.rate)
        elif message.moment is not None:
            self._due = self._as_recorded(message.moment, opens=message.opens)
        return self._due

    def _evenly(self, rate: float) -> float:
        due = self._start + self._count / rate
        if (late := self._clock() - due) > _CATCH_UP:
            self._start += late
            due += late
        self._count += 1
        return due

    def _as_recorded(self, moment: float, *, opens: bool) -> float:
        if self._origin is None or moment < self._latest - (0.0 if opens else _JITTER):
            self._origin, self._start, self._latest = moment, self._due, moment
        self._latest = max(self._latest, moment)
        return max(self._due, self._start + (moment - self._origin) / self.speed)
