"""A consumer that uses amqplib (Node.js) can read what kombu publishes.

kombu writes a header that does not fit into 32 bits with a type that amqplib cannot read. RabbitMQ 4 delivers another
type, RabbitMQ 3 the same.
"""

import os
import subprocess

import requests
from kombu import Connection, Queue

overview = requests.get(f"{os.environ['MANAGEMENT_URL'].rstrip('/')}/api/overview", auth=("guest", "guest"), timeout=60)
version = int(overview.json()["rabbitmq_version"].split(".")[0])
headers = {"small": -1, "text": "ü", "list": [1, "two"], **({"large": 2**40} if version >= 4 else {})}
with Connection(os.environ["AMQP_URL"], transport_options={"confirm_publish": True}) as connection:
    queue = Queue("kombu.to.node", durable=True, queue_arguments={"x-queue-type": "quorum"})
    connection.Producer().publish({"id": 7}, routing_key=queue.name, declare=[queue], headers=headers, retry=True)
subprocess.run(["node", "consume_from_kombu.cjs", str(2**40 if version >= 4 else "")], check=True, timeout=60)
