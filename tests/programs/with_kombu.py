"""Programs that use kombu can publish with confirms, compression, headers and priorities, and can use pools and a
SimpleQueue.
"""

import os

from kombu import Connection, Consumer, Exchange, Queue
from kombu.pools import producers

exchange = Exchange("kombu.tasks", "topic", durable=True)
queue = Queue("kombu.work", exchange, "task.#", queue_arguments={"x-max-priority": 10})
got = []


def take(body: object, message: object) -> None:
    got.append((body, message.headers.get("number"), message.delivery_info["routing_key"]))
    message.ack()


with Connection(os.environ["AMQP_URL"], transport_options={"confirm_publish": True}) as connection:
    with producers[connection].acquire(block=True) as producer:
        for number in (1, 2**40, -(2**40)):
            producer.publish(
                {"number": number, "text": "ü"}, exchange=exchange, routing_key="task.new", declare=[queue],
                compression="gzip", headers={"number": number, "list": [1, "two", {"three": 3.5}]}, priority=5,
                retry=True,
            )  # fmt: skip
    with Consumer(connection.channel(), [queue], callbacks=[take], accept=["json"], prefetch_count=2):
        while len(got) < 3:
            connection.drain_events(timeout=60)
    assert got == [({"number": n, "text": "ü"}, n, "task.new") for n in (1, 2**40, -(2**40))], got

    simple = connection.SimpleQueue("kombu.simple")
    simple.put("pickled? no: json")
    message = simple.get(timeout=60)
    message.reject(requeue=True)
    message = simple.get(timeout=60)
    assert message.payload == "pickled? no: json"
    assert message.delivery_info["redelivered"]
    message.ack()
    try:
        simple.get(block=False)
    except simple.Empty:
        pass
    else:
        raise AssertionError("a message was in the queue after it had been acknowledged")
    simple.close()
