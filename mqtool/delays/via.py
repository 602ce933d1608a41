"""What the commands' options need to know, and no more: each of them loads it."""

from enum import StrEnum

from mqtool.message import Message

#: The longest delay, in milliseconds: what fits into the 32 bits of the broker's timers. 49 days and 17 hours.
LONGEST = 2**32 - 1


class Via(StrEnum):
    """What holds messages back."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


def original(message: Message) -> Message:
    """The message that the user sees, of the one that was published: of one that is held back, or of any other."""
    seen: Message = getattr(message, "original", message)
    return seen
