"""The embedded broker's stream port: invalid frames, and limits on memory."""

import logging
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.streaming import stream_requests
from tests.brokers import IN_CI
from tests.protocol.conftest import Api
from tests.protocol.raw_stream import (
    DELETE,
    DELETE_PUBLISHER,
    OPEN,
    QUERY_OFFSET,
    STORE_OFFSET,
    UNSUBSCRIBE,
    RawStream,
    string,
    strings,
    table,
)

_OK, _PRECONDITION_FAILED = 1, 17

_u8, _u16 = st.integers(0, 255).map(lambda value: bytes((value,))), st.integers(0, 0xFFFF).map(struct.Struct(">H").pack)
_u32, _u64 = (st.integers(0, (1 << bits) - 1).map(struct.Struct(form).pack) for bits, form in ((32, ">I"), (64, ">Q")))
_names = st.sampled_from(["", "s", "none", "amq.s", "amq.topic", "é", "x" * 300])
_parts = st.one_of(
    _u8,
    _u16,
    _u32,
    _u64,
    _names.map(string),
    st.lists(_names, max_size=3).map(lambda names: strings(*names)),
    st.dictionaries(st.sampled_from(["max-age", "max-length-bytes", "name", "single-active-consumer"]), _names).map(
        table
    ),
    st.sampled_from([b"\xff\xff", b"\0\0\0\0\0\0\0\1", struct.pack(">I", 3) + b"abc"]),
    st.binary(max_size=20),
)
_frames = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 32), st.integers(0, 0xFFFF)),
        st.sampled_from([1, 1, 1, 1, 2, 0, 9]),
        st.lists(_parts, max_size=8).map(b"".join),
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The stream port of a broker in this process, so that its log can be seen."""
    with EmbeddedBroker(stream_port=0) as broker:
        assert broker.stream_port is not None
        yield broker.stream_port


@settings(max_examples=150 if IN_CI else 40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=_frames, is_logged_in=st.booleans())
def test_random_stream_frames_cause_no_internal_error(
    port: int, caplog: pytest.LogCaptureFixture, frames: list[tuple[int, int, bytes]], is_logged_in: bool
) -> None:
    """If a client sends random frames to the stream port, before or after it logs in, the broker logs no error, and
    other clients can still log in.
    """
    caplog.set_level(logging.ERROR)
    client = RawStream("127.0.0.1", port)
    if is_logged_in:
        client.log_in()
        client.request(OPEN, string("/"))
        client.create("s")
        client.declare_publisher(1, "s")
        client.subscribe(1, "s")
    client.socket.sendall(
        b"".join(struct.pack(">IHH", len(body) + 4, key, version) + body for key, version, body in frames)
    )
    client.close()

    other = RawStream("127.0.0.1", port)
    other.log_in()
    other.close()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_stream_publishers_are_blocked_during_a_memory_alarm() -> None:
    """During a memory alarm, a client cannot declare a stream publisher: the broker answers with precondition-failed.
    It confirms one more message of an existing publisher, and then stops reading from the publisher's connection.
    After the alarm, it confirms the later messages, and accepts new publishers again.
    """
    with EmbeddedBroker(stream_port=0, memory_limit=1_000_000) as broker:
        assert broker.stream_port is not None
        client, publisher = (_connect(broker.stream_port) for _ in range(2))
        for number, stream in enumerate(("full", "other")):
            client.create(stream)
            client.declare_publisher(number, stream)
        publisher.declare_publisher(1, "other")
        for number in range(2):
            client.publish(0, number, bytes(600_000))
            client.confirmed(1)
        other = _connect(broker.stream_port)
        while other.declare_publisher(1, "other") != _PRECONDITION_FAILED:
            other.request(DELETE_PUBLISHER, b"\1")
        publisher.publish(1, 0, b"one more is read")
        publisher.confirmed(1)
        publisher.publish(1, 1, b"this waits")

        assert other.request(DELETE, string("full")).code == _OK

        assert publisher.confirmed(1) == [1]
        assert other.declare_publisher(1, "other") == _OK


def test_properties_of_stream_subscriptions_count_towards_memory_use(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """The properties of a stream subscription count towards the broker's memory use until the subscription ends."""
    with EmbeddedBroker(stream_port=0, management_port=0, memory_limit=10_000_000) as broker:
        assert broker.stream_port is not None
        client, api = _connect(broker.stream_port), api_of(broker)
        client.create("s")
        for number in range(3):
            properties = {f"{number}": "x" for number in range(10_000)}
            assert client.subscribe(number, "s", **properties) == _OK
        assert api("GET", "nodes")[1][0]["mem_used"] > 3_000_000
        for number in range(3):
            assert client.request(UNSUBSCRIBE, bytes((number,))).code == _OK
        assert api("GET", "nodes")[1][0]["mem_used"] < 1_000_000
        client.close()


def test_stream_subscriptions_count_towards_memory_use() -> None:
    """Each stream subscription counts towards the broker's memory use until it ends, even if it has no properties. What
    the broker stores about each stream that a client has used also counts, until the stream is deleted or the client
    disconnects.
    """
    with EmbeddedBroker(stream_port=0) as embedded:
        client, other = _client(embedded), _client(embedded)
        broker = _broker(embedded)
        for number in range(100):
            client.create(f"s{number}")
        for number in range(200):
            assert other.subscribe(number, "s0") == _OK
        assert embedded.under_test(lambda _: broker.held_for_clients) > 200 * 1500
        for number in range(200):
            assert other.request(UNSUBSCRIBE, bytes((number,))).code == _OK
        for number in range(100):
            other.subscribe(0, f"s{number}")
            other.request(UNSUBSCRIBE, b"\0")
        assert 100 * 700 < embedded.under_test(lambda _: broker.held_for_clients) < 100 * 1500
        for number in range(50):
            client.request(DELETE, string(f"s{number}"))
        assert embedded.under_test(lambda _: broker.held_for_clients) < 60 * 800
        other.close()
        while embedded.under_test(lambda _: len([*broker.clients()])) > 1:
            pass
        assert embedded.under_test(lambda _: broker.held_for_clients) == 0
        client.close()


