"""Programs that use py-amqp can use 64-bit integers, confirms and returned messages, and an error closes only the
channel.
"""

import os
from urllib.parse import unquote, urlsplit

import amqp

url = urlsplit(os.environ["AMQP_URL"])
with amqp.Connection(
    f"{url.hostname}:{url.port}", url.username, url.password,
    virtual_host=unquote(url.path[1:]) or "/", confirm_publish=True, heartbeat=10,
) as connection:  # fmt: skip
    channel = connection.channel()
    name = channel.queue_declare(
        exclusive=True, auto_delete=False, arguments={"x-message-ttl": 60_000, "x-expires": 2**31}
    ).queue
    headers = {"big": 2**40, "small": -(2**40), "yes": True, "none": None, "list": [1, "a"], "table": {"a": 1.5}}
    channel.basic_publish(amqp.Message("body", application_headers=headers), routing_key=name)
    message = channel.basic_get(name)
    assert message.headers == headers, message.headers
    channel.basic_reject(message.delivery_tag, requeue=True)
    got = []
    channel.basic_consume(name, callback=got.append)
    while not got:
        connection.drain_events(timeout=60)
    assert got[0].delivery_info["redelivered"]
    channel.basic_ack(got[0].delivery_tag)

    returned = []
    channel.events["basic_return"].add(lambda *error: returned.append(error))
    channel.basic_publish(amqp.Message("lost"), routing_key="py-amqp.nowhere", mandatory=True)
    assert len(returned) == 1

    try:
        channel.queue_declare("py-amqp.nowhere", passive=True)
    except amqp.NotFound:
        pass
    else:
        raise AssertionError("a passive declaration of a missing queue raised no error")
    assert connection.channel().basic_get(name) is None
