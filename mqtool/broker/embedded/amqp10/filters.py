"""A source's filters, which select where to start reading a stream, which chunks to read, and which messages to send.

https://www.rabbitmq.com/docs/stream-filtering. Invalid filters are ignored: the broker's answer to an
attach frame contains only the filters in effect.
"""

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from mqtool.broker.embedded.amqp10.filtered_message import FilteredMessage, comparable
from mqtool.broker.embedded.amqp10.sql_filter import compile_sql, equal, field_of
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.sectioned import Sections
from mqtool.codecs.amqp10_message import BareProperties
from mqtool.codecs.amqp10_values import Any10, Described, Map, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import Int64, Table, Timestamp, UInt32, Value

_OFFSET, _VALUES, _UNFILTERED = (f"rabbitmq:stream-{name}" for name in ("offset-spec", "filter", "match-unfiltered"))
_SQL = "sql-filter"
_SQL_DESCRIPTORS = ("amqp:sql-filter", 0x120)
_PROPERTIES_DESCRIPTORS = ("amqp:properties-filter", 0x173)
_APPLICATION_DESCRIPTORS = ("amqp:application-properties-filter", 0x174)

#: The maximum number of fields in a filter.
_MOST_FIELDS = 16

_TEXTS = ("to", "subject", "reply_to", "group_id", "reply_to_group_id")
_TYPES: dict[str, type] = dict.fromkeys(_TEXTS, str) | {
    "user_id": bytes,
    "content_type": Symbol,
    "content_encoding": Symbol,
    "absolute_expiry_time": Milliseconds,
    "creation_time": Milliseconds,
    "group_sequence": UInt32,
}

Test = Callable[[FilteredMessage], bool]
Selector = Callable[[Sections], bool]


class LinkFilters(NamedTuple):
    """A source's filters.

    Attributes:
        effective: the filters in effect; None if the client asked for none.
        arguments: the consumer arguments that some of the filters stand for.
        selector: returns True for a message that the other filters select. Raises TooMuchWork if they take too long.
    """

    effective: Map | None
    arguments: Table
    selector: Selector


def parse_filters(wanted: Map | None, profile: Profile) -> LinkFilters:
    """Parse the filters that a client asks for."""
    if wanted is None:
        return LinkFilters(None, {}, lambda _: True)
    effective: Map = {}
    arguments: Table = {}
    tests: dict[str, Test] = {}
    # RabbitMQ starts with the last filter, which matters only if two filters exclude each other.
    for name, each in reversed(wanted.items()):
        if not isinstance(name, Symbol):
            continue
        argument = _argument(each)
        if argument is not None:
            arguments = {argument[0]: argument[1], **arguments}
        elif not profile.filters_messages or not _add_test(tests, name, each):
            continue
        effective[name] = each
    return LinkFilters(dict(reversed(effective.items())), arguments, _selector(list(tests.values())))


def _selector(tests: list[Test]) -> Selector:
    def selects(sections: Sections) -> bool:
        message = FilteredMessage(sections)
        return all(test(message) for test in tests)

    return selects if tests else lambda _: True


def _argument(each: Any10) -> tuple[str, Value] | None:
    """Convert one of RabbitMQ's own filters to a consumer argument; return None for any other or invalid filter."""
    if not isinstance(each, Described):
        return None
    value = each.value
    match str(each.descriptor):
        case descriptor if descriptor == _OFFSET:
            offset = _offset(value)
            return None if offset is None else ("x-stream-offset", offset)
        case descriptor if descriptor == _VALUES and isinstance(value, list):
            return "x-stream-filter", [item for item in value if type(item) is str]
        case descriptor if descriptor == _VALUES and type(value) is str:
            return "x-stream-filter", value
        case descriptor if descriptor == _UNFILTERED and isinstance(value, bool):
            return "x-stream-match-unfiltered", value
    return None


def _offset(value: Any10) -> Timestamp | Int64 | str | None:
    if isinstance(value, Milliseconds):
        return Timestamp(max(value, 0) // 1000)
    if isinstance(value, str):
        return str(value)
    return Int64(value) if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _add_test(tests: dict[str, Test], name: Symbol, each: Any10) -> bool:
    """Add the test for an SQL or property filter. Returns False if it is not valid or another filter excludes it.

    A source can have one SQL filter, or one filter each for properties and application properties.
    """
    if not isinstance(each, Described):
        return False
    is_sql = name == _SQL
    kind = _SQL if is_sql else _kind(each.descriptor)
    if kind is None or kind in tests or (tests and (is_sql or _SQL in tests)):
        return False
    try:
        tests[kind] = _sql(each) if is_sql else _fields(kind, each.value)
    except ValueError:
        return False
    return True


def _kind(descriptor: Any10) -> str | None:
    if _is_one_of(descriptor, _PROPERTIES_DESCRIPTORS):
        return "properties"
    return "application" if _is_one_of(descriptor, _APPLICATION_DESCRIPTORS) else None


def _is_one_of(descriptor: Any10, names: tuple[str, int]) -> bool:
    return isinstance(descriptor, Symbol | ULong) and descriptor in names


def _sql(each: Described) -> Test:
    if not _is_one_of(each.descriptor, _SQL_DESCRIPTORS) or type(each.value) is not str:
        raise ValueError("not an SQL filter")
    return compile_sql(each.value)


def _fields(kind: str, wanted: Any10) -> Test:
    """Return the test for a property filter. Raises ValueError if it is not valid."""
    if not isinstance(wanted, dict) or not 0 < len(wanted) <= _MOST_FIELDS:
        raise ValueError("not a map with up to 16 fields")
    parse = _property if kind == "properties" else _application_property
    tests = [parse(name, value) for name, value in wanted.items()]
    return lambda message: all(test(message) for test in tests)


def _property(name: Any10, wanted: Any10) -> Test:
    field = name.replace("-", "_") if isinstance(name, Symbol) else ""
    if field in ("message_id", "correlation_id"):
        is_valid = type(wanted) in (ULong, bytes, str, uuid.UUID)
    else:
        is_valid = field in BareProperties._fields and type(wanted) is _TYPES[field]
    if not is_valid:
        raise ValueError("not a property, or a value of another type")
    value, matches = field_of(field), _matcher(wanted)
    return lambda message: matches(value(message))


def _application_property(name: Any10, wanted: Any10) -> Test:
    if type(name) is not str:
        raise ValueError("not the name of an application property")
    matches = _matcher(wanted)
    return lambda message: message.has_application_property(name) and matches(message.application_property(name))


def _matcher(wanted: Any10) -> Callable[[Any], bool]:
    """Return a test for a value. Strings may start with `&s:` (suffix), `&p:` (prefix) or `&&` (a literal `&`)."""
    if wanted is None:
        return lambda _: True
    value = comparable(wanted)
    if type(wanted) is not str or not wanted.startswith("&"):
        return lambda found: equal(found, value)
    rest = value[3:]
    match wanted[:3]:
        case "&s:":
            return lambda found: isinstance(found, bytes) and found.endswith(rest)
        case "&p:":
            return lambda found: isinstance(found, bytes) and found.startswith(rest)
    if not wanted.startswith("&&"):
        raise ValueError("unknown modifier")
    return lambda found: equal(found, value[1:])
