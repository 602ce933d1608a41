"""Offset tracking: the broker stores a reader's offset, so that the next one can continue from there.

python tracking.py send
python tracking.py receive
"""

import asyncio
import os
import sys
from urllib.parse import unquote, urlsplit

import rstream

STREAM, SUBSCRIBER = "stream-offset-tracking-python", "subscriber_1"
TWO_GB, MESSAGES = 2_000_000_000, 100

url = urlsplit(os.environ.get("AMQP_URL", "amqp://localhost"))
broker = {
    "host": url.hostname,
    "port": int(os.environ.get("MQTOOL_STREAM_PORT", "5552")),
    "username": unquote(url.username or "guest"),
    "password": unquote(url.password or "guest"),
    "vhost": unquote(url.path[1:]) or "/",
}


async def send():
    bodies = [f"hello: {number}" for number in range(MESSAGES - 1)] + [f"marker: {MESSAGES - 1}"]
    async with rstream.Producer(**broker) as producer:
        await producer.create_stream(STREAM, exists_ok=True, arguments={"max-length-bytes": TWO_GB})
        print(f"Publishing {MESSAGES} messages")
        for body in bodies:
            await producer.send_wait(STREAM, rstream.AMQPMessage(body=body.encode()))
    print("Messages confirmed: true")


async def receive():
    offsets, done = [], asyncio.Event()

    async def on_message(message, context):
        if not offsets:
            print("First message received")
        offsets.append(context.offset)
        is_marker = "marker" in str(message)
        # Each stored offset is a small message in the stream, so store one only now and then.
        if len(offsets) % 10 == 1 or is_marker:
            await consumer.store_offset(STREAM, SUBSCRIBER, context.offset)
        if is_marker:
            done.set()

    async with rstream.Consumer(**broker) as consumer:
        await consumer.create_stream(STREAM, exists_ok=True, arguments={"max-length-bytes": TWO_GB})
        try:
            start = await consumer.query_offset(STREAM, SUBSCRIBER) + 1
        except rstream.OffsetNotFound:
            start = 0
        place = rstream.ConsumerOffsetSpecification(rstream.OffsetType.OFFSET, start)
        print("Started consuming: Press control +C to close", flush=True)
        await consumer.subscribe(STREAM, on_message, decoder=rstream.amqp_decoder, offset_specification=place)
        await done.wait()
    print(f"Done consuming first_offset: {offsets[0]} last_offset {offsets[-1]} ")


role = {"send": send, "receive": receive}.get(sys.argv[-1])
if role is None:
    sys.exit(__doc__)
try:
    asyncio.run(role())
except KeyboardInterrupt:
    pass
