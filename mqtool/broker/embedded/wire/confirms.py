"""Publisher confirms: which publishes of a channel are settled, in as few frames as possible."""

from collections import deque

from mqtool.broker.embedded.wire import frames


class Confirms:
    """The publishes of one channel, numbered from 1.

    A confirm waits for the publishes before it, so that one frame can confirm many. Messages are stored in order, so
    nothing waits for long.
    """

    def __init__(self) -> None:
        self._published = 0
        self._settled = 0
        self._on_their_way: deque[int] = deque()
        self._refused: list[int] = []

    def __len__(self) -> int:
        """The number of publishes that are not settled."""
        return self._published - self._settled

    def published_one(self, *, accepted: bool, stored: bool) -> None:
        """Count a publish: `stored` if it is on its way to the disk, `accepted` unless a queue refused it."""
        self._published += 1
        if not accepted:
            self._refused.append(self._published)
        if stored:
            self._on_their_way.append(self._published)

    def committed_one(self) -> None:
        """Count the oldest publish on its way to the disk as stored."""
        self._on_their_way.popleft()

    def take(self, channel: int) -> bytes:
        """Return the frames, for this channel number, that settle what can be settled now."""
        last = self._on_their_way[0] - 1 if self._on_their_way else self._published
        if last <= self._settled:
            return b""
        refused = [number for number in self._refused if number <= last]
        self._refused = self._refused[len(refused) :]
        parts = [frames.nack(channel, number) for number in refused]
        accepted = last - self._settled - len(refused)
        self._settled = last
        if accepted:
            while refused and refused[-1] == last:
                refused.pop()
                last -= 1
            parts.append(frames.ack(channel, last, multiple=accepted > 1))
        return b"".join(parts)
