"""Publisher confirms: which publishes of a channel are settled, in as few frames as possible."""

from collections import deque

from mqtool.broker.embedded.wire import frames


class Confirms:
    """The publishes of one channel, numbered from 1.

    A confirm waits for the publishes before it, so that one frame can confirm many. Messages are stored in order and
    in groups, so nothing waits for long.

    Attributes:
        settled: the number of those that have been confirmed or refused.
    """

    def __init__(self) -> None:
        self._published = 0
        self.settled = 0
        # The first publish of each group that is on its way to the disk.
        self._on_their_way: deque[int] = deque()
        self._group = 0
        self._refused: list[int] = []

    def __len__(self) -> int:
        """The number of publishes that are not settled."""
        return self._published - self.settled

    def published_one(self, *, accepted: bool, group: int = 0) -> bool:
        """Count a publish.

        Args:
            accepted: no queue refused it.
            group: the number of the group in which it is on its way to the disk, from 1; 0 if it is not.

        Returns:
            Whether it is the first in its group; then `committed_group` is to be called for that.
        """
        self._published += 1
        if not accepted:
            self._refused.append(self._published)
        if not group or group == self._group:
            return False
        self._group = group
        self._on_their_way.append(self._published)
        return True

    def committed_group(self) -> None:
        """Count the publishes in the oldest group on its way to the disk as stored."""
        self._on_their_way.popleft()

    def take(self, channel: int) -> bytes:
        """Return the frames, for this channel number, that settle what can be settled now."""
        last = self._on_their_way[0] - 1 if self._on_their_way else self._published
        if last <= self.settled:
            return b""
        refused = [number for number in self._refused if number <= last]
        self._refused = self._refused[len(refused) :]
        parts = [frames.nack(channel, number) for number in refused]
        accepted = last - self.settled - len(refused)
        self.settled = last
        if accepted:
            while refused and refused[-1] == last:
                refused.pop()
                last -= 1
            parts.append(frames.ack(channel, last, multiple=accepted > 1))
        return b"".join(parts)
