"""Common code of receiving commands: open a channel, select deliveries (--where), print or process each one.

amqp ── consume() ──> tutorials/X ── deliveries ──> commands/X ──> Incoming.print_all() ──> DeliveryWriter ──> stdout
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mqtool.amqp import Receiving
from mqtool.channels import AmqpChannel, ConsumingChannel
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, print_as_script
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import DeliveryWriter, redirect, say_appended
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import BrokerOptions
from mqtool.cli.options.receiving_options import PrintingOptions, ReceivingOptions
from mqtool.errors import NotFound, TimedOut, UsageError
from mqtool.message import Delivery
from mqtool.tutorials.dialects import Dialect

if TYPE_CHECKING:
    from mqtool.where import Where
    from mqtool.work.peeking import OverLimit

ChannelT = TypeVar("ChannelT", bound=ConsumingChannel)


@contextmanager
def receiving_channel(
    receiving: ReceivingOptions,
    broker: BrokerOptions,
    line: Callable[[Delivery], str] | str,
    *,
    opened: Callable[[Access], AbstractContextManager[ChannelT]],
    waiting: str | None = None,
    queue_is_private: bool = False,
) -> "Iterator[tuple[ChannelT, Incoming]]":
    """Open a channel to consume on. Yields the channel, and an Incoming that prints its deliveries.

    Args:
        waiting: the line to print when the command is consuming; by default the one of tutorial 1.
    """
    print_deliveries_as_script(receiving.printing, broker)
    redirect(receiving.printing.into)
    write = delivery_writer(receiving, line, queue_is_private=queue_is_private)
    access = access_to(broker)
    stopping.limit_time(receiving.timeout)
    with opened(access) as channel:
        yield channel, Incoming(access, receiving, channel, write, broker.lines.waiting if waiting is None else waiting)


def print_deliveries_as_script(printing: PrintingOptions, broker: BrokerOptions) -> None:
    """With --dialect, print as the dialect's script does, unless an option says how or where to print messages."""
    has_script = isinstance(broker.dialect, Dialect)  # the dialects of streams only have lines
    if not has_script or printing.has_form or printing.into is not None:
        return
    print_as_script(broker)
    if broker.lines.on_stderr:
        output.join_stderr()


class Incoming:
    """Prints the deliveries of a receiving command."""

    def __init__(
        self,
        access: Access,
        receiving: ReceivingOptions,
        channel: ConsumingChannel,
        write: DeliveryWriter,
        waiting: str,
    ) -> None:
        self.access = access
        self._receiving = receiving
        self._channel = channel
        self._write = write
        self._waiting = waiting

    def printed(self, settings: Receiving) -> Receiving:
        """Return a copy of the settings, changed so that output is flushed before deliveries are acknowledged."""
        batched = self._write.batched
        return settings._replace(before_acknowledging=batched.flush, is_output_full=batched.is_full)

    def print_all(self, deliveries: Iterator[Delivery]) -> None:
        """Print deliveries until there are no more. Each one is acknowledged after it has been printed."""
        # If output goes to a file, nothing else shows that messages arrive.
        is_wanted = output.is_file(output.STDOUT) and not output.speaks_as_script()
        progress = Progress("received", is_wanted=is_wanted, patience=0)
        count, file = 0, self._receiving.printing.into
        with consuming(self._receiving, self._channel, self._waiting):
            try:
                for delivery in progress.of(deliveries):
                    self._write.add(delivery)
                    count += 1
            finally:
                progress.stop()
                if progress.count and file is None:
                    output.status(progress.sum)
                if not self._write.batched.has_failed:
                    say_appended(count, file)


def delivery_writer(
    receiving: ReceivingOptions, line: Callable[[Delivery], str] | str, *, queue_is_private: bool = False
) -> DeliveryWriter:
    """Return a writer that prints deliveries in the format set by options; the default is the command's own lines.

    Args:
        line: the format of the command's own lines; see DeliveryWriter.
        queue_is_private: do not wait until a pipe's reader has read each message: unread messages are lost in any case.

    Raises:
        UsageError: the directory of --ready-file does not exist, or the options contradict each other.
    """
    ready = receiving.ready_file
    if ready is not None and not ready.parent.is_dir():
        raise UsageError(f"cannot create the ready file {ready}: its directory does not exist")
    waits = not receiving.auto_ack and not queue_is_private
    return receiving.printing.writer(line, wait_for_reader=waits, marks_redelivered=True)


@contextmanager
def consuming(receiving: ReceivingOptions, channel: ConsumingChannel, waiting: str) -> Iterator[None]:
    """Context manager: print the line `waiting`, unless it is empty, and create the ready file, if any.

    The command's time limit counts from here. If the program that reads the output exits during the `with` block, stop
    the channel and raise ReaderGone.
    """
    if waiting:
        output.say(waiting)
    output.create_ready_file(receiving.ready_file)
    if receiving.auto_ack:
        stopping.limit_time(None)  # an interruption would lose what has arrived
    stopping.restart_time_limit()
    reader = output.PipeReader(on_gone=channel.stop)
    yield
    reader.check()


