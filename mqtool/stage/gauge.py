"""Measuring while a scene is played: how deep queues are, how long answers take, how many come in a second."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from types import TracebackType
from typing import Self

from mqtool.amqp import Connection, parse_addresses
from mqtool.stage.audience import Chart
from mqtool.stage.stage import Stage
from mqtool.stage.terminal import Terminal
from mqtool.stage.waiting import wait_until

#: Seconds between two looks.
_INTERVAL = 0.1


class Shop:
    """Gives orders to the command in a terminal, and notes how long each takes to be answered.

    The first order is given at once, and opens the shop: it waits for the program to start, which is not measured.

    Args:
        answer: what the line says by which the command answers; they come in the order of the orders.
    """

    def __init__(self, terminal: Terminal, command: str, answer: str) -> None:
        self._terminal = terminal
        self._answer = answer
        self.asked: list[float] = []
        terminal.feed(command)
        self.take(1, math.inf)
        terminal.wait_for(answer, 1)

    def take(self, count: int, per_second: float) -> None:
        """Take this many orders, at that rate."""
        due = time.monotonic()
        for _ in range(count):
            self.asked.append(time.monotonic())
            self._terminal.write(f"order {len(self.asked)}")
            due += 1 / per_second
            time.sleep(max(0.0, due - time.monotonic()))

    def finish(self) -> None:
        """No more orders; wait until all are answered."""
        self._terminal.finish()

    @property
    def answers(self) -> list[float]:
        """How long each answer but the first took, in milliseconds."""
        return [
            (then - asked) * 1000
            for then, asked in [*zip(times(self._terminal, self._answer), self.asked, strict=False)][1:]
        ]

    def waiting(self) -> float:
        """Milliseconds that the last customer who was answered has waited."""
        return (self.answers or [0.0])[-1]

    def __str__(self) -> str:
        return f"{median(self.answers):,.0f} ms, and at most {max(self.answers):,.0f} ms"


class Gauge:
    """Reads values again and again, and shows them as charts.

    Args:
        readings: for each chart its title, its unit, and what reads a value; all are read on one thread.
    """

    def __init__(self, stage: Stage, *readings: tuple[str, str, Callable[[], float]]) -> None:
        self._audience = stage.audience
        self._readings = readings
        self.values: list[list[float]] = [[] for _ in readings]
        self._measuring = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="mqtool-gauge", daemon=True)

    def __enter__(self) -> Self:
        self._audience.measured(self._charts(), over=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._audience.measured(self._charts(), over=True)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time goes on within the block, and stands still outside, while somebody reads."""
        self._measuring.set()
        try:
            yield
        finally:
            self._measuring.clear()

    def _measure(self) -> None:
        while not self._over.wait(_INTERVAL):
            if self._measuring.is_set():
                for values, (_, _, read) in zip(self.values, self._readings, strict=True):
                    values.append(read())
                self._audience.measured(self._charts(), over=False)

    def _charts(self) -> Sequence[Chart]:
        return [
            Chart(title, unit, list(values))
            for values, (title, unit, _) in zip(self.values, self._readings, strict=True)
        ]


@contextmanager
def depths(stage: Stage) -> Iterator[Callable[[str], int]]:
    """A function that tells how many messages are ready in a queue; it asks by AMQP, as anybody may."""
    with Connection(parse_addresses(stage.place.environment["MQTOOL_URL"]), name="mqtool gauge") as connection:
        channel = connection.channel()
        yield channel.depth_of


def times(terminal: Terminal, text: str) -> list[float]:
    """When the lines with that text came, by the monotonic clock."""
    return [then for line, then in zip(list(terminal.lines), list(terminal.times), strict=False) if text in line]


def rate(moments: Sequence[float]) -> float:
    """How many of these moments are within the last second."""
    now = time.monotonic()
    return float(sum(now - moment < 1 for moment in moments))


def wait_for_all(terminal: Terminal, text: str, count: int) -> None:
    """Wait until this many lines have that text. Raises NotSo if they do not come."""
    wait_until(
        lambda: terminal.count(text) >= count,
        lambda: f"{count} × {text!r} from {terminal.name}; {terminal.count(text)} came",
    )
