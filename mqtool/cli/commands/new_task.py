"""mqtool new-task."""

from typing import Annotated

import typer

from mqtool.amqp import Channel
from mqtool.cli.access import Access
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.options import Publishing, UsedQueueOptions
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.pipe.existence import checked
from mqtool.cli.pipe.publishing import publishing_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.tutorials import work_queues
from mqtool.tutorials.dialects import NAMES, Dialect

app = typer.Typer()

Tasks = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORD...", help="Task; each dot is a second of work", show_default="Hello World!"),
]


@command(
    app,
    "mqtool new-task 'A task of three seconds...'",
    "seq 100 | mqtool new-task -l",
    effect=Effect.SENDS,
    heading="Tutorials",
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].task_queue), "words": Tasks},
)
def new_task(queue: UsedQueueOptions, publishing: Publishing) -> None:
    """Send tasks to the workers' queue (tutorial 2)."""
    names, lines = dialect_names(publishing.broker), publishing.broker.lines
    target = queue.of(names.queue(queue.queue, names.task_queue))
    addressing = Addressing(queue.queue and "", queue.queue)
    default = lines.task if queue.queue is None else None
    with publishing_channel(publishing, target, addressing, opened=Access.channel_or_session, default=default) as (
        channel,
        outgoing,
    ):
        target = checked(target, queue, channel, publishing.broker, outgoing.access, publishes=True)
        if isinstance(channel, Channel):
            receipts = work_queues.new_tasks(channel, target, outgoing.messages)
        else:
            from mqtool.tutorials import amqp10_work_queues

            receipts = amqp10_work_queues.new_tasks(channel, target, outgoing.messages)
        outgoing.report(receipts, lines.sent_task)
