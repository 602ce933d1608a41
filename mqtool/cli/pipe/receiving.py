"""The pipeline of every command that receives: consume, choose, print, or run a program; until stopped."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mqtool.amqp import Channel, administration
from mqtool.amqp import Receiving as Settings
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import DeliveryWriter
from mqtool.cli.display.live_screen import Progress
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.invocation import current
from mqtool.cli.options import Broker, Receiving, UsedQueueOptions
from mqtool.cli.options.message_options import DedupOptions, ProgramOptions
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, NotFound, SomeFailed, TimedOut, Unavailable, UsageError
from mqtool.inspection.listing import counted
from mqtool.message import Delivery
from mqtool.topology import Queue
from mqtool.tutorials.dialects import declaring_otherwise
from mqtool.work.exec_command import ExecCommand
from mqtool.work.retry_or_dead_letter import Retrying
from mqtool.work.worker import ONE_EACH, Worker

if TYPE_CHECKING:
    from mqtool.where import Where
    from mqtool.work.deduplication import HandledMessages


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


def checked(queue: Queue, options: UsedQueueOptions, channel: Channel, broker: Broker) -> Queue:
    """The queue that is about to be declared; tell a person if it is new: its name may be mistyped.

    Of a tutorial's queue, tell whose scripts will not be able to declare it then. They fail with 406
    PRECONDITION_FAILED, which does not say that mqtool has been there before.

    Raises:
        NotFound: it is new, and must not be declared.
    """
    is_watched = output.is_terminal(2) and not current().quiet
    if (options.declare and not is_watched) or administration.exists(channel, queue):
        return queue
    if not options.declare:
        raise NotFound(f"there is no queue {queue.name!r}", "leave out --no-declare to declare it")
    if queue not in tuple(broker.names):
        output.notice(f"queue {queue.name!r} is new")
    elif broker.dialect is None and declaring_otherwise(queue):
        others = [f"{dialect} ({dialect.partition('-')[0].title()})" for dialect in declaring_otherwise(queue)]
        output.notice(
            f"{queue.name!r} is a new quorum queue; scripts of older tutorials need --dialect {' or '.join(others)}"
        )
    return queue


#: Messages that one consumer can hold: AMQP's greatest prefetch.
_MOST = 65_535


class Matching(NamedTuple):
    """What to receive.

    Attributes:
        where: None for all.
        passes_over: what does not match need not be kept.
    """

    receiving: Receiving
    where: "Where | None"
    passes_over: bool = False

    def settings(self) -> Settings:
        """How the channel is to consume.

        Raises:
            UsageError: messages would be acknowledged before anybody looked at them.
        """
        settings = self.receiving.settings()
        if self.where is None:
            return settings
        if self.passes_over:
            return settings._replace(count=None)
        if settings.auto_ack:
            raise UsageError("--auto-ack would lose what does not match --where", "leave out --auto-ack")
        return settings._replace(count=None, acknowledge=False, prefetch=self.receiving.prefetch or _MOST)

    def of(self, channel: Channel, deliveries: Iterator[Delivery]) -> Iterator[Delivery]:
        """Those that match, up to the count; each is acknowledged when the next one is asked for."""
        if self.where is None:
            return deliveries
        return self._chosen(channel, deliveries, self.where)

    def _chosen(self, channel: Channel, deliveries: Iterator[Delivery], where: "Where") -> Iterator[Delivery]:
        from mqtool.where import of_delivery

        found, held, limit = 0, 0, self.receiving.limit
        most = self.receiving.prefetch or _MOST
        for delivery in deliveries:
            if where.matches(of_delivery(delivery)):
                found += 1
                yield delivery
                if not self.passes_over:
                    channel.before_acknowledging()
                    channel.acknowledge(delivery)
                if found == limit:
                    return
            elif not self.passes_over:
                held += 1
                if held == most:
                    output.warning(
                        f"{held:,} messages that do not match are held: that is the prefetch, so no more come"
                    )
        if limit is not None and self.receiving.idle_timeout is not None and not channel.stopping:
            raise TimedOut(f"nothing came for {self.receiving.idle_timeout:g} s, with {found:,} of {limit:,} received")


#: Seconds. https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
DEFAULT_CONSUMER_TIMEOUT = 30 * 60.0

_SUMS = {"done": "done", "retry": "retries", "dead": "dead"}


def work(command: str, options: ProgramOptions, named: UsedQueueOptions, receiving: Receiving, broker: Broker) -> None:
    """Run a program for each message, until stopped.

    Raises:
        UsageError: the program does not exist, or options contradict each other.
    """
    if receiving.printing.has_form or receiving.auto_ack:
        raise UsageError(
            "--exec cannot be combined with output or acknowledgement options",
            "leave out --raw, --json, --format and --auto-ack",
        )
    concurrency, queue = options.concurrency, named.of(broker.names.task_queue)
    program = ExecCommand(
        command,
        shell=options.exec.shell,
        timeout=receiving.timeout,
        concurrency=concurrency,
        pass_url=options.exec.pass_url,
    )
    handled = handled_messages(options.dedup)
    settings = receiving._replace(timeout=None).settings(ONE_EACH)
    access = broker.access()
    with access.connect() as connection:
        channel = connection.channel(strict=access.strict)
        retrying = Retrying(connection.channel(), options.retries.policy, output.notice)
        worker = Worker(channel, program, retrying, concurrency, output.notice, handled)
        if receiving.timeout is not None:
            _warn_of_consumer_timeout(access, queue.name, receiving.timeout)
        with stopping.calling(channel.stop), busy(lambda: worker.in_hand):
            queue = channel.declare(checked(queue, named, channel, broker))
            work_through = worker.start_consuming(queue, settings)
            try:
                with announced(receiving.ready_file, channel, WAITING_FOR_MESSAGES):
                    work_through()
            finally:
                sums = _SUMS | ({"suppressed": "suppressed"} if handled else {})
                output.status(", ".join(f"{worker.counts[what]:,} {said}" for what, said in sums.items()))
    if (dead := worker.counts["dead"]) and stopping.requested() is None:
        raise SomeFailed(f"{counted(dead, 'message')} failed for good", f"see them with 'mqtool dlq show {queue.name}'")


def handled_messages(dedup: DedupOptions) -> "HandledMessages | None":
    """The store of handled messages; None if duplicates are not to be suppressed.

    Raises:
        UsageError: it cannot be used, or is named without --deduplicate.
    """
    if not dedup.deduplicate:
        if dedup.store is not None:
            raise UsageError("--dedup-store has no effect without --deduplicate", "add --deduplicate")
        return None
    from mqtool.broker import state
    from mqtool.work.deduplication import HandledMessages

    default: Path = state.directory().parents[1] / "handled.sqlite"
    return HandledMessages(dedup.store or default, dedup.window)


def _warn_of_consumer_timeout(access: Access, queue: str, timeout: float) -> None:
    """Say so if the broker would requeue a message that its program may still work on."""
    from mqtool.management import consumer_timeout

    try:
        limit = consumer_timeout(access.management((1.0, 1.0)), access.vhost, queue)
    except (Unavailable, AccessRefused):  # it is only for the warning
        limit = None
    whose = f"that of queue {queue!r}"
    if limit is None:
        limit, whose = DEFAULT_CONSUMER_TIMEOUT, "RabbitMQ's, unless it is configured otherwise,"
    if timeout > limit:
        output.warning(
            f"--timeout of {compact_duration(timeout)} is longer than the consumer timeout; {whose} is "
            f"{compact_duration(limit)}, after which the broker requeues the message"
        )
