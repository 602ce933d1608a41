"""What every publishing command loads: the names of the ways, and no more."""

from enum import StrEnum

from mqtool.message import Message

#: The longest delay in milliseconds, 49 days and 17 hours: what fits into the 32 bits of the broker's timers.
LONGEST = 2**32 - 1


class Via(StrEnum):
    """What holds messages back."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


def original(message: Message) -> Message:
    """The message as its publisher knows it, whether it was held back or not."""
    seen: Message = getattr(message, "original", message)
    return seen
