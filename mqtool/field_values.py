"""What may be in a field table of AMQP 0-9-1, such as the arguments of a declaration."""

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

FieldValue: TypeAlias = (
    "bool | int | float | str | bytes | datetime | Decimal | Sequence[FieldValue] | Mapping[str, FieldValue] | None"
)
