"""Where messages are published to."""

from dataclasses import replace
from typing import NamedTuple

from mqtool.message import Message


class Route(NamedTuple):
    """How to publish messages, and where to, unless they name an exchange or a routing key themselves."""

    exchange: str = ""
    routing_key: str = ""
    mandatory: bool = False
    persistent: bool = False


def addressed(message: Message, route: Route) -> Message:
    """A message with the route's exchange and routing key, unless it has its own."""
    return replace(
        message,
        exchange=route.exchange if message.exchange is None else message.exchange,
        routing_key=route.routing_key if message.routing_key is None else message.routing_key,
    )
