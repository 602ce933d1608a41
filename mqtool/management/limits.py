"""Limits on the responses of the management API. No broker reaches them."""

from mqtool.errors import Unavailable

#: The largest single value, in bytes. A page of 500 queues with all columns has about 2 MB.
LARGEST_VALUE = 32 << 20
#: The largest list, in bytes and in values: a million queues or bindings, with the columns that mqtool needs. A value
#: needs up to a hundred bytes of memory, even if its text is short, and an object as much as five values.
LARGEST_LIST, MOST_VALUES = 256 << 20, 15_000_000
_VALUES = {",": 1, "[": 1, "{": 5}
#: The largest number of pages: a million queues.
MOST_PAGES = 2000
#: Seconds to wait in all for the parts of one response. Pauses of the program that reads the response do not count.
LONGEST = 600.0

_HINT = "is it the management API of a broker? --management names its URL"


def too_large(size: int) -> Unavailable:
    return _too_much(f"{size >> 20} MiB")


def _too_much(what: str) -> Unavailable:
    return Unavailable(f"the management API sends more than {what} in response to one request", _HINT)


def too_many_pages(count: int) -> Unavailable:
    return Unavailable(f"the management API announces a list of {count:,} pages", _HINT)


def too_slow() -> Unavailable:
    return Unavailable(f"the management API takes more than {LONGEST / 60:g} minutes for one response", _HINT)


class ListLimit:
    """Adds up the sizes of a list's parts."""

    def __init__(self) -> None:
        self._bytes = self._values = 0

    def add(self, part: str) -> None:
        """Add a part in JSON. Raises Unavailable if the list is too large now."""
        self._bytes += len(part)
        self._values += sum(values * part.count(sign) for sign, values in _VALUES.items())
        if self._bytes > LARGEST_LIST:
            raise too_large(LARGEST_LIST)
        if self._values > MOST_VALUES:
            raise _too_much(f"{MOST_VALUES:,} values")
