"""What a queue holds, by kind: also the messages that no consumer can get now, all of which are lost with the queue.

A quorum queue keeps messages that wait for a delayed retry (from RabbitMQ 4.3 on) and, with the dead-letter strategy
at-least-once, dead letters that no queue has accepted yet. queue.declare-ok and queue.delete-ok count neither. The
management API does, in statistics that are some seconds old.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mqtool.management.api_client import Json, Management, path
from mqtool.spelling import counted

#: Seconds between two looks at a queue.
_LOOK = 0.25


class Contents(NamedTuple):
    """The messages of a queue; None if a number is not known.

    Attributes:
        ready: as the queue itself says.
        delayed: those that wait for a delayed retry.
        dead_letters: those that the queue holds until another queue accepts them.
    """

    ready: int
    delayed: int | None
    dead_letters: int | None

    @property
    def is_known(self) -> bool:
        return None not in self

    def as_text(self) -> str:
        """Return the numbers in words."""
        parts = [counted(self.ready, "ready message" if self.delayed != 0 or self.dead_letters != 0 else "message")]
        if self.delayed:
            parts.append(f"{self.delayed:,} waiting for a delayed retry")
        if self.dead_letters:
            parts.append(f"{counted(self.dead_letters, 'dead letter')} that it still holds")
        if self.delayed is None:
            parts.append("an unknown number waiting for a delayed retry")
        if self.dead_letters is None:
            parts.append("an unknown number of dead letters that it still holds")
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def uncounted(view: Json) -> int:
    """Return how many of a queue's messages the API counts in `messages`, but neither as ready nor unacknowledged."""
    seen = sum(view.get(name) or 0 for name in ("messages_ready", "messages_unacknowledged"))
    return int(max(0, (view.get("messages") or 0) - seen))


def views(
    api: Management, vhost: str, queue: str, ask: Callable[[], object], *, is_embedded: bool
) -> Iterator[tuple[Json, bool]]:
    """Yield a queue as the API describes it, several times a second, and whether its counts are current.

    RabbitMQ counts messages every few seconds, and shows each count a moment later. Each count comes with the number of
    `reductions`, which grows whenever the queue does work. When this number has changed twice, the count is current.
    A count of a new queue may be shown before its `reductions`. The embedded broker's counts are always current.

    Args:
        ask: sends a request to the queue, so that it does work. Called before each look.
        is_embedded: True for the embedded broker.
    """
    seen: list[object] = []
    while True:
        ask()
        view: Json = api.get(path("queues", vhost, queue))
        work = view.get("reductions")
        if work is not None and (not seen or work != seen[-1]):
            seen.append(work)
        yield view, is_embedded or (work is not None and len(seen) > 2)
        time.sleep(_LOOK)


def contents(
    api: Management, vhost: str, queue: str, ready: Callable[[], int], *, is_embedded: bool, patience: float
) -> Contents:
    """Return what a queue holds.

    Args:
        ready: asks the queue for its number of ready messages.
        patience: seconds to wait for current counts, if the queue's settings say that there may be other messages.
    """
    deadline, there = time.monotonic() + patience, 0

    def ask() -> None:
        nonlocal there
        there = ready()

    for view, is_current in views(api, vhost, queue, ask, is_embedded=is_embedded):
        found = Contents(there, *unmovable(view, is_current=is_current))
        if found.is_known or time.monotonic() >= deadline:
            return found
    raise AssertionError  # views() does not end


def unmovable(view: Json, *, is_current: bool) -> tuple[int | None, int | None]:
    """Return the numbers of messages that wait for a delayed retry, and of dead letters that the queue holds.

    Args:
        view: the queue as the API describes it.
        is_current: the view's counts are current. If not, a 0 counts only if the queue's settings allow no others.
    """
    arguments, by_policy = view.get("arguments") or {}, view.get("effective_policy_definition") or {}

    def number(counter: str, setting: str, *, may_be: Callable[[object], bool]) -> int | None:
        count = int(view.get(counter) or 0)
        settings = (arguments.get(f"x-{setting}"), by_policy.get(setting))
        is_certain = is_current or view.get("type") != "quorum" or not any(map(may_be, settings))
        return count if count or is_certain else None

    return (
        number("messages_delayed", "delayed-retry-type", may_be=lambda value: value not in (None, "disabled")),
        number("messages_dlx", "dead-letter-strategy", may_be=lambda value: value == "at-least-once"),
    )
