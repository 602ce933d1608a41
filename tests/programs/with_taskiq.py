"""Programs that use taskiq can run tasks, delay them in wait queues, and retry them if they fail."""

import asyncio
import os
import time

from taskiq import SimpleRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Queue

broker = AioPikaBroker(os.environ["AMQP_URL"], delay_queue=Queue(name="taskiq.delay"))
broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3))
done: asyncio.Queue = asyncio.Queue()
attempts: list[float] = []


@broker.task
async def add(left: int, right: int) -> None:
    await done.put(left + right)


@broker.task(retry_on_error=True, max_retries=3)
async def flaky() -> None:
    attempts.append(time.monotonic())
    if len(attempts) < 3:
        raise RuntimeError("once more")
    await done.put("at last")


async def main() -> None:
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker))
    await add.kiq(1, 2)
    assert await asyncio.wait_for(done.get(), 60) == 3
    started = time.monotonic()
    await add.kicker().with_labels(delay=1).kiq(20, 22)
    assert await asyncio.wait_for(done.get(), 60) == 42
    assert time.monotonic() - started >= 0.99
    await flaky.kiq()
    assert await asyncio.wait_for(done.get(), 60) == "at last"
    receiver.cancel()
    await asyncio.gather(receiver, return_exceptions=True)
    await broker.shutdown()


asyncio.run(main())
