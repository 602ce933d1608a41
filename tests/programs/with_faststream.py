"""Programs that use FastStream can subscribe to exchanges and quorum queues, and reply to requests. A rejected message
is dead-lettered.
"""

import asyncio
import os

from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas.queue import QueueType

broker = RabbitBroker(os.environ["AMQP_URL"])
events = RabbitExchange("fast.events", type=ExchangeType.TOPIC, durable=True)
dead = RabbitExchange("fast.dead", type=ExchangeType.FANOUT)
orders = RabbitQueue(
    "fast.orders", queue_type=QueueType.QUORUM, durable=True, routing_key="order.*",
    arguments={"x-dead-letter-exchange": "fast.dead"},
)  # fmt: skip
done: asyncio.Queue = asyncio.Queue()


@broker.subscriber(orders, events)
async def handle(item: dict) -> None:
    if item["item"] < 0:
        raise ValueError("no such item")
    await done.put(("placed", item["item"]))


@broker.subscriber(RabbitQueue("fast.buried"), dead)
async def bury(item: dict) -> None:
    await done.put(("buried", item["item"]))


@broker.subscriber("fast.double")
async def double(number: int) -> int:
    return 2 * number


async def main() -> None:
    async with broker:
        await broker.start()
        await broker.publish({"item": 7}, exchange=events, routing_key="order.placed")
        assert await asyncio.wait_for(done.get(), 60) == ("placed", 7)
        await broker.publish({"item": -1}, exchange=events, routing_key="order.placed")
        assert await asyncio.wait_for(done.get(), 60) == ("buried", -1)
        reply = await broker.request(21, "fast.double", timeout=60)
        assert await reply.decode() == 42


asyncio.run(main())
