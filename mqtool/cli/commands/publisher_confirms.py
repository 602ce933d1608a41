"""mqtool publisher-confirms."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Literal

import typer

from mqtool.channels import AmqpChannel
from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import ConfirmTimeout, QueueOptions, TutorialBroker
from mqtool.cli.options.broker_options import HiddenDialect
from mqtool.cli.options.message_options import Count, Every, Jitter
from mqtool.cli.pipe import flow
from mqtool.cli.pipe.existence import ask_to_declare
from mqtool.errors import NotConfirmed
from mqtool.message import CONFIRM_TIMEOUT, Confirmation, Message, Receipt, new_message_id
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials import publisher_confirms as tutorial

app = typer.Typer()

Strategy = Literal["individual", "batch", "async", "all"]
#: 'async' is reported as faster than 'batch' if it takes less than this fraction of the time.
_CLEARLY = 0.9
#: How the tutorial's output describes each strategy.
_SAYS = {"individual": "individually in", "batch": "in batch in", "async": "and handled confirms asynchronously in"}


@command(
    app,
    "mqtool publisher-confirms all",
    "mqtool publisher-confirms async -c 100000 -q confirmed --durable",
    effect=Effect.SENDS,
    instead={"dialect": HiddenDialect},
    heading="Tutorials",
)
def publisher_confirms(
    queue: QueueOptions,
    broker: TutorialBroker,
    strategy: Annotated[
        Strategy, typer.Argument(help="When to wait for confirms: individual, batch, async or all", metavar="STRATEGY")
    ] = "all",
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD...", help="Text, with places such as {n}", show_default="the number from 0"),
    ] = None,
    count: Annotated[int, Count] = 50_000,
    every: Every = None,
    jitter: Jitter = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Messages per batch", metavar="N")] = 100,
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT,
) -> None:
    """Publish with confirms, in three ways (tutorial 7)."""
    ways: dict[Strategy, Callable[[AmqpChannel, Queue, Iterable[Message]], Iterator[Receipt]]] = {
        "individual": tutorial.individually,
        "batch": partial(tutorial.in_batches, size=batch_size),
        "async": partial(tutorial.asynchronously, refused=[]),
    }
    waits = {
        "individual": "waiting for each confirm",
        "batch": f"waiting once per {batch_size:,} messages",
        "async": "handling confirms as they arrive",
    }
    body_of = _text(words) if words else lambda number: str(number - 1).encode()
    chosen = list(ways) if strategy == "all" else [strategy]
    seconds: dict[Strategy, float] = {}
    for way in chosen:
        # One connection for each strategy, so that each starts with an empty private queue.
        access = access_to(broker)
        with access.channel_or_session(mandatory=True, confirm_timeout=confirm_timeout) as channel:
            target = queue.of(PRIVATE_QUEUE)
            ask_to_declare(channel, access, target)
            target = channel.declare(target)
            output.status(f"{way}: publishing {count:,} messages, {waits[way]} …")
            messages = (
                Message(body_of(number), message_id=new_message_id())
                for number in filter(None, flow.numbers(count, every, jitter))
            )
            started = time.perf_counter()
            confirmed = _confirmed(ways[way](channel, target, stopping.until_requested(messages)), count)
            seconds[way] = time.perf_counter() - started
        if stopping.requested() is not None:
            output.status(f"stopped: {confirmed:,} of {count:,} messages confirmed ({way})")
            stopping.exit_if_requested()
        output.show(f"Published {count:,} messages {_SAYS[way]} {seconds[way] * 1000:,.0f} ms")
        if confirmed < count:
            raise NotConfirmed(f"the broker refused or returned {count - confirmed:,} of {count:,} messages")
    if len(chosen) > 1:
        slowest = max(seconds.values())
        output.status("")
        for way in chosen:
            rate = count / seconds[way]
            output.status(f"  {way:<10} {rate:>10,.0f} messages/s  {slowest / seconds[way]:>6.1f} ×")
        milliseconds = seconds["individual"] / count * 1000
        output.status("")
        output.status(
            f"A confirm took {milliseconds:.1f} ms on average. 'individual' waited for {count:,} of them one by one, "
            f"'batch' waited {-(-count // batch_size):,} times, and 'async' did not wait in between. "
            + _remark(seconds)
        )


def _text(words: list[str]) -> Callable[[int], bytes]:
    """Return a function that fills the places in the text of a message with this number."""
    text = " ".join(words)
    places = flow.Places(text)
    return lambda number: os.fsencode(places.filling(number)(text))


def _remark(seconds: dict[Strategy, float]) -> str:
    if seconds["async"] < seconds["batch"] * _CLEARLY:
        return "On a slower network, the difference is greater."
    return (
        "Here, waits are so short that 'batch' and 'async' take about as long; on a slower network, 'async' gains more."
    )


def _confirmed(receipts: Iterable[Receipt], count: int) -> int:
    progress = Progress("confirmed", fraction=lambda: progress.count / count)
    try:
        return sum(receipt.confirmation is Confirmation.CONFIRMED for receipt in progress.of(receipts))
    finally:
        progress.stop()
