"""Programs that use aioamqp, which sends the protocol header of AMQP 0-9, can publish with confirms and consume."""

import asyncio
import os
from urllib.parse import unquote, urlsplit

import aioamqp


async def main() -> None:
    url = urlsplit(os.environ["AMQP_URL"])
    transport, protocol = await aioamqp.connect(
        url.hostname, url.port, url.username, url.password, unquote(url.path[1:]) or "/"
    )
    channel = await protocol.channel()
    await channel.confirm_select()
    await channel.queue_declare(queue_name="aioamqp.work", durable=True)
    for number in range(3):
        properties = {"delivery_mode": 2, "headers": {"number": number}}
        await channel.publish(str(number), exchange_name="", routing_key="aioamqp.work", properties=properties)
    got = asyncio.Queue()

    async def take(channel: object, body: bytes, envelope: object, properties: object) -> None:
        await channel.basic_client_ack(delivery_tag=envelope.delivery_tag)
        await got.put((body, properties.headers["number"]))

    await channel.basic_consume(take, queue_name="aioamqp.work")
    assert [await asyncio.wait_for(got.get(), 60) for _ in range(3)] == [(b"0", 0), (b"1", 1), (b"2", 2)]
    await protocol.close()
    transport.close()


asyncio.run(main())
