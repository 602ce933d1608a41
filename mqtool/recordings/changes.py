"""What is changed about a recorded message before it is published again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqtool.message import Message


@dataclass(frozen=True)
class Changes:
    """Where messages go, and which headers they lose and get, in this order.

    Attributes:
        exchange, routing_key: None leaves the message's own.
    """

    exchange: str | None = None
    routing_key: str | None = None
    dropped_headers: Sequence[str] = ()
    headers: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, message: Message) -> None:
        """Change a message."""
        if self.exchange is not None:
            message.exchange = self.exchange
        if self.routing_key is not None:
            message.routing_key = self.routing_key
        if self.headers or self.dropped_headers:
            headers = dict(message.properties.get("headers") or {})
            for name in self.dropped_headers:
                headers.pop(name, None)
            message.properties = {**message.properties, "headers": {**headers, **self.headers}}
