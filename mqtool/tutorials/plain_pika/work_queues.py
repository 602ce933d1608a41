"""Work queues: tasks shared among workers, each task done by one of them.

python tasks.py worker                      in two terminals
python tasks.py new-task A long task...     each dot is a second of work
"""

import os
import sys
import time

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("new-task", "worker"):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.queue_declare(queue="task_queue", durable=True, arguments={"x-queue-type": "quorum"})


def new_task():
    message = " ".join(words) or "Hello World!"
    # A task must not get lost: a persistent message, in a durable queue.
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish(exchange="", routing_key="task_queue", body=message, properties=persistent)
    print(f" [x] Sent {message}")


def on_task(channel, method, properties, body):
    print(f" [x] Received {body.decode()}")
    time.sleep(body.count(b"."))
    print(" [x] Done")
    # Only now: if we die before, the broker sends the task to another worker.
    channel.basic_ack(delivery_tag=method.delivery_tag)


def worker():
    # Nothing more for a worker that is busy: the next task goes to an idle one.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_task)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


try:
    new_task() if role == "new-task" else worker()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been in the middle of something, and would wait forever
