"""Streams on the embedded broker beside RabbitMQ's: rstream's bare loops, by turns, the best of three.

    python -m benchmarks.embedded_streams [--rabbitmq rabbitmq-stream://127.0.0.1:5552] [--messages 100000]

What it says is rstream's speed as much as the brokers': a library in Python takes as long as they do.
"""

import argparse
import asyncio
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from rstream import Consumer, ConsumerOffsetSpecification, OffsetType, Producer

from benchmarks.embedded import Process

BODY = b"x" * 100
LOT = 1000
STREAM = "benchmark"


class Throughput(NamedTuple):
    """Messages a second: published and confirmed, and received."""

    published: float
    received: float


async def throughput(port: int, count: int) -> Throughput:
    """Publish to a new stream, and read it."""
    where = {"host": "127.0.0.1", "port": port, "username": "guest", "password": "guest"}
    left = count
    done = asyncio.Event()

    def one_more(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with Producer(**where) as producer:
        await producer.delete_stream(STREAM, missing_ok=True)
        await producer.create_stream(STREAM)
        begun = time.perf_counter()
        for _ in range(count // LOT):
            await producer.send_batch(STREAM, [BODY] * LOT, on_publish_confirm=one_more)
        await done.wait()
        published = count / (time.perf_counter() - begun)
    left = count
    done.clear()
    async with Consumer(**where) as consumer:
        begun = time.perf_counter()
        first = ConsumerOffsetSpecification(OffsetType.FIRST)
        await consumer.subscribe(STREAM, one_more, offset_specification=first, initial_credit=50)
        await done.wait()
        received = count / (time.perf_counter() - begun)
        await consumer.delete_stream(STREAM)
    return Throughput(published, received)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rabbitmq", default="rabbitmq-stream://127.0.0.1:5552")
    parser.add_argument("--messages", type=int, default=100_000)
    options = parser.parse_args()
    count = options.messages // LOT * LOT
    with Process("--data-dir", "{}/data", "--stream-port", "0") as broker:
        ports = [urlsplit(url).port or 5552 for url in (broker.ready.read_text().splitlines()[1], options.rabbitmq)]
        rounds = [[asyncio.run(throughput(port, count)) for port in ports] for _ in range(3)]
    for field in Throughput._fields:
        here, there = (max(getattr(each[side], field) for each in rounds) for side in (0, 1))
        print(f"{field}: embedded {here:,.0f}/s, RabbitMQ {there:,.0f}/s, ratio {here / there:.2f}")


if __name__ == "__main__":
    main()
