"""Programs that use dramatiq can use retries, delays and priorities, and a task that fails too often is
dead-lettered.
"""

import os
import threading
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import CurrentMessage

broker = RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True, max_priority=10)
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)

done = threading.Event()
attempts: list[float] = []
late: list[float] = []
arrived = threading.Event()


@dramatiq.actor(max_retries=3, min_backoff=50, max_backoff=100)
def flaky() -> None:
    attempts.append(time.monotonic())
    if len(attempts) < 3:
        raise RuntimeError("once more")
    done.set()


@dramatiq.actor
def delayed() -> None:
    late.append(time.monotonic())
    arrived.set()


@dramatiq.actor(max_retries=0)
def hopeless() -> None:
    raise RuntimeError("never")


worker = dramatiq.Worker(broker, worker_timeout=100)
worker.start()
started = time.monotonic()
delayed.send_with_options(delay=500)
hopeless.send()
flaky.send()
broker.join("default", timeout=60_000)
assert done.wait(60)
assert arrived.wait(60)
worker.join()
broker.join("default", timeout=60_000)
assert len(attempts) == 3, attempts
assert len(late) == 1, late
assert late[0] - started >= 0.5
worker.stop()
_, _, dead = broker.get_queue_message_counts("default")
assert dead == 1, dead
broker.close()
