"""RPC, over AMQP 1.0: a request goes over one link, and its reply over another.

python rpc.py server
python rpc.py client 30
"""

import os
import sys
import threading
import uuid
from urllib.parse import unquote, urlsplit

from rabbitmq_amqp_python_client import Connection, ConnectionParameters, Message, Properties, QueueType

role, *words = sys.argv[1:] or [""]
if role not in ("server", "client"):
    sys.exit(__doc__)

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
place = {"host": url.hostname or "localhost", "port": url.port or 5672, "virtual_host": unquote(url.path[1:]) or "/"}
login = {"user": url.username or "guest", "password": url.password or "guest"}
connection = Connection(ConnectionParameters(**place, **login))
connection.management().queue("rpc_queue").type(QueueType.QUORUM).declare()


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def server():
    publisher = connection.publisher_builder().build()  # a link without an address: each reply has its own

    def on_request(context, message):
        request, asked = message.body_as_string(), message.properties
        print(f" [.] fib({request})")
        reply = str(fib(int(request))) if request.isdecimal() else "not a number"
        if asked.reply_to:
            answer = Properties(to=asked.reply_to, correlation_id=asked.correlation_id or asked.message_id)
            publisher.publish(Message(reply, properties=answer))
        # Only now: if this server dies earlier, another one replies.
        context.accept()

    connection.consumer_builder().queue("rpc_queue").initial_credits(1).message_handler(on_request).build()
    print(" [x] Awaiting RPC requests")
    threading.Event().wait()


def client():
    request, correlation_id = (words or ["30"])[0], str(uuid.uuid4())
    replies, came = connection.management().queue().exclusive().declare().name, threading.Event()

    def on_reply(context, message):
        if message.properties.correlation_id == correlation_id:  # ignore replies to other requests
            print(f" [.] Got {message.body_as_string()}")
            came.set()
        context.accept()

    connection.consumer_builder().queue(replies).message_handler(on_reply).build()
    properties = Properties(reply_to=f"/queues/{replies}", correlation_id=correlation_id)
    print(f" [x] Requesting fib({request})")
    connection.publisher_builder().queue("rpc_queue").build().publish(Message(request, properties=properties))
    if not came.wait(10):
        sys.exit("no reply: is a server running?")


try:
    server() if role == "server" else client()
except KeyboardInterrupt:
    pass
connection.close()
