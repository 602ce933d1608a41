"""The publishers that a full quorum queue with `x-overflow` reject-publish refuses."""

from weakref import WeakKeyDictionary

from mqtool.broker.embedded.model.queue_arguments import Options


class ThrottledPublishers:
    """Decides which publishers a full quorum queue refuses, as RabbitMQ does.

    The queue tells its publishers to stop once it has exceeded a limit, so it takes one message more than the limit
    allows; and to go on once it is at 80 % of the limit. A publisher that comes meanwhile is told to stop only if the
    queue exceeds the limit at this moment.
    """

    def __init__(self) -> None:
        # How often the queue had exceeded a limit when a publisher first published; and since when publishers must
        # stop, counted in the same way: 0 if they may go on.
        self._came: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._excesses = self._stopped = 0

    def refuses(self, publisher: object, options: Options, messages: int, size: int) -> bool:
        """Return True if a publisher's message is refused; the queue has this many ready messages, of this size."""
        if publisher not in self._came:
            self._came[publisher] = 0 if options.exceeded(messages, size) else self._excesses
        return self._stopped > self._came[publisher]

    def update(self, options: Options, messages: int, size: int) -> None:
        """Tell the publishers to stop or to go on: the queue has now this many ready messages, of this size."""
        if options.exceeded(messages, size):
            self._excesses += 1
            self._stopped = self._excesses
        elif self._stopped and options.has_room(messages, size):
            self._stopped = 0
