"""mqtool send; new-task."""

from typing import Annotated

from mqtool.amqp import Channel
from mqtool.cli.access import Access
from mqtool.cli.command_line import Argument, Option
from mqtool.cli.options import PROTOCOL, Commands, Publishing, UsedQueueOptions, exchange_option
from mqtool.cli.options.queue_options import checked
from mqtool.cli.pipe.publishing import publishing_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.topology import Exchange, Queue
from mqtool.tutorials import hello_world, work_queues

app = Commands()


@app.command(
    "mqtool send 'Hello World!'", "tail -f app.log | mqtool send -l -q app", "mqtool send --json < saved", also=PROTOCOL
)
def send(
    queue: UsedQueueOptions,
    publishing: Publishing,
    exchange: Annotated[str | None, exchange_option("Publish to this exchange, and declare nothing")] = None,
    routing_key: Annotated[
        str | None, Option("-r", help="Routing key (default: the queue's name)", panel="Topology")
    ] = None,
) -> None:
    """Send messages to a queue (tutorial 1)."""
    target: Queue | Exchange = queue.of(publishing.broker.names.hello)
    if exchange is not None or routing_key is not None:
        target = Exchange(exchange or "", durable=True)

    lines = publishing.broker.lines
    addressing = Addressing("" if queue.queue is not None else exchange, queue.queue or routing_key)
    is_declared = isinstance(target, Queue)
    with publishing_channel(
        publishing, target, addressing, opened=Access.channel_or_session, is_declared=is_declared, default=lines.hello
    ) as (channel, outgoing):
        if isinstance(target, Queue):
            target = checked(target, queue, channel, publishing.broker)
            if isinstance(channel, Channel):
                receipts = hello_world.send(channel, target, outgoing.messages)
            else:
                from mqtool.tutorials import amqp10_hello_world

                receipts = amqp10_hello_world.send(channel, target, outgoing.messages)
        else:
            receipts = channel.publish(outgoing.messages, exchange=target, routing_key=routing_key or "")
        outgoing.report(receipts, lines.sent)
        if isinstance(target, Queue):
            outgoing.tell_if_transient(target)


Tasks = Annotated[list[str] | None, Argument(help="Task; each dot is a second of work", show_default="Hello World!")]


@app.command(
    "mqtool new-task 'A task of three seconds...'",
    "seq 100 | mqtool new-task -l",
    also=PROTOCOL,
    instead={"words": Tasks},
)
def new_task(queue: UsedQueueOptions, publishing: Publishing) -> None:
    """Send tasks to the workers' queue (tutorial 2)."""
    target, lines = queue.of(publishing.broker.names.task_queue), publishing.broker.lines
    addressing = Addressing(queue.queue and "", queue.queue)
    with publishing_channel(publishing, target, addressing, opened=Access.channel_or_session, default=lines.task) as (
        channel,
        outgoing,
    ):
        target = checked(target, queue, channel, publishing.broker)
        if isinstance(channel, Channel):
            receipts = work_queues.new_tasks(channel, target, outgoing.messages)
        else:
            from mqtool.tutorials import amqp10_work_queues

            receipts = amqp10_work_queues.new_tasks(channel, target, outgoing.messages)
        outgoing.report(receipts, lines.sent_task)
