"""mqtool worker."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from mqtool.amqp import Channel, Receiving
from mqtool.channels import AmqpChannel
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import TutorialBroker, UsedQueueOptions
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.options.receiving_options import ReceivingOptions, TimeoutOfRuns, UntilEmpty
from mqtool.cli.pipe import waiting
from mqtool.cli.pipe.existence import checked
from mqtool.cli.pipe.receiving import announcing_unfinished_work, consuming, delivery_writer, print_deliveries_as_script
from mqtool.cli.values import DURATION, TIME_LIMIT
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, MqtoolError, SomeFailed, Unavailable, UsageError
from mqtool.message import Delivery
from mqtool.spelling import counted, pasteable
from mqtool.topology import Queue
from mqtool.tutorials import work_queues
from mqtool.tutorials.dialects import NAMES, Dialect
from mqtool.work.deduplication import HandledMessages
from mqtool.work.exec_command import ExecCommand
from mqtool.work.retry_or_dead_letter import Retrying, RetryPolicy
from mqtool.work.worker import Worker

app = typer.Typer()


@dataclass(kw_only=True, eq=False, repr=False)
class ExecOptions:
    """Options that run a program for each message."""

    command: Annotated[
        str | None,
        typer.Option("--exec", metavar="COMMAND", help="Run COMMAND for each message", rich_help_panel="Programs"),
    ] = None
    shell: Annotated[bool, typer.Option("--shell", help="Run COMMAND with sh", rich_help_panel="Programs")] = False
    pass_url: Annotated[
        bool,
        typer.Option("--pass-url", help="Keep passwords in the URLs that COMMAND inherits", rich_help_panel="Programs"),
    ] = False


@dataclass(kw_only=True, eq=False, repr=False)
class RetryOptions:
    """Options for retrying messages whose program failed."""

    retries: Annotated[
        int, typer.Option(min=0, help="Retry up to N times, then dead-letter", rich_help_panel="Retries", metavar="N")
    ] = 5
    backoff: Annotated[
        float,
        typer.Option(
            show_default="1s",
            help="Wait before the first retry; doubles with each retry",
            rich_help_panel="Retries",
            **DURATION,
        ),
    ] = 1.0
    backoff_max: Annotated[
        float,
        typer.Option(show_default="5m", help="Longest wait before a retry", rich_help_panel="Retries", **DURATION),
    ] = 300.0

    @property
    def policy(self) -> RetryPolicy:
        """The options as a RetryPolicy."""
        return RetryPolicy(self.retries, self.backoff, self.backoff_max)


@dataclass(kw_only=True, eq=False, repr=False)
class DedupOptions:
    """Options for skipping messages that have been handled before."""

    deduplicate: Annotated[
        bool,
        typer.Option(
            "--deduplicate", help="Skip messages whose message_id was handled before", rich_help_panel="Duplicates"
        ),
    ] = False
    store: Annotated[
        Path | None,
        typer.Option(
            "--dedup-store",
            metavar="FILE",
            show_default="in the state directory",
            help="SQLite file that stores the ids of handled messages",
            rich_help_panel="Duplicates",
        ),
    ] = None
    window: Annotated[
        float,
        typer.Option(
            "--dedup-window",
            show_default="24h",
            help="How long to remember an id",
            rich_help_panel="Duplicates",
            **TIME_LIMIT,
        ),
    ] = 86_400.0

    def opened(self) -> HandledMessages | None:
        """Open the store of handled messages; return None without --deduplicate.

        Raises:
            UsageError: --dedup-store is given without --deduplicate.
        """
        if not self.deduplicate:
            if self.store is not None:
                raise UsageError("--dedup-store has no effect without --deduplicate", "add --deduplicate")
            return None
        from mqtool.broker import state

        default: Path = state.directory().parents[1] / "handled.sqlite"
        return HandledMessages(self.store or default, self.window)


@dataclass(kw_only=True, eq=False, repr=False)
class ProgramOptions:
    """Options of `worker`: program, retries, deduplication."""

    exec: ExecOptions
    retries: RetryOptions
    dedup: DedupOptions
    concurrency: Annotated[
        int, typer.Option(min=1, max=1000, help="Run up to N programs at once", rich_help_panel="Programs", metavar="N")
    ] = 1

    @property
    def need_a_program(self) -> bool:
        """True if an option was given that has no effect without --exec."""
        retries = self.retries.policy != RetryPolicy()
        return self.exec.shell or self.concurrency > 1 or retries or self.dedup.deduplicate


@command(
    app,
    "mqtool worker",
    "mqtool worker --exec './resize -- {message_id}'",
    effect=Effect.CHANGES,
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].task_queue), "timeout": TimeoutOfRuns},
    heading="Tutorials",
    without=("into",),
)
def worker(
    queue: UsedQueueOptions,
    receiving: ReceivingOptions,
    broker: TutorialBroker,
    programs: ProgramOptions,
    forget_ack: Annotated[
        bool,
        typer.Option(
            "--forget-ack", help="Never acknowledge, to see the effect of this mistake", rich_help_panel="Receiving"
        ),
    ] = False,
    until_empty: UntilEmpty = False,
) -> None:
    """Handle tasks, or run a program for each task (tutorial 2)."""
    if programs.exec.command is not None:
        _work(programs.exec.command, programs, queue, receiving, broker, until_empty=until_empty)
        return
    if programs.need_a_program:
        raise UsageError(
            "--shell, --concurrency, --deduplicate and the retry options need --exec", "add --exec COMMAND"
        )
    print_deliveries_as_script(receiving.printing, broker)
    write = delivery_writer(receiving, broker.lines.received_task or broker.lines.received)

    def do(task: Delivery) -> None:
        with _until_stopped() if broker.script is not None else announcing_unfinished_work(lambda: 1):
            write(task)
            time.sleep(work_queues.seconds_of_work(task))
        output.say(broker.lines.done)

    settings = receiving.settings(work_queues.FAIR_DISPATCH._replace(prefetch=broker.lines.worker_prefetch))
    done = redelivered = 0
    access = access_to(broker)
    stopping.limit_time(receiving.timeout)
    with access.channel_or_session() as channel:
        names = dialect_names(broker)
        target = checked(queue.of(names.queue(queue.queue, names.task_queue)), queue, channel, broker, access)
        if until_empty:
            settings = waiting.until_empty(settings, access, channel, target)
        if forget_ack:
            tasks = _work_and_forget(channel, target, do, settings)
        elif isinstance(channel, Channel):
            tasks = work_queues.work(channel, target, do, settings)
        else:
            from mqtool.tutorials import amqp10_work_queues

            tasks = amqp10_work_queues.work(channel, target, do, settings)
        with consuming(receiving, channel, broker.lines.waiting_task):
            for task in tasks:
                done += 1
                redelivered += task.redelivered
                if forget_ack and done == settings.prefetch:
                    output.warning(
                        f"{done} done but not acknowledged: the prefetch limit is reached, so no more will arrive. "
                        "The broker keeps them as unacknowledged; with --prefetch 0, more of them would use its memory"
                    )
    if forget_ack:
        output.warning(
            f"{done} done, none acknowledged, {redelivered} redelivered: when this worker ends, "
            "the broker redelivers all of them"
        )


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Let a signal end the task, as it ends the tutorial's script."""
    with stopping.interrupting():
        stopping.exit_if_requested()
        yield


