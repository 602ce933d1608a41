"""RPC: a request goes through one queue, and its reply through another.

python rpc.py server
python rpc.py client 30
"""

import os
import sys
import uuid

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("server", "client"):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.queue_declare(queue="rpc_queue", durable=True, arguments={"x-queue-type": "quorum"})


def fib(n):
    smaller, larger = 0, 1
    for _ in range(n):
        smaller, larger = larger, smaller + larger
    return smaller


def on_request(channel, method, properties, body):
    print(f" [.] fib({body.decode()})")
    answer = pika.BasicProperties(correlation_id=properties.correlation_id)
    try:
        reply = str(fib(int(body)))
    except ValueError as error:  # reply to a bad request too, and keep the server running
        answer.type, reply = "error", str(error)
    if properties.reply_to:
        channel.basic_publish(exchange="", routing_key=properties.reply_to, body=reply, properties=answer)
    # Only now: if this server dies earlier, another one replies.
    channel.basic_ack(delivery_tag=method.delivery_tag)


def server():
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    print(" [x] Awaiting RPC requests")
    channel.start_consuming()


def client():
    request = words[0] if words else "30"
    reply_queue = channel.queue_declare(queue="", exclusive=True).method.queue
    correlation_id = str(uuid.uuid4())
    properties = pika.BasicProperties(reply_to=reply_queue, correlation_id=correlation_id)
    print(f" [x] Requesting fib({request})")
    channel.basic_publish(exchange="", routing_key="rpc_queue", body=request, properties=properties)
    for _, properties, body in channel.consume(reply_queue, auto_ack=True, inactivity_timeout=10):
        if body is None:
            sys.exit("no reply within ten seconds: is a server running?")
        if properties.correlation_id == correlation_id:  # ignore replies to other requests
            print(f" [.] Got {body.decode()}")
            return


try:
    server() if role == "server" else client()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
