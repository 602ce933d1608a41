"""The types on the wire of a message's values: the member "types" of a line of NDJSON.

It names the types that are not those that a plain JSON value gets by itself: {"headers": {"n": "int8"}}. In it, tables
and lists are objects (a list's keys are "0", "1", ...); [type, object] is a table or list with a type of its own.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from mqtool.codecs.field_tables import Float32, Int8, Int16, Int32, Int64, Int64L, UInt8, UInt16, UInt32
from mqtool.errors import BadData

#: The members of "types".
_MEMBERS = ("headers", "properties", "application_properties", "footer", "body")
#: Python types that a plain JSON value gets by itself.
AS_THEY_ARE = frozenset({str, int, bool, type(None)})
_INTEGERS = {kind.wire_type: kind for kind in (Int8, UInt8, Int16, UInt16, Int32, UInt32, Int64, Int64L)}
_FLOATS = {"float32": Float32, "float64": float}
#: The names of all types: of numbers, of what only AMQP 1.0 has, and of properties and bodies.
NAMES = frozenset(
    (*_INTEGERS, *_FLOATS, "uint64", "symbol", "char", "uuid", "array", "map", "binary", "string", "address")
)


def of_message(headers: Any, properties: Mapping[str, Any], footer: Any, body: bytes) -> dict[str, Any]:
    """Return the "types" of a message; empty if all values have the types that they would get by themselves."""
    types: dict[str, Any] = {}
    if headers:
        if (own := _types(headers)) is not None:
            types["headers"] = own
        if names := [name for name in headers if type(name) is not str]:
            types["application_properties"] = names
    if named := {name: kind for name, value in properties.items() if (kind := getattr(value, "wire_type", None))}:
        types["properties"] = named
    if footer and (own := _types(footer)) is not None:
        types["footer"] = own
    if type(body) is not bytes and (kind := getattr(body, "wire_type", None)):
        types["body"] = kind
    return types


def _types(value: Any) -> Any:
    """Return what "types" says of a value; None if that is nothing."""
    kind = type(value)
    if kind in AS_THEY_ARE:
        return None
    inside: dict[str, Any] = {}
    if isinstance(value, Mapping):
        inside = {key: types for key, each in value.items() if (types := _types(each)) is not None}
    elif isinstance(value, list):
        inside = {str(index): types for index, each in enumerate(value) if (types := _types(each)) is not None}
    elif kind is float:  # 1.0 and 1 are one number in JSON
        return "float64" if value.is_integer() else None
    own = getattr(kind, "wire_type", None)
    if own and (own.startswith("$") or (isinstance(value, int) and own == _usual(value))):
        return None
    return ([own, inside] if inside else own) if own else inside or None


def _usual(value: int) -> str:
    """Return the type that an integer gets by itself."""
    return "int32" if -(1 << 31) <= value < 1 << 31 else "int64" if -(1 << 63) <= value < 1 << 63 else "uint64"


def give(types: Any, properties: dict[str, Any], body: bytes, where: str) -> bytes:
    """Give the values of a message the types that its line names; return the body.

    Args:
        properties: those of the message, with its headers; changed in place.
        where: the line's name in errors.

    Raises:
        BadData: a value does not fit its type, or there is no such type.
    """
    if not isinstance(types, dict) or types.keys() - _MEMBERS:
        raise BadData(f'{where} has "types" that are not an object with {", ".join(_MEMBERS)}')
    for name in ("headers", "footer"):
        if (table := properties.get(name)) and (own := types.get(name)) is not None:
            properties[name] = _typed(table, own, f"{where} has a {name.removesuffix('s')}", ())
    if types.keys().isdisjoint(("properties", "application_properties", "body")):
        return body
    from mqtool.codecs import sections

    _give_properties(types.get("properties", {}), properties, where)
    if names := types.get("application_properties"):
        if not isinstance(names, list):
            raise BadData(f'{where} has "types" whose "application_properties" are not a list')
        headers = properties.get("headers") or {}
        properties["headers"] = {
            sections.ApplicationProperty(name) if name in names else name: value for name, value in headers.items()
        }
    kind = types.get("body")
    if kind is None:
        return body
    if kind not in ["string", "binary"]:
        raise BadData(f"{where} has a body of an unknown type: {kind!r}")
    return sections.TYPES_OF_BODIES[kind](body)


def _give_properties(types: Any, properties: dict[str, Any], where: str) -> None:
    from mqtool.codecs.sections import TYPES_OF_PROPERTIES

    if not isinstance(types, dict):
        raise BadData(f'{where} has "types" whose "properties" are not an object')
    for name, kind in types.items():
        if name not in properties:
            continue
        known = TYPES_OF_PROPERTIES.get(name, {})
        if not isinstance(kind, str) or kind not in known:
            raise BadData(f"{where} has a property {name!r} of an unknown type: {kind!r}")
        try:
            properties[name] = known[kind](properties[name])
        except ValueError as error:
            raise BadData(f"{where} has a property {name!r} that does not fit its type {kind}: {error}") from error


def _typed(value: Any, types: Any, what: str, path: tuple[str, ...]) -> Any:
    """Return a value with the types that the line names. Types of values that are missing are ignored."""
    own, inside = types if isinstance(types, list) and len(types) == 2 else (None, types)
    if isinstance(types, str):
        own, inside = types, {}
    what_exactly = f"{what} {'.'.join(path)!r}" if path else what
    if not isinstance(inside, dict) or not isinstance(own, str | None):
        raise BadData(f'{what_exactly} whose "types" are neither a name nor an object: {json.dumps(types)}')
    if isinstance(value, dict | list):
        for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if (types := inside.get(str(key))) is not None:
                value[key] = _typed(each, types, what, (*path, str(key)))
    if own is None:
        return value
    try:
        return of_type(own, value)
    except LookupError as error:
        raise BadData(f"{what_exactly} of an unknown type: {own!r}") from error
    except (ValueError, OverflowError, struct.error) as error:
        shown = json.dumps(value, default=str, ensure_ascii=False)
        hint = 'change the value, or remove its type from "types"'
        raise BadData(f"{what_exactly} that does not fit its type {own}: {shown}", hint) from error


def of_type(name: str, value: Any) -> Any:
    """Convert a value to the type of this name.

    Raises:
        LookupError: there is no such type.
        ValueError, OverflowError, struct.error: the value does not fit.
    """
    if name not in _INTEGERS and name not in _FLOATS:
        from mqtool.codecs.amqp10_values import OF_CLIENT

        return OF_CLIENT[name](value)
    if type(value) not in (int, float):
        raise ValueError("not a number")
    if (kind := _FLOATS.get(name)) is not None:
        struct.pack(">f" if kind is Float32 else ">d", value)
        return kind(value)
    bits = int(name.strip("uintL"))
    first, last = (0, (1 << bits) - 1) if name[0] == "u" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    if value != int(value) or not first <= value <= last:
        raise ValueError("not an integer of that size")
    return _INTEGERS[name](value)
