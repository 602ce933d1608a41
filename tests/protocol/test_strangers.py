"""Clients without a login cannot fill the embedded broker's log, or use up its connections."""

import socket
import time
from pathlib import Path

from pamqp import commands, frame

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.sockets import listener
from tests.brokers import large
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.raw_client import RawClient, raw_frame

_UNDECODABLE = b"AMQP\x00\x00\x09\x01" + raw_frame(1, 0, b"\x00\x0a\x00\x0b" + b"\xff" * 120_000)


@large
def test_unauthenticated_clients_cannot_fill_the_log(tmp_path: Path) -> None:
    """If unauthenticated clients send frames that cannot be decoded, the broker logs at most one such error per
    second, in a line of fewer than 800 characters. The line says how many similar errors were not logged, if any.
    """
    with BrokerProcess(tmp_path, "--in-memory") as broker:
        port = int(broker.url.rpartition(":")[2].partition("/")[0])
        started = time.monotonic()
        for _ in range(4):
            clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(50)]
            for client in clients:
                client.sendall(_UNDECODABLE)
            for client in clients:
                answer = b""
                while b"cannot decode" not in answer:
                    answer += client.recv(65536)
                client.close()
        while "more like this" not in broker.log:  # the count comes with the first line of a later second
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(_UNDECODABLE)
                answer = b""
                while b"cannot decode" not in answer:
                    answer += client.recv(65536)
            assert time.monotonic() - started < 60, broker.log
        lines = [line for line in broker.log.splitlines() if "cannot decode" in line]
        assert len(lines) <= time.monotonic() - started + 1
        assert max(map(len, lines)) < 800


def test_unauthenticated_connections_are_limited_per_address(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """If there are more unauthenticated connections from one address than the limit allows, the broker closes the
    oldest of them. An authenticated connection stays open.
    """
    monkeypatch.setattr(listener, "stranger_limit", lambda: 10)
    with EmbeddedBroker() as broker, RawClient(broker.url) as friend:
        clients = [socket.create_connection(("127.0.0.1", broker.port), timeout=60) for _ in range(30)]
        assert [client.recv(1) for client in clients[:20]] == [b""] * 20
        clients[-1].sendall(b"AMQP\x00\x00\x09\x01")
        assert clients[-1].recv(1) == b"\x01"
        friend.socket.sendall(frame.marshal(commands.Channel.Flow(active=True), 1))
        friend.expect(commands.Channel.FlowOk)
        for client in clients:
            client.close()
