"""A pytest fixture for other people's tests: `amqp_broker`, with its `.url`.

    def test_something(amqp_broker):
        connection = pika.BlockingConnection(pika.URLParameters(amqp_broker.url))

The broker is started once for the session (for each worker of pytest-xdist), in memory, on a free port.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mqtool.broker.embedded.in_process import EmbeddedBroker


@pytest.fixture(scope="session")
def amqp_broker() -> "Iterator[EmbeddedBroker]":
    """An embedded AMQP broker; `amqp_broker.url` is where."""
    # Imported here: pytest loads this module in every project that has mqtool installed, whether it uses it or not.
    from mqtool.broker.embedded.in_process import EmbeddedBroker

    with EmbeddedBroker() as broker:
        yield broker
