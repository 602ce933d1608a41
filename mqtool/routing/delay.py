"""How the delayed message plugin of RabbitMQ 3.10 reads the header x-delay."""

import math
import re
from typing import Any

from mqtool.routing.field_table import Decimal, Value, is_integer

MAX_DELAY = 2**32 - 1
"""The longest delay, in milliseconds."""

_INTEGER = re.compile(r"[+-]?[0-9]+")


def delay_of(value: Value) -> int:
    """Return the number of milliseconds that a value of x-delay asks for; 0 for none.

    Raises:
        ValueError: a text, a float or a decimal that the plugin cannot convert: it closes the connection.
    """
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return _if_possible(float(value))  # of any number of digits
    is_text = isinstance(value, str) or type(value) is bytes  # bytes if it is not UTF-8
    if is_text or isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"x-delay is not a number of milliseconds: {value!r}")
    return _if_possible(value) if isinstance(value, float) or is_integer(value) else 0


def _if_possible(delay: Any) -> int:
    return int(delay) if 1 <= delay <= MAX_DELAY else 0
