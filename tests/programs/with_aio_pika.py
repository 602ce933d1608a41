"""Programs that use aio-pika can use confirms, transactions and RPC. A robust connection recovers after the broker has
closed it.
"""

import asyncio
import os

import aio_pika
from aio_pika.patterns import RPC, Master
from close_connection import close_connections


async def double(number: int) -> int:
    return 2 * number


async def rpc(connection: aio_pika.abc.AbstractConnection) -> None:
    async with connection.channel() as channel:
        calls = await RPC.create(channel)
        await calls.register("double", double, auto_delete=True)
        assert await asyncio.gather(*(calls.proxy.double(number=n) for n in range(5))) == [0, 2, 4, 6, 8]


async def master(connection: aio_pika.abc.AbstractConnection) -> None:
    done = asyncio.Queue()

    async def work(item: int) -> None:
        await done.put(item)

    async with connection.channel() as channel:
        boss = Master(channel)
        worker = await boss.create_worker("aio.work", work, durable=True)
        await boss.create_task("aio.work", {"item": 7})
        assert await asyncio.wait_for(done.get(), 60) == 7
        await worker.close()


async def settle(connection: aio_pika.abc.AbstractConnection) -> None:
    async with connection.channel(publisher_confirms=False) as channel:
        queue = await channel.declare_queue("aio.tx", exclusive=True)
        async with channel.transaction():
            await channel.default_exchange.publish(aio_pika.Message(b"both"), queue.name)
            await channel.default_exchange.publish(aio_pika.Message(b"or none"), queue.name)
    async with connection.channel() as channel:
        queue = await channel.get_queue("aio.tx")
        first = await queue.get(timeout=60)
        await first.nack(requeue=True)
        again = await queue.get(timeout=60)
        assert (again.body, again.redelivered) == (b"both", True)
        await again.ack()
        await queue.delete(if_empty=False)
    async with connection.channel(on_return_raises=True) as channel:
        try:
            await channel.default_exchange.publish(aio_pika.Message(b"lost"), "aio.nowhere", mandatory=True)
        except aio_pika.exceptions.DeliveryError as error:
            assert error.message.delivery.reply_text == "NO_ROUTE"
        else:
            raise AssertionError("an unroutable message raised no error")


async def come_back(connection: aio_pika.abc.AbstractRobustConnection) -> None:
    """After the broker closes the connection, the queue, the binding and the consumer are restored without the
    program's help.
    """
    async with connection.channel() as channel:
        exchange = await channel.declare_exchange("aio.events", "topic", auto_delete=True)
        queue = await channel.declare_queue("aio.robust", exclusive=True)
        await queue.bind(exchange, "order.*")
        got = asyncio.Queue()
        await queue.consume(got.put, no_ack=True)
        back = asyncio.Event()
        connection.reconnect_callbacks.add(lambda *_: back.set())
        await asyncio.to_thread(close_connections, "aio-pika")
        await asyncio.wait_for(back.wait(), 60)
        await exchange.publish(aio_pika.Message(b"1"), "order.placed")
        assert (await asyncio.wait_for(got.get(), 60)).body == b"1"


async def main() -> None:
    connection = await aio_pika.connect_robust(
        os.environ["AMQP_URL"], client_properties={"connection_name": "aio-pika"}, reconnect_interval=0.1
    )
    async with connection:
        await rpc(connection)
        await master(connection)
        await settle(connection)
        await come_back(connection)


asyncio.run(main())
