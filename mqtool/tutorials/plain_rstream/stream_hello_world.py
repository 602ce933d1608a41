"""Hello World, in a stream: a stream keeps messages after they are read.

python hello.py receive
python hello.py send Good morning!
"""

import asyncio
import os
import sys
from urllib.parse import unquote, urlsplit

import rstream

STREAM = "hello-python-stream"
FIVE_GB = 5_000_000_000

role, *words = sys.argv[1:] or [""]
if role not in ("send", "receive"):
    sys.exit(__doc__)

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
broker = {
    "host": url.hostname,
    "port": int(os.environ.get("MQTOOL_STREAM_PORT", "5552")),  # the stream protocol has its own port
    "username": unquote(url.username or "guest"),
    "password": unquote(url.password or "guest"),
    "vhost": unquote(url.path[1:]) or "/",
}


async def send():
    message = " ".join(words) or "Hello, World!"
    async with rstream.Producer(**broker) as producer:
        # Both sides create the stream, so either may start first.
        await producer.create_stream(STREAM, exists_ok=True, arguments={"max-length-bytes": FIVE_GB})
        await producer.send_wait(STREAM, message.encode())  # returns once the broker has confirmed it
    print(f" [x] {message} message sent")


def on_message(message, context):
    print(f"Got message: {message} from stream {context.stream}", flush=True)


async def receive():
    async with rstream.Consumer(**broker) as consumer:
        await consumer.create_stream(STREAM, exists_ok=True, arguments={"max-length-bytes": FIVE_GB})
        first = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST, None)
        print("Press control + C to close", flush=True)
        await consumer.subscribe(STREAM, on_message, offset_specification=first)
        await consumer.run()


try:
    asyncio.run(send() if role == "send" else receive())
except KeyboardInterrupt:
    pass
