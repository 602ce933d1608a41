"""Files of streams after a clean stop, `kill -9`, and an interrupted write."""

import shutil
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Take

STREAM = {"x-queue-type": "stream"}


def connect(process: BrokerProcess) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(process.url))


def declare(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel with confirms, and a stream."""
    channel = connection.channel()
    channel.queue_declare("s", durable=True, arguments=STREAM)
    channel.confirm_delivery()
    return channel


def read_all(process: BrokerProcess, count: int) -> list[tuple[int, bytes]]:
    """Return the offset and body of each of the first messages of the stream of a restarted broker."""
    got: list[tuple[int, bytes]] = []

    def take(_channel: object, _method: object, properties: Any, body: bytes) -> None:
        got.append((properties.headers["x-stream-offset"], body))

    with connect(process) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1_000)
        channel.basic_consume("s", take, arguments={"x-stream-offset": "first"})
        Take(channel).until(lambda: len(got) >= count)
    return got


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_stream_messages_survive_a_restart(tmp_path: Path, how: str) -> None:
    """After the broker is stopped or killed and then restarted, a stream still contains all confirmed messages, both
    persistent and transient. When the stream is deleted, its files are deleted.
    """
    with BrokerProcess(tmp_path) as process:
        channel = declare(connect(process))
        for number in range(20):
            channel.basic_publish("", "s", b"%d" % number, BasicProperties(delivery_mode=1 + number % 2))
        if how == "kill":
            process.kill()
        else:
            process.stop()
        process.start()
        assert read_all(process, 20) == [(number, b"%d" % number) for number in range(20)]
        with connect(process) as connection:
            connection.channel().queue_delete("s")
        assert not list((tmp_path / "data" / "streams").iterdir())


def test_an_interrupted_write_to_a_stream_loses_no_confirmed_message(tmp_path: Path) -> None:
    """If a stream's file ends with an incomplete chunk, the broker still starts, logs how many bytes could not be
    read, and delivers all confirmed messages of the stream.
    """
    with BrokerProcess(tmp_path) as process:
        channel = declare(connect(process))
        for body in (b"a", b"b", b"c"):
            channel.basic_publish("", "s", body)
        process.kill()
        (segment,) = tmp_path.glob("data/streams/*/*.segment")
        with segment.open("ab") as file:
            file.write(segment.read_bytes()[:60])
        process.start()
        assert "the last 60 bytes of stream 's' could not be read" in process.log
        assert [body for _, body in read_all(process, 3)] == [b"a", b"b", b"c"]


def test_files_that_a_deleted_stream_leaves_behind_are_not_used_again(tmp_path: Path) -> None:
    """If the broker is killed after a client has deleted a stream, but before the stream's files are removed, a new
    stream with the same name does not contain the old messages.
    """
    with BrokerProcess(tmp_path) as process:
        with connect(process) as connection:
            channel = declare(connection)
            channel.basic_publish("", "s", b"old")
            (directory,) = tmp_path.glob("data/streams/*")
            shutil.copytree(directory, tmp_path / "kept")
            channel.queue_delete("s")
        process.kill()
        shutil.copytree(tmp_path / "kept", directory)  # as if the broker had been killed before it removed them
        process.start()
        with connect(process) as connection:
            declare(connection).basic_publish("", "s", b"new")
        assert read_all(process, 1) == [(0, b"new")]
