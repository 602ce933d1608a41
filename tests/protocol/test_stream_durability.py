"""Messages confirmed over the stream protocol, and publishing ids, survive `kill -9`."""

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.protocol.broker_process import BrokerProcess
from tests.protocol.raw_stream import OPEN, PUBLISH_CONFIRM, QUERY_PUBLISHER, RawStream, string


def connect(process: BrokerProcess) -> RawStream:
    port = urlsplit(process.ready_file.read_text().splitlines()[1]).port
    assert port is not None
    client = RawStream("127.0.0.1", port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == 1
    return client


def test_confirmed_stream_messages_survive_a_kill(tmp_path: Path) -> None:
    """After the broker is killed and restarted, a stream contains all confirmed messages in order. If a named publisher
    then publishes a message with a publishing id that it used before the kill, the stream does not store this message.
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


def _until_the_end(what: Callable[[], None]) -> None:
    try:
        what()
    except (EOFError, OSError):
        return
