"""Attempts at the goals of rpc."""

import time

from tests.goals.attempts import Attempts, Plain, PlainConsumer, Wrong


def _ask(plain: Plain, count: int, identity: str = "id {}") -> PlainConsumer:
    """Send requests; return the consumer of the replies."""
    channel = plain.channel()
    replies = str(channel.queue_declare("", exclusive=True).method.queue)
    consumer = PlainConsumer(channel, replies, 0, auto_ack=True, arguments={})
    for number in range(count):
        channel.basic_publish(
            "", "rpc_queue", b"%d" % number, _properties(reply_to=replies, correlation_id=identity.format(number))
        )
    channel.connection.process_data_events(0)
    return consumer


def _properties(**properties: object) -> object:
    import pika

    return pika.BasicProperties(**properties)


def _serve(plain: Plain, count: int, *, identity: bool = True) -> None:
    server = plain.consume("rpc_queue")
    for _ in range(count):
        body = server.next()
        request = server.got[-1][2]
        known = {"correlation_id": request.correlation_id} if identity else {}
        plain.send(request.reply_to, f"f({body})", **known)
    server.ack()
    server.close()


def _three(plain: Plain) -> None:
    plain.queue("rpc_queue")
    client = _ask(plain, 3)
    server = plain.consume("rpc_queue", prefetch=1)
    for number in range(3):
        body = server.next()
        request = server.got[number][2]
        plain.send(request.reply_to, f"f({body})", correlation_id=request.correlation_id)
        server.ack()
    client.wait(3)


def _alike(plain: Plain) -> None:
    """All requests have the same correlation ID."""
    plain.queue("rpc_queue")
    client = _ask(plain, 3, "x")
    _serve(plain, 3)
    client.wait(3)


def _nameless(plain: Plain) -> None:
    plain.queue("rpc_queue")
    _ask(plain, 1)
    _serve(plain, 1, identity=False)


def _late(plain: Plain) -> None:
    plain.queue("rpc_queue")
    client = _ask(plain, 1)
    time.sleep(0.5)
    _serve(plain, 1)
    client.wait(1)


ATTEMPTS = {
    "answered": Attempts(
        "start mqtool rpc-server; mqtool rpc-client 6 7 8",
        _three,
        (
            Wrong("does not have the correlation ID", _nameless),
            Wrong(
                "no client has got more than 1 so far",
                "start mqtool rpc-server; mqtool rpc-client 6; mqtool rpc-client 7",
            ),
            Wrong("where the reply should go", "mqtool send -q rpc_queue 6"),
            Wrong("Nobody has answered", lambda plain: (plain.queue("rpc_queue"), _ask(plain, 3))),
            Wrong("the same correlation ID, 'x'", _alike),
        ),
    ),
    "late-server": Attempts(
        "start mqtool rpc-server; kill -INT %1; wait %1; mqtool rpc-client 6 & sleep 4; start mqtool "
        "rpc-server; sleep 2",
        _late,
        (
            Wrong("was answered immediately", "start mqtool rpc-server; mqtool rpc-client 6"),
            Wrong(
                "may have given up",
                "start mqtool rpc-server; kill -INT %1; wait %1; mqtool rpc-client 6 --timeout 1s; "
                "start mqtool rpc-server",
            ),
            Wrong("Now start the server, before", lambda plain: (plain.queue("rpc_queue"), _ask(plain, 1))),
            Wrong("where the reply should go", "mqtool send -q rpc_queue 6"),
        ),
    ),
}
