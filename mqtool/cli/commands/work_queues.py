"""mqtool new-task, mqtool worker."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

from typer import Argument, Option

from mqtool.amqp import Channel
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli.display import output
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.options import Broker, Commands, Publishing, Receiving, UsedQueueOptions
from mqtool.cli.options.programs import ProgramOptions
from mqtool.cli.pipe.first_use import checked
from mqtool.cli.pipe.programs import work
from mqtool.cli.pipe.publishing import publish
from mqtool.cli.pipe.receiving import announced, busy, writer
from mqtool.cli.pipe.source import Addressing
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.topology import Queue
from mqtool.tutorials import work_queues

app = Commands()

Tasks = Annotated[list[str] | None, Argument(help="Task; each dot is a second of work", show_default="Hello World!")]


@app.command("mqtool new-task 'A task of three seconds...'", "seq 100 | mqtool new-task -l", words=Tasks)
def new_task(queue: UsedQueueOptions, publishing: Publishing) -> None:
    """Send tasks to the workers' queue (tutorial 2)."""
    target = queue.of(publishing.broker.names.task_queue)
    publish(
        publishing,
        lambda channel, tasks: work_queues.new_tasks(
            channel, checked(target, queue, channel, publishing.broker), tasks
        ),
        publishing.broker.lines.sent_task,
        to=target,
        addressing=Addressing(queue.queue and "", queue.queue),
        default=publishing.broker.lines.task,
    )


@app.command("mqtool worker", "mqtool worker --prefetch 0", "mqtool worker --exec './resize {message_id}'", into=None)
def worker(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    programs: ProgramOptions,
    forget_ack: Annotated[
        bool, Option(help="Never acknowledge: the classic mistake, to watch", rich_help_panel="Receiving")
    ] = False,
) -> None:
    """Do tasks, or run a program for each (tutorial 2)."""
    if programs.exec.command is not None:
        work(programs.exec.command, programs, queue, receiving, broker)
        return
    if programs.need_a_program:
        raise UsageError(
            "--shell, --concurrency, --deduplicate and the retry options need --exec", "add --exec COMMAND"
        )
    write = writer(receiving, broker.lines.received)

    def do(task: Delivery) -> None:
        write(task)
        with busy(lambda: 1):
            time.sleep(work_queues.seconds_of_work(task))
        output.status(broker.lines.done)

    settings = receiving.settings(work_queues.FAIR_DISPATCH)
    work_through = _work_and_forget if forget_ack else work_queues.work
    done = redelivered = 0
    with broker.access().channel() as channel:
        target = checked(queue.of(broker.names.task_queue), queue, channel, broker)
        tasks = work_through(channel, target, do, settings)
        with announced(receiving.ready_file, channel, WAITING_FOR_MESSAGES):
            for task in tasks:
                done += 1
                redelivered += task.redelivered
                if forget_ack and done == settings.prefetch:
                    output.warning(
                        f"{done} done and not acknowledged: that is the prefetch limit, so no more will come. "
                        "The broker counts them as unacknowledged; --prefetch 0 would take more of its memory"
                    )
    if forget_ack:
        output.warning(
            f"{done} done, none acknowledged, {redelivered} redelivered: when this worker ends, "
            "the broker redelivers all of them"
        )


def _work_and_forget(
    channel: Channel, queue: Queue, do: Callable[[Delivery], None], receiving: ReceivingSettings
) -> Iterator[Delivery]:
    """The tutorial's worker, without its acknowledgement."""
    tasks = channel.consume(channel.declare(queue), receiving._replace(acknowledge=False))

    def done() -> Iterator[Delivery]:
        for task in tasks:
            do(task)
            yield task

    return done()
