"""The faults by name, with their arguments as a request has them."""

import dataclasses
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args

from mqtool.broker.embedded.testing import connection_faults, message_faults
from mqtool.broker.embedded.testing.fault import Fault
from mqtool.duration import parse_duration


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


KINDS: dict[str, type[Fault]] = {
    _snake(name): kind
    for module in (connection_faults, message_faults)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Fault) and kind is not Fault
}
"""The faults, by names such as `cut_connections`."""


def name_of(fault: Fault) -> str:
    """Return the name of a fault's kind."""
    return _snake(type(fault).__name__)


def arguments_of(kind: Any) -> dict[str, Any]:
    """Return the arguments of a kind of fault: name, and type as annotated."""
    return {field.name: field.type for field in dataclasses.fields(kind) if field.init}


def shown(fault: Fault) -> dict[str, Any]:
    """Return the arguments of a fault."""
    return {name: getattr(fault, name) for name in arguments_of(fault)}


def fault_of(name: str, arguments: Mapping[str, Any]) -> Fault:
    """Return the fault that a request describes; numbers and durations may be text.

    Raises:
        ValueError: there is no such fault, or it does not take these arguments; in words.
    """
    kind = KINDS.get(name.replace("-", "_"))
    if kind is None:
        raise ValueError(f"unknown fault {name!r}: one of {', '.join(sorted(KINDS))}")
    known = arguments_of(kind)
    for argument in arguments:
        if argument not in known:
            takes = f"one of {', '.join(known)}" if known else "none"
            raise ValueError(f"{name} has no argument {argument!r}: {takes}")
    given = {each: _converted(each, value, known[each]) for each, value in arguments.items()}
    try:
        return kind(**given)
    except TypeError as error:
        needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]  # type: ignore[arg-type]
        raise ValueError(f"{name} needs {', '.join(each for each in needed if each in known)}") from error


def _converted(name: str, value: Any, annotated: Any) -> Any:
    kinds = get_args(annotated) or (annotated,)
    if value is None and NoneType in kinds:
        return None
    (kind,) = [each for each in kinds if each is not NoneType]
    if kind is bool:
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise ValueError(f"{name} must be true or false, not {value!r}")
    try:
        if kind is float:
            number = parse_duration(value) if isinstance(value, str) else float(value)
        elif kind is int:
            number = int(value)
        else:
            return str(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {'a duration' if kind is float else 'a number'}, not {value!r}") from error
    if number < 0 or (kind is int and number < 1):
        raise ValueError(f"{name} must be {'at least 0' if kind is float else 'at least 1'}, not {value!r}")
    return number
