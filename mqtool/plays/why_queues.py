"""The 'why queues' play: three reasons to use a queue, each measured on a running broker.

decoupling       shop ──> (orders) ──> [stock], [mail] ──> two departments, one of which goes offline
asynchrony       shop ──> ./pack, and then: shop ──> [packing] ──> worker --exec ./pack
load levelling   forty orders in one second, for a worker that can handle five per second
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Self

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.stage.stage import Play, Stage
from mqtool.stage.terminal import Chart, Terminal, wait_until

#: Seconds between readings.
_INTERVAL = 0.1
_PACK_SECONDS = 0.2
_PACK = f'#!/bin/sh\nread -r order\nsleep {_PACK_SECONDS}  # it is hard work\necho " [x] Packed $order"\n'
_PACKED, _RECEIVED, _SENT = "[x] Packed", "[x] order", "[x] Sent"


def play(stage: Stage) -> None:
    pack = stage.file("pack")
    pack.write_text(_PACK)
    pack.chmod(0o755)
    _decoupling(stage)
    _asynchrony(stage)
    _load_levelling(stage)


def _decoupling(stage: Stage) -> None:
    shop_terminal, stock, mail = stage.terminals("shop", "stock", "mail")
    orders = stage.name("orders")
    consume = {
        terminal: f"mqtool receive-log fanout -e {orders} -q {stage.name(terminal.name)} --declare"
        for terminal in (stock, mail)
    }
    before, meanwhile, after = 15, 25, 10
    total = before + meanwhile + after

    stage.say(
        "First reason: decoupling. A shop publishes each order. The stock and mail departments each have a queue, and "
        "read orders from it."
    )
    for terminal, command in consume.items():
        terminal.start(command)
    shop = Shop(shop_terminal, f"mqtool emit-log fanout -e {orders} -l -v", _SENT)
    with depths(stage) as depth:
        readings = [
            (f"waiting for {name}", "", lambda name=name: depth(stage.name(name))) for name in ("stock", "mail")
        ]
        with Gauge(stage, *readings, ("customer waits", "ms", shop.waiting)) as gauge:
            with gauge.measuring():
                shop.take(before - 1, per_second=10)
                mail.wait_for(_RECEIVED, before)
            stage.say("Now the mail department goes home while orders keep coming. Who notices?")
            by_mail = mail.after("[x] ")
            mail.interrupt()
            with gauge.measuring():
                shop.take(meanwhile, per_second=10)
                stock.wait_for(_RECEIVED, before + meanwhile)
                wait_until(lambda: meanwhile in gauge.values[1], lambda: f"{meanwhile} orders to wait for mail")
            stage.say(
                f"Nobody does. {meanwhile} orders wait for the mail department, stock carries on, and customers get "
                f"an answer in {shop}. Now the mail department comes back."
            )
            mail.start(consume[mail])
            with gauge.measuring():
                shop.take(after, per_second=10)
                for terminal, count in ((stock, total), (mail, meanwhile + after)):
                    terminal.wait_for(_RECEIVED, count)
                wait_until(lambda: gauge.values[1][-1] == 0, lambda: "the queue of the mail department to be empty")
    shop.finish()
    stock.interrupt()
    mail.interrupt()
    by_mail += mail.after("[x] ")
    expected = [f"order {number}" for number in range(1, total + 1)]
    stage.expect(
        f"both departments got all {total} orders, each once, in order",
        (stock.after("[x] "), by_mail),
        (expected, expected),
    )


def _asynchrony(stage: Stage) -> None:
    packing = stage.name("packing")
    # Slow enough for the picture to show that each order is packed before the next one arrives.
    count, per_second = 8, 2.0

    stage.say(
        f"Second reason: asynchrony. Packing an order takes {_PACK_SECONDS:g} s. First, the shop itself runs ./pack: "
        "it sends no message, the queue stays empty, and the customer has to wait."
    )
    shop_terminal, packer = stage.terminals("shop", "packer")
    _forget_orders(stage)
    packer.start(f"mqtool worker -q {packing} --declare --exec ./pack")
    direct = Shop(shop_terminal, 'while read -r order; do echo "$order" | ./pack; done', _PACKED)
    answered = [direct]
    with (
        depths(stage) as depth,
        Gauge(
            stage,
            ("customer waits", "ms", lambda: answered[-1].waiting()),
            ("orders waiting", "", lambda: depth(packing)),
        ) as gauge,
    ):
        with gauge.measuring():
            direct.take(count - 1, per_second)
            shop_terminal.wait_for(_PACKED, count)
        by_hand = str(direct)
        direct.finish()
        stage.say(
            f"A customer waited {by_hand}. Now the shop only puts each order into a queue, and does not wait while a "
            "worker runs the same ./pack."
        )
        queued = Shop(shop_terminal, f"mqtool new-task -q {packing} -l -v", _SENT)
        answered.append(queued)
        with gauge.measuring():
            queued.take(count - 1, per_second)
            packer.wait_for(_PACKED, count)
    queued.finish()
    packer.interrupt()
    stage.expect(f"all {count} orders were packed", packer.count(_PACKED), count)
    stage.say(
        "All orders are packed, and the queue is empty. A customer waited "
        f"{by_hand} when the shop called ./pack, and {queued} through the queue."
    )


def _forget_orders(stage: Stage) -> None:
    """Delete the queues and the exchange of the play's first part, so that later pictures do not show them."""
    with Connection(parse_addresses(stage.place.url)) as connection:
        channel = connection.channel()
        for queue in ("stock", "mail"):
            administration.delete_queue(channel, stage.name(queue))
        administration.delete_exchange(channel, stage.name("orders"))


