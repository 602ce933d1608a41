"""Fixtures: an empty virtual host of the embedded broker, without a network or a disk, on a clock that tests set."""

import asyncio
from collections.abc import Iterator

import pytest

from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.broker.embedded.model.virtual_host import VirtualHost
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
    """An event loop that runs only when a test says so."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
