"""Work queues, over AMQP 1.0: tasks are shared among workers, and each task is done by one of them.

                             ┌──> worker 1   credit 1
    new-task ──> [task_queue]┤
                             └──> worker 2   credit 1

A receiver gets only as many deliveries as it has granted credit for. With a credit of 1, a busy worker gets no further
task; in AMQP 0-9-1, a prefetch of 1 does the same. A worker accepts a task when the task is done, and only then grants
new credit. If it dies before that, the broker delivers the task to another worker. Two more outcomes are possible:
released returns the task to the queue, and rejected drops or dead-letters it.

https://www.rabbitmq.com/tutorials/tutorial-two-go-amqp10
"""

from collections.abc import Callable, Iterable, Iterator

from mqtool.amqp import Receiving
from mqtool.amqp10 import LinkSession, queue_address
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Queue

#: At most one delivery per worker that it has not accepted: the credit.
FAIR_DISPATCH = Receiving(prefetch=1)


def new_tasks(session: LinkSession, queue: Queue, tasks: Iterable[Message | None]) -> Iterator[Receipt]:
    """Send durable tasks; yield each one's receipt once the broker has reported its outcome. None means no task yet."""
    queue = session.declare(queue)
    return session.sender(queue_address(queue.name), persistent=True).send(tasks)


def work(
    session: LinkSession, queue: Queue, do: Callable[[Delivery], None], receiving: Receiving = FAIR_DISPATCH
) -> Iterator[Delivery]:
    """Handle tasks one at a time; yield each once it is done and accepted."""
    queue = session.declare(queue)
    receiver = session.receiver(queue_address(queue.name), receiving)
    return _done(session, receiver.deliveries(), do)


def _done(session: LinkSession, tasks: Iterable[Delivery], do: Callable[[Delivery], None]) -> Iterator[Delivery]:
    for task in tasks:
        do(task)
        # Only now: if the worker dies earlier, the broker redelivers the task to another worker.
        session.acknowledge(task)
        yield task
