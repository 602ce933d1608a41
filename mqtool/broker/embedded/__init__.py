"""An embedded AMQP broker for learning, demonstrations and tests. By default, it behaves like RabbitMQ 4.2.

    from mqtool.broker.embedded import EmbeddedBroker

    with EmbeddedBroker() as broker:
        ...  # any AMQP client can connect to broker.url

The broker is a single node, so quorum queues and streams have one replica. To use RabbitMQ instead, change the URL
that your program connects to.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqtool.broker.embedded.in_process import EmbeddedBroker
    from mqtool.broker.embedded.server import serve
    from mqtool.broker.embedded.settings import Settings
    from mqtool.broker.embedded.sockets.listener import Tls
    from mqtool.broker.embedded.testing.replay import replay

__all__ = ["EmbeddedBroker", "Settings", "Tls", "replay", "serve"]

_MODULES = {
    "EmbeddedBroker": "in_process",
    "Settings": "settings",
    "Tls": "sockets.listener",
    "replay": "testing.replay",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that pytest, which loads the plugin in this package, starts quickly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
