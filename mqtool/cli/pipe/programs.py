"""Running a program for each message, until stopped."""

from pathlib import Path
from typing import TYPE_CHECKING

from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.options import Broker, Receiving, UsedQueueOptions
from mqtool.cli.options.message_options import DedupOptions, ProgramOptions
from mqtool.cli.pipe.first_use import checked
from mqtool.cli.pipe.receiving import announced, busy
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, SomeFailed, Unavailable, UsageError
from mqtool.inspection.listing import counted
from mqtool.work.hands import ONE_EACH, Hands
from mqtool.work.programs import Program
from mqtool.work.retry import Retrying
from mqtool.work.worker import ProgramWorker

if TYPE_CHECKING:
    from mqtool.work.deduplication import HandledMessages

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
    hands, queue = options.concurrency, named.of(broker.names.task_queue)
    program = Program(
        command, shell=options.exec.shell, timeout=receiving.timeout, concurrency=hands, pass_url=options.exec.pass_url
    )
    handled = opened(options.dedup)
    settings = receiving._replace(timeout=None).settings(ONE_EACH)
    access = broker.access()
    with access.connect() as connection:
        channel = connection.channel(strict=access.strict)
        retrying = Retrying(connection.channel(), options.retries.policy, output.notice)
        worker = ProgramWorker(channel, program, retrying, output.notice, handled)
        if receiving.timeout is not None:
            _warn_of_consumer_timeout(access, queue.name, receiving.timeout)
        with stopping.calling(channel.stop), busy(lambda: worker.in_hand):
            queue = channel.declare(checked(queue, named, channel, broker))
            work_through = Hands(channel, worker.handle, hands, worker.most).start_consuming(queue, settings)
            try:
                with announced(receiving.ready_file, channel, WAITING_FOR_MESSAGES):
                    work_through()
            finally:
                sums = _SUMS | ({"suppressed": "suppressed"} if handled else {})
                output.status(", ".join(f"{worker.counts[what]:,} {said}" for what, said in sums.items()))
    if (dead := worker.counts["dead"]) and stopping.requested() is None:
        raise SomeFailed(f"{counted(dead, 'message')} failed for good", f"see them with 'mqtool dlq show {queue.name}'")


def opened(dedup: DedupOptions) -> "HandledMessages | None":
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
