"""The ports on which a new broker listens."""

import fcntl
import os
import random
import tempfile
from pathlib import Path

import pytest

from mqtool.broker.ports import choose, free_port, keep
from mqtool.broker.state import Started


def test_a_new_broker_never_gets_the_port_of_a_broker_that_is_being_restarted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When a port is chosen at random for a new broker, it is not the port of a broker that is being restarted, even
    though nothing is listening on that port for a moment.
    """
    # Other tests start brokers, too: these must not take the ports meanwhile.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("mqtool.broker.ports.is_free", lambda *_: True)
    reserved, other = 11_000, 11_002
    keep(Started("mine", "embedded", f"amqp://localhost:{reserved}", 0, "", {}))
    monkeypatch.setattr("mqtool.broker.ports._given", set())
    drawn = iter([reserved, other])
    monkeypatch.setattr(random, "randint", lambda *_: next(drawn))
    assert choose(None) == other


def test_a_random_port_is_never_the_management_port_of_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The management API of a broker on port P uses port P + 10000, if that is free, and with TLS also P + 9999.
    mqtool chooses each random port P from a range of fewer than 10,000 ports, so neither of the two can be the random
    port of another broker.
    """
    ranges: list[tuple[int, int]] = []

    def randint(low: int, high: int) -> int:
        ranges.append((low, high))
        return low

    monkeypatch.setattr(random, "randint", randint)
    monkeypatch.setattr("mqtool.broker.ports.is_free", lambda *_: True)
    monkeypatch.setattr("mqtool.broker.ports._given", set())
    free_port()
    [(low, high)] = ranges
    assert high < low + 10_000 - 1


def test_a_port_is_not_reserved_by_the_lock_file_of_another_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """mqtool reserves a port by locking a file. It can still choose a port whose lock file was created and locked by
    another user of the machine; if it could not, that other user could block every port.
    """
    port, user = free_port(), os.getuid() + 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: user)
    with (tmp_path / f"mqtool-{user}-port-{port}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert choose(None, [port]) == port


@pytest.mark.parametrize("is_own", [False, True], ids=["of another user", "of this user"])
def test_a_named_pipe_in_place_of_a_ports_lock_file_neither_delays_nor_reserves_the_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_own: bool
) -> None:
    """If a user of this machine has created a named pipe in place of a port's lock file, mqtool does not wait for a
    writer, and chooses the port, even if the pipe is locked.
    """
    port, user = free_port(), os.getuid() + (not is_own)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: user)
    pipe = tmp_path / f"mqtool-{user}-port-{port}"
    os.mkfifo(pipe)
    lock = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert choose(None, [port]) == port
    finally:
        os.close(lock)
