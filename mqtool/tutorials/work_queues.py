"""Work queues: tasks are shared among workers, and each task is done by one of them.

                             ┌──> worker 1
    new-task ──> [task_queue]┤
                             └──> worker 2

Three things together keep a task from getting lost: the queue is durable, the message is persistent, and a worker
acknowledges a task only when it is done. With a prefetch of 1, a busy worker gets no further task, so the
next task goes to an idle worker. Without a limit, the broker sends tasks to the workers in turn, however long each
takes.

https://www.rabbitmq.com/tutorials/tutorial-two-python
"""

from collections.abc import Callable, Iterable, Iterator

from mqtool.amqp import Receiving
from mqtool.channels import AmqpChannel
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Queue

#: At most one unacknowledged delivery per worker.
FAIR_DISPATCH = Receiving(prefetch=1)


def new_tasks(channel: AmqpChannel, queue: Queue, tasks: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish tasks; yield each one's receipt once the broker has confirmed it. None means no task yet."""
    queue = channel.declare(queue)
    return channel.publish(tasks, routing_key=queue.name, persistent=True)


def work(
    channel: AmqpChannel, queue: Queue, do: Callable[[Delivery], None], receiving: Receiving = FAIR_DISPATCH
) -> Iterator[Delivery]:
    """Handle tasks one at a time; yield each once it is done and acknowledged."""
    queue = channel.declare(queue)
    return _done(channel, channel.consume(queue, receiving), do)


def _done(channel: AmqpChannel, tasks: Iterable[Delivery], do: Callable[[Delivery], None]) -> Iterator[Delivery]:
    for task in tasks:
        do(task)
        # Only now: if the worker dies earlier, the broker redelivers the task to another worker.
        channel.acknowledge(task)
        yield task


def seconds_of_work(task: Delivery) -> int:
    """The duration of the tutorial's simulated work: one second for each dot in the body."""
    return task.body.count(b".")
