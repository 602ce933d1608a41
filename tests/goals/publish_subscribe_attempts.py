"""Attempts at the goals of publish-subscribe."""

from tests.goals.attempts import Attempts, Plain, Wrong


def bound(plain: Plain, exchange: str, kind: str, *keys: str, **arguments: object) -> str:
    """Bind a new queue to an exchange. Return the name of the queue."""
    channel = plain.channel()
    channel.exchange_declare(exchange, kind)
    queue = channel.queue_declare("", exclusive=False).method.queue
    for key in keys:
        channel.queue_bind(queue, exchange, key, arguments or None)
    return str(queue)


def _too_early(plain: Plain) -> None:
    plain.channel().exchange_declare("logs", "fanout")
    plain.send("", "one", "logs")
    queue = bound(plain, "logs", "fanout", "")
    plain.send("", "two", "logs")
    plain.receive(queue)


def _two(plain: Plain) -> None:
    queues = [bound(plain, "logs", "fanout", "") for _ in range(2)]
    plain.send("", "hi", "logs")
    for queue in queues:
        plain.receive(queue, auto_ack=True)


def _one_queue(plain: Plain) -> None:
    queue = bound(plain, "logs", "fanout", "")
    for body in ("a", "b"):
        plain.send("", body, "logs")
        plain.receive(queue)


ATTEMPTS = {
    "nobody-listens": Attempts(
        "mqtool emit-log fanout one; start mqtool receive-log fanout; mqtool emit-log fanout two",
        _too_early,
        (
            Wrong("A queue was already bound when", "start mqtool receive-log fanout; mqtool emit-log fanout one"),
            Wrong("no queue is bound to 'logs'", "mqtool emit-log fanout one"),
            Wrong("was published to the default exchange", "mqtool send one"),
        ),
    ),
    "two-copies": Attempts(
        "start mqtool receive-log fanout; start mqtool receive-log fanout; mqtool emit-log fanout hi",
        _two,
        (
            Wrong("The receivers share the queue", _one_queue),
            Wrong("reached one receiver", "start mqtool receive-log fanout; mqtool emit-log fanout hi"),
            Wrong("no queue is bound to 'logs'", "mqtool emit-log fanout hi"),
            Wrong("not to 'logs'", "mqtool emit-log direct error hi"),
        ),
    ),
}
