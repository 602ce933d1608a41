"""Messages that the stream protocol has confirmed survive `kill -9`, as do the ids of producers and stored offsets."""

import random
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.protocol.broker_process import BrokerProcess
from tests.protocol.raw_stream import (
    CREDIT,
    OPEN,
    PUBLISH_CONFIRM,
    QUERY_OFFSET,
    QUERY_PUBLISHER,
    STORE_OFFSET,
    RawStream,
    at,
    string,
)

_SEGMENT_BYTES, _STREAM_BYTES, _PAGE = 2000, 12_000, 10


def connect(process: BrokerProcess) -> RawStream:
    port = urlsplit(process.stream_url).port
    assert port is not None
    client = RawStream("127.0.0.1", port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == 1
    return client


def test_confirmed_stream_messages_survive_a_kill(tmp_path: Path) -> None:
    """After the broker is killed, a stream has all its confirmed messages in order, and a named producer that continues
    at its last publishing id publishes nothing twice.
    """
    with BrokerProcess(tmp_path, "--data-dir", str(tmp_path / "data"), "--stream-port", "0") as process:
        client = connect(process)
        client.create("s")
        client.declare_publisher(1, "s", "producer")
        confirmed: list[int] = []

        def publish() -> None:
            for first in range(0, 1_000_000, 100):
                client.publish(1, first, *[b"%d" % number for number in range(first, first + 100)])

        def read() -> None:
            while True:
                confirmed.append(struct.unpack_from(">Q", client.expect(PUBLISH_CONFIRM)[-8:])[0])

        threads = [threading.Thread(target=_until_the_end, args=(each,)) for each in (publish, read)]
        for thread in threads:
            thread.start()
        while len(confirmed) < 20:
            time.sleep(0.001)
        process.kill()
        for thread in threads:
            thread.join()
        process.start()

        client = connect(process)
        answer = client.request(QUERY_PUBLISHER, string("producer") + string("s"))
        last = struct.unpack(">Q", answer.rest)[0]
        assert last >= max(confirmed)
        client.declare_publisher(1, "s", "producer")
        client.publish(1, last, b"again", b"new")
        assert client.confirmed(2)
        client.subscribe(1, "s", credit=10_000)
        assert client.entries(last + 2) == [*(b"%d" % number for number in range(last + 1)), b"new"]


class RetainedStream:
    """A stream with retention: its messages have their offsets as bodies, since its only publisher is named.

    Attributes:
        confirmed: how many messages were confirmed.
        kept: an offset that the reader has stored for sure, since a later message of its connection was confirmed.
        first: the first offset that was found in the stream.
    """

    def __init__(self, process: BrokerProcess, **retention: str) -> None:
        self.process = process
        self.confirmed, self.kept, self.first = 0, -1, 0
        client = connect(process)
        assert client.create("s", stream_max_segment_size_bytes=str(_SEGMENT_BYTES), **retention) == 1
        client.close()

    def publish(self) -> None:
        """Continue after the last message, until the connection ends."""
        client = connect(self.process)
        client.declare_publisher(1, "s", "producer")
        number = self._last_id(client) + 1
        while True:
            client.publish(1, number, *[b"%d" % each for each in range(number, number + _PAGE)])
            number += _PAGE
            client.confirmed(_PAGE)
            self.confirmed = number

    def read(self) -> None:
        """Read on after the stored offset, and store the offset after each chunk, until the connection ends."""
        client = connect(self.process)
        assert client.declare_publisher(2, "probes", "") == 1
        client.subscribe(1, "s", at(self.stored(client) + 1), credit=2)
        for number in range(1_000_000):
            chunk = client.chunk()
            last = chunk.first_offset + len(chunk.entries) - 1
            client.send(STORE_OFFSET, string("reader") + string("s") + struct.pack(">Q", last))
            client.publish(2, number, b"stored")
            client.confirmed(1)
            self.kept = max(self.kept, last)
            client.send(CREDIT, struct.pack(">BH", 1, 1))

    def _last_id(self, client: RawStream) -> int:
        answer = client.request(QUERY_PUBLISHER, string("producer") + string("s"))
        (last,) = struct.unpack(">Q", answer.rest)
        return int(last) if self.confirmed or last else -1

    def stored(self, client: RawStream) -> int:
        answer = client.request(QUERY_OFFSET, string("reader") + string("s"))
        return int(struct.unpack(">Q", answer.rest)[0]) if answer.code == 1 else -1

    def check(self) -> int:
        """Check what a kill has left. Return the number of messages in the stream."""
        client = connect(self.process)
        end = self._last_id(client) + 1
        assert end >= self.confirmed, "a confirmed message is lost"
        client.subscribe(1, "s", credit=10_000)
        found: list[bytes] = []
        first = None
        while first is None or first + len(found) < end:
            chunk = client.chunk()
            first = chunk.first_offset if first is None else first
            assert chunk.first_offset == first + len(found)
            found += chunk.entries
        assert found == [b"%d" % offset for offset in range(first, end)]
        assert first >= self.first, "messages that were deleted are there again"
        self.first = first
        stored = self.stored(client)
        assert stored >= self.kept or self.kept < first, f"{stored} is stored, not {self.kept}"
        client.close()
        return len(found)


@pytest.mark.parametrize("retention", [{"max_length_bytes": str(_STREAM_BYTES)}, {"max_age": "1s"}], ids=str)
def test_retention_and_kills_leave_the_newest_messages(tmp_path: Path, retention: dict[str, str]) -> None:
    """After each of ten kills during publishes, a stream with retention has its newest messages without a gap, all
    confirmed ones among them, and its reader's stored offset; the oldest segments are gone for good.
    """
    seed = random.Random(42)
    data = tmp_path / "data"
    with BrokerProcess(tmp_path, "--data-dir", str(data), "--stream-port", "0") as process:
        connect(process).create("probes")
        stream = RetainedStream(process, **retention)
        for number in range(10):
            before, kept = stream.confirmed, stream.kept
            threads = [threading.Thread(target=_until_the_end, args=(each,)) for each in (stream.publish, stream.read)]
            for thread in threads:
                thread.start()
            pages = seed.randrange(1, 40)
            deadline = time.monotonic() + 60
            while stream.confirmed < before + pages * _PAGE or (number % 2 and stream.kept == kept):
                assert time.monotonic() < deadline, (stream.confirmed, stream.kept)
                time.sleep(0.001)
            process.kill()
            for thread in threads:
                thread.join(60)
            process.start()
            stream.check()
        if "max_length_bytes" in retention:
            assert stream.first > 0
            directory = max((data / "streams").iterdir(), key=lambda path: int(path.name))
            # Only whole segments are deleted, after a new one was begun.
            assert sum(path.stat().st_size for path in directory.iterdir()) < _STREAM_BYTES + 3 * _SEGMENT_BYTES
        assert "Traceback" not in process.log


def _until_the_end(what: Callable[[], None]) -> None:
    try:
        what()
    except (EOFError, OSError):
        return