@contextmanager
def announcing_unfinished_work(in_hand: Callable[[], int]) -> Iterator[None]:
    """Context manager: on the first Ctrl-C, print how many messages are still being processed."""

    def say() -> None:
        if (count := in_hand()) and stopping.requested() == signal.SIGINT:
            output.interject(f"finishing {'this one' if count == 1 else f'these {count}'}; Ctrl-C again stops now")

    with stopping.calling(say):
        yield


#: The largest prefetch that AMQP allows: the maximum number of unacknowledged messages per consumer.
_MOST = 65_535


class Matching(NamedTuple):
    """The messages to receive: those that match `--where`, up to `--count`.

    In a private queue or a stream (`skips`), a message that does not match is skipped. In any other queue, it is
    held unacknowledged until the command ends, because a requeued message would be redelivered at once.
    """

    receiving: ReceivingOptions
    where: "Where | None"
    skips: bool = False
    until_empty: bool = False

    def settings(self) -> Receiving:
        """Return the settings for consuming. Raises UsageError if --auto-ack would lose messages that do not match."""
        settings = self.receiving.settings()
        if self.where is None:
            return settings
        if self.skips:
            return settings._replace(count=None)
        if settings.auto_ack:
            raise UsageError("--auto-ack would lose messages that do not match --where", "leave out --auto-ack")
        return settings._replace(count=None, acknowledge=False, prefetch=self.receiving.prefetch or _MOST)

    def within_limit(self, settings: Receiving, access: Access, channel: AmqpChannel, queue: str) -> Receiving:
        """Return the settings with the queue's delivery limit, if it matters.

        Raises:
            MqtoolError: requeuing the messages that do not match could exceed the limit.
        """
        from mqtool.amqp import Channel
        from mqtool.amqp.consume_policies import holds_many

        requeues = self.where is not None and not self.skips
        if self.skips or not isinstance(channel, Channel) or not (requeues or holds_many(settings)):
            return settings
        from mqtool.cli.pipe.waiting import delivery_limit

        with suppress(NotFound):  # a queue that will be declared
            return settings._replace(delivery_limit=delivery_limit(access, channel, queue, requeues=requeues))
        return settings

    def of(self, channel: AmqpChannel, deliveries: Iterator[Delivery], settings: Receiving) -> Iterator[Delivery]:
        """Yield the matching deliveries, up to the count. Asking for the next one acknowledges the previous one."""
        if self.where is None:
            return deliveries
        return self._chosen(channel, deliveries, settings, self.where)

    def _over_limit(self, channel: AmqpChannel, settings: Receiving, queue: str) -> "OverLimit | None":
        """Return the messages that the queue drops when they are returned; None if there can be none."""
        from mqtool.amqp import Channel
        from mqtool.work.peeking import How, PeekKind, over_limit

        limit = settings.delivery_limit
        if self.skips or limit is None or limit == inf or not isinstance(channel, Channel):
            return None
        return over_limit(channel, queue, PeekKind(How.IN_TURN, int(limit)))

    def _ends_full(self, held: int) -> bool:
        """Say that the prefetch limit is reached; return True if the command ends when no more messages arrive."""
        output.warning(
            f"{held:,} messages that do not match are held unacknowledged: the prefetch limit is reached, so no more "
            "will arrive"
        )
        return self.until_empty

    def _chosen(
        self, channel: AmqpChannel, deliveries: Iterator[Delivery], settings: Receiving, where: "Where"
    ) -> Iterator[Delivery]:
        from mqtool.where import of_delivery

        found, held, limit = 0, 0, self.receiving.limit
        most, over = self.receiving.prefetch or _MOST, None
        try:
            for delivery in deliveries:
                over = over or self._over_limit(channel, settings, delivery.queue)
                if where.matches(of_delivery(delivery)):
                    found += 1
                    yield delivery
                    if not self.skips:
                        settings.before_acknowledging()
                        channel.acknowledge(delivery)
                    if found == limit:
                        return
                elif not self.skips and not (over is not None and over.stays(delivery)):
                    held += 1
                    if held == most and self._ends_full(held):
                        return
        except TimedOut as error:  # its count includes messages that do not match
            raise TimedOut(f"timed out after {self.receiving.timeout:g} s, with {found:,} received") from error
        finally:
            if over is not None:
                over.requeue_all()
        if limit is not None and self.receiving.idle_timeout is not None and not channel.stopping:
            raise TimedOut(f"no message for {self.receiving.idle_timeout:g} s: {found:,} of {limit:,} received")
