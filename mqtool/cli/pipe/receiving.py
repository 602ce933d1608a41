"""The pipeline of every command that receives: consume, print, and stop when told to or when nobody reads."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.display.progress import Progress
from mqtool.cli.display.received import DeliveryWriter
from mqtool.cli.options import Broker, Receiving
from mqtool.errors import UsageError
from mqtool.message import Delivery


class Incoming(Protocol):
    """A channel, or a stream's, from which messages come."""

    before_acknowledging: Callable[[], None]

    def stop(self) -> None: ...


def print_deliveries(
    receiving: Receiving,
    broker: Broker,
    consumer: Callable[[Any], Iterator[Delivery]],
    line: Callable[[Delivery], str] | str,
    *,
    opened: Callable[[Access], AbstractContextManager[Any]] = Access.channel,
    waiting: str = WAITING_FOR_MESSAGES,
    queue_is_ours: bool = False,
) -> None:
    """Print deliveries until they end; asking for the next one acknowledges the one printed.

    Args:
        consumer: the lesson's, with its own arguments given.
        line, queue_is_ours: as of writer().
        opened: gives the channel that the consumer takes: AMQP's, or a stream's.

    Raises:
        ReaderGone: nobody reads what we print any more.
        UsageError: an option is not valid, or the file cannot be opened.
    """
    receiving.printing.redirect()
    write = writer(receiving, line, queue_is_ours=queue_is_ours)
    with opened(broker.access()) as channel:
        channel.before_acknowledging = write.flush
        deliveries = consumer(channel)
        # Into a file, nothing else shows that messages come.
        progress = Progress("received", is_wanted=output.is_file(output.STDOUT), patience=0)
        with announced(receiving.ready_file, channel, waiting):
            try:
                for delivery in progress.of(deliveries):
                    write.add(delivery)
            finally:
                progress.stop()
                if progress.count:
                    output.status(progress.sum)


def writer(
    receiving: Receiving, line: Callable[[Delivery], str] | str, *, queue_is_ours: bool = False
) -> DeliveryWriter:
    """Prints deliveries as the options say, else in the command's own lines.

    Args:
        line: as of DeliveryWriter.
        queue_is_ours: nobody else gets what we do not print, so there is no need to be careful with pipes.

    Raises:
        UsageError: the options contradict each other, or the ready file could not be created.
    """
    ready = receiving.ready_file
    if ready is not None and not ready.parent.is_dir():
        raise UsageError(f"cannot create the ready file {ready}: its directory does not exist")
    return receiving.printing.writer(line, hand_over=not receiving.auto_ack and not queue_is_ours)


@contextmanager
def announced(ready_file: Path | None, channel: Incoming, waiting: str) -> Iterator[None]:
    """Say that we consume now, to the person and to whoever watches the ready file; stop when our reader goes away.

    Raises:
        ReaderGone: it went away.
    """
    output.status(waiting)
    output.create_ready_file(ready_file)
    reader = output.Reader(on_gone=channel.stop)
    yield
    reader.check()


@contextmanager
def busy(in_hand: Callable[[], int]) -> Iterator[None]:
    """Within the block, Ctrl-C says what it waits for, and that a second one does not wait.

    Args:
        in_hand: how many messages are being worked on.
    """

    def say() -> None:
        if (count := in_hand()) and stopping.requested() == signal.SIGINT:
            output.interject(f"finishing {'this one' if count == 1 else f'these {count}'}; Ctrl-C again stops now")

    with stopping.calling(say):
        yield
