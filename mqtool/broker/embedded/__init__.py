"""An embedded AMQP 0-9-1 broker that behaves like RabbitMQ 3.10: for learning, demonstrations and tests.

from mqtool.broker.embedded import EmbeddedBroker

with EmbeddedBroker() as broker:
    ...  # any AMQP client can connect to broker.url

It has no cluster; a quorum queue or a stream behaves like one and has one replica. People who
outgrow it change one URL.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqtool.broker.embedded.in_process import EmbeddedBroker
    from mqtool.broker.embedded.replaying import replay
    from mqtool.broker.embedded.server import Settings, serve
    from mqtool.broker.embedded.sockets.listener import Tls

__all__ = ["EmbeddedBroker", "Settings", "Tls", "replay", "serve"]


def __getattr__(name: str) -> Any:
    """Import the broker when it is first used: pytest comes by here wherever mqtool is installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "replay":
        from mqtool.broker.embedded.replaying import replay

        return replay
    from mqtool.broker.embedded import in_process, server

    return getattr(in_process if name in ("EmbeddedBroker", "Tls") else server, name)
