"""The consumers of one queue, and whose turn it is."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from mqtool.broker.embedded.backlog import Entry
from mqtool.routing.field_table import Table


class Consumer(Protocol):
    """What a queue knows of a consumer."""

    tag: str
    priority: int
    exclusive: bool
    no_ack: bool
    arguments: Table

    def ready(self) -> bool:
        """Whether it can take a message now; if not, it calls `Queue.pump` when it can."""

    def take(self, entry: Entry) -> None:
        """Send it a message."""

    def cancelled(self) -> None:
        """Tell it that the queue is gone."""


class Consumers:
    """Consumers by priority, and in turn within a priority (RabbitMQ's `x-priority`).

    Args:
        single_active: only the one that has been here longest gets messages.
    """

    def __init__(self, *, single_active: bool) -> None:
        self._single_active = single_active
        self._all: list[Consumer] = []
        self._turns: dict[int, deque[Consumer]] = {}
        self._descending: list[int] = []
        self.active: Consumer | None = None
        self.idle_since_last_look = True

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(self._all)

    @property
    def exclusive(self) -> bool:
        """Whether one of them keeps all others out."""
        return any(consumer.exclusive for consumer in self._all)

    def is_active(self, consumer: Consumer) -> bool:
        """Whether this one gets messages, or stands by for the single active one."""
        return not self._single_active or consumer is self.active

    def add(self, consumer: Consumer) -> None:
        """Let a consumer have its turn."""
        self._all.append(consumer)
        self._turns.setdefault(consumer.priority, deque()).append(consumer)
        self._descending = sorted(self._turns, reverse=True)
        if self._single_active and self.active is None:
            self.active = consumer

    def remove(self, consumer: Consumer) -> bool:
        """Take a consumer out; False if it was not there."""
        if consumer not in self._all:
            return False
        self._all.remove(consumer)
        turns = self._turns[consumer.priority]
        turns.remove(consumer)
        if not turns:
            del self._turns[consumer.priority]
            self._descending = sorted(self._turns, reverse=True)
        if self.active is consumer:
            self.active = self._all[0] if self._all else None
        return True

    def clear(self) -> list[Consumer]:
        """Take all consumers out."""
        gone, self._all, self._turns, self._descending = self._all, [], {}, []
        self.active = None
        return gone

    def next_ready(self) -> Consumer | None:
        """The consumer whose turn it is, or None if no consumer can take a message now."""
        if self._single_active:
            return self.active if self.active is not None and self.active.ready() else None
        for priority in self._descending:
            turns = self._turns[priority]
            for _ in range(len(turns)):
                consumer = turns[0]
                turns.rotate(-1)
                if consumer.ready():
                    return consumer
        return None
