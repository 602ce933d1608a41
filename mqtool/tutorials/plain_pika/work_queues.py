"""Work queues: tasks are shared among workers, and each task is done by one of them.

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
    # To keep tasks from getting lost: a persistent message in a durable queue.
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish(exchange="", routing_key="task_queue", body=message, properties=persistent)
    print(f" [x] Sent {message}")


def on_task(channel, method, properties, body):
    print(f" [x] Received {body.decode()}")
    time.sleep(body.count(b"."))
    print(" [x] Done")
    # Only now: if this worker dies earlier, the broker sends the task to another one.
    channel.basic_ack(delivery_tag=method.delivery_tag)


def worker():
    # A busy worker gets no more tasks: the next one goes to an idle worker.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_task)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


try:
    new_task() if role == "new-task" else worker()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
