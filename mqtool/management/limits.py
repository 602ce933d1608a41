"""Limits on the responses of the management API. No broker reaches them."""

from mqtool.errors import Unavailable

#: The largest single value, in bytes. The arguments of a queue fit into a frame of AMQP, which has 128 KiB.
LARGEST_VALUE = 32 << 20
#: The largest list, in bytes and in objects.
LARGEST_LIST, MOST_OBJECTS = 1 << 30, 10_000_000
#: Seconds to wait in all for the parts of one response. Pauses of the program that reads the response do not count.
LONGEST = 600.0
#: Seconds for the rest of a response's status line and headers once its first byte has arrived.
HEAD = 10.0

HINT = "is it the management API of a broker? --management names its URL"


def too_large(size: int) -> Unavailable:
    return _too_much(f"{size >> 20} MiB")


def _too_much(what: str) -> Unavailable:
    return Unavailable(f"the management API sends more than {what} in response to one request", HINT)


def check_pages(count: int, size: int) -> None:
    """Raise Unavailable if a list has this many pages of this many objects."""
    if count * size > MOST_OBJECTS:
        raise Unavailable(f"the management API announces a list of {count:,} pages", HINT)


def too_slow() -> Unavailable:
    return Unavailable(f"the management API takes more than {LONGEST / 60:g} minutes for one response", HINT)


class ListLimit:
    """Adds up the objects of a list."""

    def __init__(self) -> None:
        self._bytes = self._objects = 0

    def add(self, size: int, objects: int) -> None:
        """Add objects, whose JSON has this many bytes. Raises Unavailable if the list is too large now."""
        self._bytes += size
        self._objects += objects
        if self._bytes > LARGEST_LIST:
            raise too_large(LARGEST_LIST)
        if self._objects > MOST_OBJECTS:
            raise _too_much(f"{MOST_OBJECTS:,} objects")
