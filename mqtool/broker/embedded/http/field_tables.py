"""JSON objects as field tables."""

import struct
from typing import Any

from mqtool.broker.embedded.http.directory import bad_request
from mqtool.codecs.field_tables import Int64, Table, Value, decode_table, encode_table


def _value(value: Any) -> Value:
    """Return a JSON value as a field value; RabbitMQ makes every integer a long."""
    if isinstance(value, dict):
        return _table(value)
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return Int64(value)
    if value is None or isinstance(value, str | bool | float):
        return value
    raise bad_request(f"not a field value: {value!r}")


def _table(value: Any) -> Table:
    return {name: _value(item) for name, item in value.items()}


def field_table(value: Any) -> Table:
    """Return an object as a field table that can be sent and stored.

    Raises:
        HttpError: 400, it cannot.
    """
    if not isinstance(value, dict):
        raise bad_request("arguments and headers must be objects")
    try:
        table = _table(value)
        decode_table(encode_table(table))
    except (ValueError, RecursionError, struct.error) as error:
        raise bad_request(f"not a field table: {error}") from error
    return table
