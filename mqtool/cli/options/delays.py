"""When messages are to arrive, and what holds them back until then."""

import time
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from typer import Option

from mqtool.cli.groups import in_panel
from mqtool.delays.via import LONGEST, Via
from mqtool.duration import compact_duration, parse_duration
from mqtool.errors import UsageError


def _delay(text: str) -> float:
    """Seconds, from a duration that a broker can wait."""
    if text.startswith("-"):
        raise ValueError(f"{text!r} is negative, but nothing can arrive before it is sent")
    seconds = parse_duration(text)
    if round(seconds * 1000) > LONGEST:
        raise ValueError(f"{text!r} is too long: at most {LONGEST} ms (2^32 - 1), {compact_duration(LONGEST / 1000)}")
    return seconds


def _moment(text: str) -> float:
    """Seconds since 1970, from a future time; local time, unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text if "-" in text else f"{datetime.now():%Y-%m-%d}T{text}").timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is not a time such as 18:30, 2026-01-31T18:30 or 2026-01-31T18:30:00Z") from error
    ahead = moment - time.time()
    if ahead <= 0:
        raise ValueError(f"{text!r} is in the past, by {compact_duration(max(1, round(-ahead)))}")
    if ahead * 1000 > LONGEST:
        raise ValueError(f"{text!r} is too far away: at most {LONGEST} ms (2^32 - 1), 49 days")
    return moment


@in_panel("Delay")
class DelayOptions(NamedTuple):
    """When messages are to arrive, and what holds them back until then."""

    delay: Annotated[
        float | None, Option(parser=_delay, metavar="DURATION", help="Deliver each message this long after it is sent")
    ] = None
    at: Annotated[
        Any | None, Option(parser=_moment, metavar="TIME", help="Deliver at a time: 18:30 or 2026-01-31T18:30")
    ] = None
    via: Annotated[Via, Option(help="What holds delayed messages (mqtool help delays)")] = Via.AUTO

    @property
    def are_given(self) -> bool:
        """Whether all messages are to be delayed."""
        return self.delay is not None or self.at is not None

    def check(self, *, mandatory: bool) -> None:
        """Check that the options fit together.

        Raises:
            UsageError: the options contradict each other.
        """
        if self.delay is not None and self.at is not None:
            raise UsageError("--delay and --at cannot be combined", "use only one of them")
        if self.are_given and mandatory:
            raise mandatory_with_delay()


def mandatory_with_delay() -> UsageError:
    """Why a delayed message cannot be mandatory."""
    return UsageError(
        "--mandatory does not work with a delay: such a message is routed only when it is due",
        "leave one of them out; replay has it unless --no-mandatory is given",
    )
