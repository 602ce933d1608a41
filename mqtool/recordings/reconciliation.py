"""Comparing what was sent with what arrived, by message id."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What became of the messages that were sent, as message ids in the order of sending or arrival.

    Attributes:
        sent, got: how many; duplicates count.
        missing: sent, but did not arrive.
        doubled: arrived more than once.
        unexpected: arrived, but were not sent.
        reordered: arrived after a message that was sent later.
    """

    sent: int
    got: int
    missing: list[str]
    doubled: list[str]
    unexpected: list[str]
    reordered: list[str]


def reconcile(sent: Iterable[str], got: Iterable[str]) -> Reconciliation:
    """Compare message ids. Of duplicates, only the first counts for the order."""
    places = {message_id: place for place, message_id in enumerate(sent)}
    times: dict[str, int] = {}
    reordered, latest, total = [], -1, 0
    for message_id in got:
        total += 1
        times[message_id] = times.get(message_id, 0) + 1
        place = places.get(message_id)
        if place is None or times[message_id] > 1:
            continue
        if place < latest:
            reordered.append(message_id)
        latest = max(latest, place)
    return Reconciliation(
        sent=len(places),
        got=total,
        missing=[message_id for message_id in places if message_id not in times],
        doubled=[message_id for message_id, count in times.items() if count > 1],
        unexpected=[message_id for message_id in times if message_id not in places],
        reordered=reordered,
    )
