"""Fixtures: an empty virtual host of the embedded broker, without a network or a disk, on a clock that tests set."""

import asyncio
from collections.abc import Iterator

import pytest

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_like
from tests.unit.embedded.test_queue import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def vhost(clock: FakeClock, ledger: Ledger) -> VirtualHost:
    return VirtualHost("/", clock, ledger, PROFILES[DEFAULT])


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs only when a test runs it."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def broker(loop: asyncio.AbstractEventLoop) -> Broker:
    """A broker with the queue `q`, for AMQP 1.0 clients without a socket."""
    return broker_like(loop)


@pytest.fixture
def client(loop: asyncio.AbstractEventLoop, broker: Broker) -> MemoryClient10:
    """An AMQP 1.0 client that has begun a session."""
    return MemoryClient10(loop, broker)


@pytest.fixture
def q(broker: Broker) -> BrokerQueue:
    """The classic queue `q`."""
    return broker.vhosts["/"].queues["q"]