def test_names_of_stream_publishers_count_towards_memory_use() -> None:
    """The names of publishers that have published to a stream count towards the broker's memory use until the stream
    is deleted, even if the publishers themselves were deleted earlier.
    """
    with EmbeddedBroker(stream_port=0) as embedded:
        client = _client(embedded)
        broker = _broker(embedded)
        client.create("s")
        before = embedded.under_test(lambda _: broker.ledger.held_bytes)
        for number in range(300):
            assert client.declare_publisher(1, "s", f"{number:0255}") == _OK
            client.publish(1, 1, b"x")
            client.confirmed(1)
            client.request(DELETE_PUBLISHER, b"\1")
        size = embedded.under_test(lambda _: broker.vhosts["/"].queues["s"].log.size)  # type: ignore[attr-defined]
        assert embedded.under_test(lambda _: broker.ledger.held_bytes) > before + size + 300 * 455
        assert client.request(DELETE, string("s")).code == _OK
        assert embedded.under_test(lambda _: broker.ledger.held_bytes) == embedded.under_test(
            lambda _: broker.held_for_clients
        )
        client.close()


def test_the_number_of_consumers_whose_offsets_a_stream_stores_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream stores offsets for a limited number of consumer names. Once the limit is reached, or during a memory
    alarm, it ignores offsets under new names, but still updates the offsets that it has stored. A disk alarm does not
    have this effect.
    """
    monkeypatch.setattr(stream_requests, "_MOST_READERS", 3)
    with EmbeddedBroker(stream_port=0) as embedded:
        client = _client(embedded)
        broker = _broker(embedded)

        def store(name: str, offset: int) -> int | None:
            client.send(STORE_OFFSET, string(name) + string("s") + struct.pack(">Q", offset))
            found = client.request(QUERY_OFFSET, string(name) + string("s"))
            return int.from_bytes(found.rest) if found.code == _OK else None

        client.create("s")
        assert [store(name, 1) for name in "abcd"] == [1, 1, 1, None]
        client.request(DELETE, string("s"))
        client.create("s")
        assert store("a", 2) == 2
        embedded.under_test(lambda _: broker.raise_alarm("memory", "short of memory", "test"))
        assert (store("a", 3), store("b", 3)) == (3, None)
        embedded.under_test(lambda _: broker.clear_alarm("memory"))
        embedded.under_test(lambda _: broker.raise_alarm("disk", "low on disk", "test"))
        assert store("b", 4) == 4
        client.close()


def _connect(port: int) -> RawStream:
    client = RawStream("127.0.0.1", port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == _OK
    return client


def test_stored_offsets_are_not_rewritten_with_each_segment() -> None:
    """When a stream with stored offsets begins a new segment, the broker does not write all offsets again. Even with
    100 tiny segments, a stream with 5,000 stored offsets takes less than three times as much space as these offsets.
    """
    with EmbeddedBroker(stream_port=0) as embedded:
        client = _client(embedded)
        client.create("s", stream_max_segment_size_bytes="1")
        client.declare_publisher(1, "s")
        stored = [
            struct.pack(">IHH", 4 + 2 + 200 + 2 + 1 + 8, STORE_OFFSET, 1) + string(f"{n:0200}") + string("s") + bytes(8)
            for n in range(5000)
        ]
        client.socket.sendall(b"".join(stored))
        for number in range(100):
            client.publish(1, number, b"x")
            client.confirmed(1)
        size = embedded.under_test(lambda _: _broker(embedded).vhosts["/"].queues["s"].log.size)  # type: ignore[attr-defined]
        assert size < 3 * 5000 * 220
        client.close()


def test_stored_offsets_count_towards_memory_use(caplog: pytest.LogCaptureFixture) -> None:
    """With a memory limit of 400 kB, a thousand stored offsets with consumer names of 255 bytes cause a memory alarm.
    The alarm ends when the stream is deleted.
    """
    caplog.set_level(logging.WARNING)
    with EmbeddedBroker(stream_port=0, memory_limit=400_000) as embedded:
        client = _client(embedded)
        broker = _broker(embedded)
        client.create("s")
        for number in range(1000):
            client.send(STORE_OFFSET, string(f"{number:0255}") + string("s") + bytes(8))
        assert client.request(QUERY_OFFSET, string(f"{0:0255}") + string("s")).code == _OK
        assert embedded.under_test(lambda _: "memory" in broker.alarms)
        for number in range(1000):
            client.send(STORE_OFFSET, string(f"{number:0255}") + string("s") + bytes(8))
        assert client.request(DELETE, string("s")).code == _OK
        assert embedded.under_test(lambda _: (broker.alarms, broker.ledger.held_bytes)) == ({}, broker.held_for_clients)
        client.close()


def _client(embedded: EmbeddedBroker) -> RawStream:
    assert embedded.stream_port is not None
    client = RawStream("127.0.0.1", embedded.stream_port)
    client.log_in()
    assert client.request(OPEN, string("/")).code == _OK
    return client


def _broker(embedded: EmbeddedBroker) -> Broker:
    assert embedded._server is not None
    return embedded._server.broker
