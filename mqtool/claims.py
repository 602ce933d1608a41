"""Values that anyone may have written: headers, properties, and arguments of queues. They are claims, not facts.

RabbitMQ checks who may declare, publish and read. Except for a few arguments, such as a dead-letter exchange, it does
not check what they write. mqtool's commands often run with more rights than whoever wrote a header or an argument, so
they must not use it as an address. docs/explanation/claims.md lists the claims, and what proves each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claimed(Generic[T]):
    """A value that anyone may have written. It is not a T, so mypy refuses it as a name, an address or a plan."""

    _value: T

    def proven(self, proof: Callable[[T], bool]) -> T | None:
        """Return the value if `proof` returns True for it, otherwise None.

        Args:
            proof: compares the value with what the broker itself says, such as the name of the queue that bears it.
        """
        return self._value if proof(self._value) else None

    def shown(self) -> str:
        """Return the value as text to show to the user, and for nothing else."""
        return str(self._value)
