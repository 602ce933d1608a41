"""The work of all receiving commands: open a channel, select deliveries (--where), print or process each one.

amqp ── consume() ──> tutorials/X ── deliveries ──> commands/X ──> Incoming.print_all() ──> DeliveryWriter ──> stdout
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mqtool.amqp import Channel, administration
from mqtool.amqp import Receiving as Settings
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import DeliveryWriter
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.display.progress import Progress
from mqtool.cli.invocation import current
from mqtool.cli.options import Broker, Receiving, UsedQueueOptions
from mqtool.errors import MqtoolError, NotFound, TimedOut, UsageError
from mqtool.message import Delivery
from mqtool.spelling import nearest
from mqtool.topology import Queue
from mqtool.tutorials.dialects import declaring_otherwise

if TYPE_CHECKING:
    from mqtool.where import Where


class ReceivingChannel(Protocol):
    """The methods of an AMQP or stream channel that are needed to print deliveries."""

    def stop(self) -> None: ...


@contextmanager
def receiving_channel(
    receiving: Receiving,
    broker: Broker,
    line: Callable[[Delivery], str] | str,
    *,
    opened: Callable[[Access], AbstractContextManager[Any]] = Access.channel,
    waiting: str = WAITING_FOR_MESSAGES,
    queue_is_private: bool = False,
) -> "Iterator[tuple[Any, Incoming]]":
    """Open an AMQP or stream channel to consume on. Yields the channel, and an Incoming that prints its deliveries."""
    receiving.printing.redirect()
    write = delivery_writer(receiving, line, queue_is_private=queue_is_private)
    access = broker.access()
    with opened(access) as channel:
        yield channel, Incoming(access, receiving, channel, write, waiting)


class Incoming:
    """Prints the deliveries of a receiving command."""

    def __init__(
        self, access: Access, receiving: Receiving, channel: ReceivingChannel, write: DeliveryWriter, waiting: str
    ) -> None:
        self.access = access
        self._ready_file = receiving.ready_file
        self._channel = channel
        self._write = write
        self._waiting = waiting

    def printed(self, settings: Settings) -> Settings:
        """Return a copy of the settings with which the output is flushed before deliveries are acknowledged."""
        return settings._replace(before_acknowledging=self._write.flush)

    def print_all(self, deliveries: Iterator[Delivery]) -> None:
        """Print deliveries until there are no more. Each one is acknowledged after it has been printed."""
        # With output into a file, nothing else shows that messages arrive.
        progress = Progress("received", is_wanted=output.is_file(output.STDOUT), patience=0)
        with consuming(self._ready_file, self._channel, self._waiting):
            try:
                for delivery in progress.of(deliveries):
                    self._write.add(delivery)
            finally:
                progress.stop()
                if progress.count:
                    output.status(progress.sum)


def delivery_writer(
    receiving: Receiving, line: Callable[[Delivery], str] | str, *, queue_is_private: bool = False
) -> DeliveryWriter:
    """Return a writer that prints deliveries in the format of the options, by default as the command's own lines.

    Args:
        line: the format of the command's own lines; see DeliveryWriter.
        queue_is_private: unread messages are lost in any case, so do not wait until a pipe's reader has read each one.

    Raises:
        UsageError: the directory of --ready-file does not exist, or the options contradict each other.
    """
    ready = receiving.ready_file
    if ready is not None and not ready.parent.is_dir():
        raise UsageError(f"cannot create the ready file {ready}: its directory does not exist")
    return receiving.printing.writer(line, wait_for_reader=not receiving.auto_ack and not queue_is_private)


@contextmanager
def consuming(ready_file: Path | None, channel: ReceivingChannel, waiting: str) -> Iterator[None]:
    """Print the line `waiting`, and create the ready file, if any.

    Within the block, the channel stops when the program that reads the output ends; ReaderGone is then raised.
    """
    output.status(waiting)
    output.create_ready_file(ready_file)
    reader = output.Reader(on_gone=channel.stop)
    yield
    reader.check()


@contextmanager
def announcing_unfinished_work(in_hand: Callable[[], int]) -> Iterator[None]:
    """Within the block, the first Ctrl-C prints how many messages are still being processed."""

    def say() -> None:
        if (count := in_hand()) and stopping.requested() == signal.SIGINT:
            output.interject(f"finishing {'this one' if count == 1 else f'these {count}'}; Ctrl-C again stops now")

    with stopping.calling(say):
        yield


#: Seconds to wait for a connection to the management API and for its response, which only provides similar names.
_PATIENCE = (0.3, 1.0)
DECLARE = "--declare declares it"


def checked(
    queue: Queue, options: UsedQueueOptions, channel: Channel, broker: Broker, access: Access | None = None
) -> Queue:
    """Return the queue if it exists or may be declared, otherwise raise NotFound. On a terminal, say if it is new.

    A new queue's name may be mistyped. If it is a tutorial's queue, scripts that declare it with different settings
    will fail with 406 PRECONDITION_FAILED, so the notice says which dialect such scripts need.

    Args:
        access: given by receiving commands, which declare a queue only if it is a tutorial's or an option requires it.
    """
    is_tutorials = queue.name in {each.name for each in broker.names}
    if not (is_tutorials or options.has_settings or broker.strict):
        channel.accept_settings(queue)
    declares = options.declare
    if declares is None:
        declares = access is None or is_tutorials or options.has_settings
    is_watched = output.is_terminal(2) and not current().quiet
    if (declares and not is_watched) or administration.exists(channel, queue):
        return queue
    if not declares:
        hint = "leave out --no-declare to declare it" if options.declare is False else DECLARE
        refuse(queue.name, access, hint)
    if queue not in tuple(broker.names):
        output.notice(f"queue {queue.name!r} is new")
    elif broker.dialect is None and declaring_otherwise(queue):
        others = [f"{dialect} ({dialect.partition('-')[0].title()})" for dialect in declaring_otherwise(queue)]
        output.notice(
            f"{queue.name!r} is a new quorum queue; scripts of older tutorials need --dialect {' or '.join(others)}"
        )
    return queue


def refuse(name: str, access: Access | None, hint: str = DECLARE, kind: str = "queue") -> None:
    """Raise NotFound for a queue that does not exist; the hint suggests a similar name that the management API lists.

    Does nothing if the API lists the name, for example because it is a queue but a stream is wanted: using it then
    fails with a clear error.
    """
    names = [] if access is None else _queue_names(access)
    if name not in names:
        meant = nearest(name, names)
        raise NotFound(
            f"there is no {kind} {name!r}", hint if meant is None else f"did you mean {meant!r}? Otherwise, {hint}"
        )


def _queue_names(access: Access) -> list[str]:
    from mqtool.management import queues  # only for mistyped names

    with suppress(MqtoolError):
        return [each["name"] for each in queues(access.management(_PATIENCE), access.vhost, ["name"])]
    return []


#: The largest prefetch in AMQP: the maximum number of unacknowledged messages of one consumer.
_MOST = 65_535


class Matching(NamedTuple):
    """The messages to receive: those that match `--where`, up to `--count`.

    In a private queue, and in a stream (`skips`), a message that does not match is skipped. In any other queue it is
    held unacknowledged until the command ends, because a message that is requeued is redelivered at once.
    """

    receiving: Receiving
    where: "Where | None"
    skips: bool = False

    def settings(self) -> Settings:
        """The settings for consuming. Raises UsageError if --auto-ack would lose messages that do not match."""
        settings = self.receiving.settings()
        if self.where is None:
            return settings
        if self.skips:
            return settings._replace(count=None)
        if settings.auto_ack:
            raise UsageError("--auto-ack would lose what does not match --where", "leave out --auto-ack")
        return settings._replace(count=None, acknowledge=False, prefetch=self.receiving.prefetch or _MOST)

    def of(self, channel: Channel, deliveries: Iterator[Delivery], settings: Settings) -> Iterator[Delivery]:
        """Yield the deliveries that match, up to the count. Asking for the next one acknowledges the previous one."""
        if self.where is None:
            return deliveries
        return self._chosen(channel, deliveries, settings, self.where)

    def _chosen(
        self, channel: Channel, deliveries: Iterator[Delivery], settings: Settings, where: "Where"
    ) -> Iterator[Delivery]:
        from mqtool.where import of_delivery

        found, held, limit = 0, 0, self.receiving.limit
        most = self.receiving.prefetch or _MOST
        for delivery in deliveries:
            if where.matches(of_delivery(delivery)):
                found += 1
                yield delivery
                if not self.skips:
                    settings.before_acknowledging()
                    channel.acknowledge(delivery)
                if found == limit:
                    return
            elif not self.skips:
                held += 1
                if held == most:
                    output.warning(
                        f"{held:,} messages that do not match are held: that is the prefetch, so no more come"
                    )
        if limit is not None and self.receiving.idle_timeout is not None and not channel.stopping:
            raise TimedOut(f"nothing came for {self.receiving.idle_timeout:g} s, with {found:,} of {limit:,} received")
