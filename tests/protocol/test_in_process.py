"""The embedded broker within other people's tests: on their loop, in their process, out of their way."""

import asyncio
import subprocess
import sys
import threading
from urllib.parse import urlsplit

from mqtool.broker.embedded import EmbeddedBroker


def test_on_the_running_loop() -> None:
    """`async with` needs no thread, and leaves nothing behind."""

    async def greeted() -> bytes:
        async with EmbeddedBroker() as broker:
            assert threading.active_count() == threads
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(broker.url).port)
            writer.write(b"AMQP\x00\x00\x09\x01")
            greeting = await reader.readexactly(11)
            writer.close()
        return greeting

    threads = threading.active_count()
    assert asyncio.run(greeted())[7:] == b"\x00\x0a\x00\x0a"  # connection.start


def test_what_an_import_brings() -> None:
    """No client, no command line, no Docker: a stranger's tests start as fast as without them."""
    heavy = ("pika", "typer", "rich", "docker", "requests", "sqlite3", "pytest")
    program = f"import sys, mqtool.broker.embedded; print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