def _load_levelling(stage: Stage) -> None:
    packing = stage.name("packing")
    burst, capacity = 40, 1 / _PACK_SECONDS

    stage.say(
        f"Third reason: load levelling. The packer can pack at most {capacity:g} orders per second. On a quiet day, "
        f"that is enough. Now {burst} orders arrive within one second."
    )
    shop_terminal, packer = stage.terminals("shop", "packer")
    packer.start(f"mqtool worker -q {packing} --declare --exec ./pack")
    shop = Shop(shop_terminal, f"mqtool new-task -q {packing} -l -v", _SENT)
    with (
        depths(stage) as depth,
        Gauge(
            stage,
            ("orders a second", "", lambda: rate(shop.asked)),
            ("packed a second", "", lambda: rate(times(packer, _PACKED))),
            ("orders waiting", "", lambda: depth(packing)),
        ) as gauge,
        gauge.measuring(),
    ):
        shop.take(4, per_second=3)
        shop.take(burst, per_second=burst)
        shop.take(4, per_second=3)
        total = len(shop.asked)
        packer.wait_for(_PACKED, total)
    shop.finish()
    done = times(packer, _PACKED)
    packer.interrupt()
    longest = max(then - asked for then, asked in zip(done, shop.asked, strict=True))
    stage.expect(f"all {total} orders were packed, at the packer's own pace", packer.count(_PACKED), total)
    stage.say(
        f"Now the queue is empty again. Up to {max(gauge.values[2]):,.0f} orders waited in it, one of them for "
        f"{longest:.1f} s. If the shop had called the packer itself, the customer of this order would have waited as "
        f"long. Through the queue, an answer took {shop}."
    )


class Shop:
    """Sends orders to the command in a terminal, and measures the response time of each order.

    The first order is sent immediately and is not measured, because the program has to start first.

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
        return f"{median(self.answers):,.0f} ms (median; at most {max(self.answers):,.0f} ms)"


class Gauge:
    """Calls functions repeatedly on its own thread, and charts their values.

    Args:
        readings: for each chart, its title, its unit, and the function that returns its next value.
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

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._audience.measured(self._charts(), over=True)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context manager: take readings until exit. The charts leave out the time in which the user reads texts."""
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
    """Return the arrival times, as from `time.monotonic()`, of a terminal's lines that contain the text."""
    return [then for line, then in zip(list(terminal.lines), list(terminal.times), strict=False) if text in line]


def rate(moments: Sequence[float]) -> float:
    """Return how many of the moments, as returned by `time.monotonic()`, are within the last second."""
    now = time.monotonic()
    return float(sum(now - moment < 1 for moment in moments))


WHY_QUEUES = Play(
    "Why queues",
    "Three reasons for a queue between two programs: decoupling, asynchrony and load levelling. Each one is measured.",
    play,
    queues=("stock", "mail", "packing"),
    exchanges=("orders",),
)
