"""Work queues: tasks shared among workers, each task done by one of them.

                             ┌──> worker 1
    new-task ──> [task_queue]┤
                             └──> worker 2

A task is a message that must not get lost, so three things hold together: the queue is durable, the message is
persistent, and a worker acknowledges a task only when it is done. Prefetch 1 hands a busy worker nothing more, so the
next task goes to an idle one; without a limit the broker deals tasks out in turn, however long each takes.

https://www.rabbitmq.com/tutorials/tutorial-two-python
"""

from collections.abc import Callable, Iterable, Iterator

from mqtool.amqp import Channel, Receiving
from mqtool.message import Delivery, Message, Outcome, Receipt
from mqtool.topology import Queue

FAIR_DISPATCH = Receiving(prefetch=1)


def new_tasks(channel: Channel, queue: Queue, tasks: Iterable[Message | None]) -> Iterator[Receipt]:
    """Publish tasks persistently; yield each one's receipt once the broker has answered for it.

    Raises:
        NotConfirmed: the broker did not answer in time.
    """
    queue = channel.declare(queue)
    return channel.publish(tasks, routing_key=queue.name, persistent=True)


def work(
    channel: Channel, queue: Queue, do: Callable[[Delivery], Outcome], receiving: Receiving = FAIR_DISPATCH
) -> Iterator[tuple[Delivery, Outcome]]:
    """Do tasks one at a time; settle each by its outcome, then yield both.

    A worker that dies in `do` has settled nothing: the broker hands the task to another one, marked redelivered.

    Raises:
        Unavailable: the queue has vanished.
    """
    queue = channel.declare(queue)
    tasks = channel.consume(queue, receiving)

    def do_each() -> Iterator[tuple[Delivery, Outcome]]:
        for task in tasks:
            outcome = do(task)
            if receiving.acknowledge:
                channel.settle(task, outcome)
            yield task, outcome

    return do_each()


def seconds_of_work(task: Delivery) -> float:
    """The tutorial's pretend work: a second for each dot in the body."""
    return float(task.body.count(b"."))
