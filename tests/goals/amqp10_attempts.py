"""Attempts at the goals of amqp10-hello-world and amqp10-work-queues."""

from mqtool.codecs.field_tables import UInt32
from tests.goals.attempts import Attempts, Plain, Wrong
from tests.protocol.raw_amqp10 import ACCEPTED, DETACH, REJECTED, RELEASED, TRANSFER, RawAmqp10, described, message


def _send(plain: Plain, address: str, body: str, *, settled: bool = False) -> None:
    client = plain.amqp10()
    client.attach_sender(address)
    if settled:
        client.publish(0, message(body.encode()), settled=True)
    else:
        client.published(0, message(body.encode()))


class _Receiver:
    """A receiver over AMQP 1.0, with a credit of 1."""

    def __init__(self, plain: Plain, queue: str) -> None:
        self.client: RawAmqp10 = plain.amqp10()
        self.client.attach_receiver(f"/queues/{queue}", credit=1)
        self._count = 0

    def settle(self, outcome: int) -> None:
        """Wait for the next message, settle it, and give credit for another one."""
        number = self.client.expect(TRANSFER).field(1)
        self.client.settle(int(number), described(outcome))
        self._count += 1
        self.client.flow(0, 1, count=self._count, seen=self._count)


def _cross(plain: Plain) -> None:
    _send(plain, f"/queues/{plain.queue('hello')}", "Hello World!")
    plain.receive("hello")


def _same_body(plain: Plain) -> None:
    """Each protocol is used to send and to receive, but no message crosses from one to the other."""
    _send(plain, f"/queues/{plain.queue('hello')}", "Hello World!")
    receiver = _Receiver(plain, "hello")
    receiver.settle(ACCEPTED)
    receiver.client.send(DETACH, UInt32(0), True)  # otherwise it would get the next message, too
    receiver.client.expect(DETACH)
    plain.send("hello", "Hello World!")
    plain.receive("hello")


def _over_1_0_only(plain: Plain) -> None:
    _send(plain, f"/queues/{plain.queue('hello')}", "Hello World!")
    _Receiver(plain, "hello").settle(ACCEPTED)


def _fetch(plain: Plain) -> None:
    _send(plain, f"/queues/{plain.queue('hello')}", "Hello World!")
    plain.channel().basic_get("hello", auto_ack=True)


def _full(plain: Plain) -> None:
    plain.queue("full", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    _send(plain, "/queues/full", "Hello?")


def _share(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    over_1_0, over_0_9_1 = _Receiver(plain, queue), plain.consume(queue, prefetch=1)
    for body in "abcd":
        plain.send(queue, body)
    for _ in range(2):
        over_1_0.settle(ACCEPTED)
        over_0_9_1.next()
        over_0_9_1.ack()


def _do_alone(plain: Plain) -> None:
    queue = plain.queue("task_queue")
    for body in "abcd":
        plain.send(queue, body)
    worker = _Receiver(plain, queue)
    for _ in range(4):
        worker.settle(ACCEPTED)


def _settle(plain: Plain, *outcomes: int) -> None:
    plain.send("jobs", "x")
    receiver = _Receiver(plain, "jobs")
    for each in outcomes:
        receiver.settle(each)


def _go_away(plain: Plain) -> None:
    """The job is redelivered and rejected, but no receiver has released it."""
    plain.send("jobs", "x")
    first = _Receiver(plain, "jobs")
    first.client.expect(TRANSFER)
    first.client.send(DETACH, UInt32(0), True)
    first.client.expect(DETACH)
    _Receiver(plain, "jobs").settle(REJECTED)


def _over_0_9_1(plain: Plain) -> None:
    plain.send("jobs", "x")
    consumer = plain.consume("jobs", prefetch=1)
    consumer.next()
    consumer.channel.basic_nack(consumer.got[0][0], requeue=True)
    consumer.next()
    consumer.channel.basic_nack(consumer.got[1][0], requeue=False)
    consumer.close()


_OVER_1_0 = "--protocol amqp1.0"
_TASKS = r"printf '%s\n' a. b. c. d. | mqtool new-task -l"
#: A receiver that uses RabbitMQ's client: the tutorial's worker, edited with sed.
_RECEIVER = (
    "mqtool send -q jobs x; mqtool tutorial show amqp10-work-queues --plain | sed -e '/declare()/d' -e "
    "s/task_queue/jobs/ -e 's/context.accept()/"
)

HELLO_WORLD = {
    "two-protocols": Attempts(
        f"mqtool send {_OVER_1_0} 'Hello World!'; mqtool receive -c 1",
        _cross,
        (
            Wrong("was sent over AMQP 0-9-1", "mqtool send 'Hello World!'; mqtool receive -c 1"),
            Wrong("was sent and received over AMQP 1.0", _over_1_0_only),
            Wrong("Send it over AMQP 1.0", _same_body),
            Wrong("was fetched (basic.get)", _fetch),
            Wrong("which has no consumer", f"mqtool send {_OVER_1_0} 'Hello World!'"),
            Wrong("went to the queue 'hallo'", f"mqtool send {_OVER_1_0} -q hallo 'Hello World!'"),
        ),
    ),
    "released": Attempts(
        f"mqtool send {_OVER_1_0} -e amq.direct -r helo 'Hello?'",
        lambda plain: _send(plain, "/exchanges/amq.direct/helo", "Hello?"),
        (
            Wrong("was published over AMQP 0-9-1", "mqtool send -e amq.direct -r helo 'Hello?'"),
            Wrong("was sent settled", lambda plain: _send(plain, "/exchanges/amq.direct/helo", "Hello?", settled=True)),
            Wrong("the outcome was 'rejected'", _full),
            Wrong("reached the queue 'helo'", f"mqtool send {_OVER_1_0} -q helo 'Hello?'"),
        ),
    ),
}
WORK_QUEUES = {
    "shared": Attempts(
        f"start mqtool worker {_OVER_1_0}; start mqtool worker; {_TASKS}",
        _share,
        (
            Wrong("Let another worker use AMQP 1.0", f"start mqtool worker; start mqtool worker; {_TASKS}"),
            Wrong("Let another worker use AMQP 0-9-1", _do_alone),
            Wrong("Tasks sent so far: 1 of 4", f"start mqtool worker {_OVER_1_0}; mqtool new-task a"),
            Wrong("which has no consumer", _TASKS),
        ),
    ),
    "outcomes": Attempts(
        f"{_RECEIVER}context.discard() if words else (words.append(body), context.requeue())/' > receiver.py; "
        "python receiver.py worker &",
        lambda plain: _settle(plain, RELEASED, REJECTED),
        (
            Wrong("Now reject it", lambda plain: _settle(plain, RELEASED)),
            Wrong("redelivered and then accepted", lambda plain: _settle(plain, RELEASED, ACCEPTED)),
            Wrong(
                "was rejected, so it is not redelivered",
                f"{_RECEIVER}context.discard()/' > receiver.py; python receiver.py worker &",
            ),
            Wrong("because its receiver ended", _go_away),
            Wrong("receive it over AMQP 1.0", _over_0_9_1),
            Wrong(
                "was accepted, so it is not redelivered",
                f"mqtool send -q jobs x; mqtool receive -q jobs -c 1 {_OVER_1_0}",
            ),
        ),
    ),
}