def _work_and_forget(
    channel: AmqpChannel, queue: Queue, do: Callable[[Delivery], None], receiving: Receiving
) -> Iterator[Delivery]:
    """Work like the tutorial's worker, but without acknowledging."""
    tasks = channel.consume(channel.declare(queue), receiving._replace(acknowledge=False))

    def done() -> Iterator[Delivery]:
        for task in tasks:
            do(task)
            yield task

    return done()


#: RabbitMQ's default, in seconds. https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
DEFAULT_CONSUMER_TIMEOUT = 30 * 60.0


def _work(
    command: str,
    options: ProgramOptions,
    named: UsedQueueOptions,
    receiving: ReceivingOptions,
    broker: TutorialBroker,
    *,
    until_empty: bool,
) -> None:
    """Run a program for each message (`worker --exec`), until a signal or a limit ends the command."""
    if receiving.printing.has_form or receiving.auto_ack:
        raise UsageError(
            "--exec cannot be combined with output or acknowledgement options",
            "leave out --raw, --json, --format and --auto-ack",
        )
    concurrency = options.concurrency
    names = dialect_names(broker)
    queue = named.of(names.queue(named.queue, names.task_queue))
    program = ExecCommand(
        command,
        shell=options.exec.shell,
        timeout=receiving.timeout,
        concurrency=concurrency,
        pass_url=options.exec.pass_url,
    )
    handled = options.dedup.opened()
    settings = replace(receiving, timeout=None).settings(Receiving(prefetch=concurrency))
    access = access_to(broker)
    with access.channels_or_session() as (channel, other):
        retrying = Retrying(other, options.retries.policy, output.notice)
        worker = Worker(channel, program, retrying, concurrency, output.notice, handled)
        if receiving.timeout is not None:
            _warn_of_consumer_timeout(access, queue.name, receiving.timeout)
        with announcing_unfinished_work(lambda: worker.in_hand):
            queue = channel.declare(checked(queue, named, channel, broker, access))
            if until_empty:
                settings = waiting.until_empty(settings, access, channel, queue)
            work_through = worker.start_consuming(queue, settings)
            try:
                with consuming(receiving, channel, broker.lines.waiting_task):
                    work_through()
            finally:
                output.status(_totals(worker.counts, suppresses=handled is not None))
    if stopping.requested() is None:
        _check_done(worker.counts, queue.name)


