"""A message that filters test: decodes each field at most once, and limits the work that filters may do on it."""

import uuid
from typing import Any

from mqtool.broker.embedded.model.sectioned import Sections
from mqtool.codecs.amqp10_message import Amqp10Message
from mqtool.codecs.amqp10_values import Any10

_DEFAULT_PRIORITY = 4

#: How much work the filters of a link may do on one message: a unit is about 5 ns, so 5 ms.
MOST_WORK = 1_000_000

#: How many characters can be searched or decoded for one unit of work.
SCANNED = 64


class TooMuchWork(Exception):
    """A filter takes too long for a message."""


class FilteredMessage:
    """A message that filters test.

    Args:
        sections: the message.
    """

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._known: dict[tuple[str, str], Any] = {}
        self._work = 0

    def work(self, units: int) -> None:
        """Count work. Raises TooMuchWork if it exceeds the limit for one message."""
        self._work += units
        if self._work > MOST_WORK:
            raise TooMuchWork(f"more than {MOST_WORK} units of work for one message")

    def has_application_property(self, name: str) -> bool:
        """Return True if the message has an application property."""
        return name in self._sections.head.application

    def application_property(self, name: str) -> Any:
        """Return an application property for comparisons; None if there is none."""
        return self._field("application", name)

    def property(self, name: str) -> Any:
        """Return a field of the properties section, such as `subject`, for comparisons."""
        return self._field("properties", name)

    def priority(self) -> Any:
        """Return the priority in the header section."""
        return self._field("header", "priority")

    def _field(self, section: str, name: str) -> Any:
        key = section, name
        if key not in self._known:
            self._known[key] = found = self._decoded(section, name)
            self.work(len(found) // SCANNED if isinstance(found, bytes) else 1)
        return self._known[key]

    def _decoded(self, section: str, name: str) -> Any:
        if section == "application":
            return comparable(self._sections.head.application.get(name))
        if section == "properties":
            return comparable(getattr(self._sections.head.properties, name))
        priority = Amqp10Message.decode(self._sections.header).header.priority
        return _DEFAULT_PRIORITY if priority is None else priority


def comparable(value: Any10) -> Any:
    """Convert a value for comparisons: strings and UUIDs become bytes; lists and maps become None."""
    match value:
        case str():
            return value.encode(errors="surrogateescape")
        case uuid.UUID():
            return value.bytes
        case bool() | int() | float() | bytes():
            return value
    return None
