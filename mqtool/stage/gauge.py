"""Measurements while commands run in terminals: queue depths, response times, rates."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Self

from mqtool.amqp import Connection, parse_addresses
from mqtool.stage.stage import Stage
from mqtool.stage.terminal import Chart, Terminal

#: Seconds between readings.
_INTERVAL = 0.1


class Shop:
    """Sends orders to the command in a terminal, and measures the response time of each one.

    The first order is sent at once and not measured, since the program has to start first.

    Args:
        answer: text contained in each reply line; replies appear in the order in which orders are sent.
    """

    def __init__(self, terminal: Terminal, command: str, answer: str) -> None:
        self._terminal = terminal
        self._answer = answer
        self.asked: list[float] = []
        terminal.feed(command)
        self.take(1, math.inf)
        terminal.wait_for(answer, 1)

    def take(self, count: int, per_second: float) -> None:
        due = time.monotonic()
        for _ in range(count):
            self.asked.append(time.monotonic())
            self._terminal.write(f"order {len(self.asked)}")
            due += 1 / per_second
            time.sleep(max(0.0, due - time.monotonic()))

    def finish(self) -> None:
        """Close the command's input, and wait until the command has answered every order and exited."""
        self._terminal.finish()

    @property
    def answers(self) -> list[float]:
        """Response times in milliseconds, except that of the first order."""
        pairs = [*zip(times(self._terminal, self._answer), self.asked, strict=False)][1:]
        return [(answered - asked) * 1000 for answered, asked in pairs]

    def waiting(self) -> float:
        """Response time in milliseconds of the latest order that has a reply."""
        return (self.answers or [0.0])[-1]

    def __str__(self) -> str:
        return f"{median(self.answers):,.0f} ms, and at most {max(self.answers):,.0f} ms"


class Gauge:
    """Reads values repeatedly on its own thread, and shows a chart for each reading (title, unit and function)."""

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

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._audience.measured(self._charts(), over=True)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Take readings only within the block, so that charts omit the time that the user spends reading."""
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
        pairs = zip(self.values, self._readings, strict=True)
        return [Chart(title, unit, list(values)) for values, (title, unit, _) in pairs]


@contextmanager
def depths(stage: Stage) -> Iterator[Callable[[str], int]]:
    """Connect to the broker; yield a function that returns the number of ready messages in a queue."""
    with Connection(parse_addresses(stage.place.url), name="mqtool gauge") as connection:
        channel = connection.channel()
        yield channel.depth_of


def times(terminal: Terminal, text: str) -> list[float]:
    """Arrival times (`time.monotonic()`) of the lines that contain the text."""
    return [then for line, then in zip(list(terminal.lines), list(terminal.times), strict=False) if text in line]


def rate(moments: Sequence[float]) -> float:
    """Count the moments, as returned by `time.monotonic()`, that are within the last second."""
    now = time.monotonic()
    return float(sum(now - moment < 1 for moment in moments))