def _totals(counts: Mapping[str, int], *, suppresses: bool) -> str:
    """Return the totals of a worker as text. Duplicates are counted if the worker suppresses them."""
    retries = f"{counts['retry']:,} {'retry' if counts['retry'] == 1 else 'retries'}"
    suppressed = f", {counts['suppressed']:,} suppressed" if suppresses else ""
    again = f", {counts['lost']:,} delivered again" if counts["lost"] else ""
    return f"{counts['done']:,} done, {retries}, {counts['dead']:,} dead{suppressed}{again}"


def _check_done(counts: Mapping[str, int], queue: str) -> None:
    """Raise an error if messages were dead-lettered, or if there were attempts, and none of them succeeded."""
    dead, retries, done = counts["dead"], counts["retry"], counts["done"]
    if dead:
        failed = SomeFailed if done else MqtoolError
        raise failed(f"{counted(dead, 'message')} failed for good", f"to see them: {pasteable('dlq show', queue)}")
    if retries and not done:
        raise MqtoolError(
            f"{counted(retries, 'attempt')} failed, and none succeeded",
            "the messages will be retried after the backoff",
        )


def _warn_of_consumer_timeout(access: Access, queue: str, timeout: float) -> None:
    """Warn if a program may run longer (`timeout`, in seconds) than the broker's consumer timeout for the queue."""
    from mqtool.management import consumer_timeout

    try:
        limit = consumer_timeout(access.management((1.0, 1.0)), access.vhost, queue)
    except (Unavailable, AccessRefused):  # the broker's timeout is only needed for the warning
        limit = None
    whose = f"for queue {queue!r}"
    if limit is None:
        limit, whose = DEFAULT_CONSUMER_TIMEOUT, "unless configured otherwise"
    if timeout > limit:
        output.warning(
            f"--timeout of {compact_duration(timeout)} is longer than the consumer timeout ({compact_duration(limit)} "
            f"{whose}), after which the broker requeues the message"
        )
