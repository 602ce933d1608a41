"""The RabbitMQ management HTTP API, where AMQP cannot tell: which queues there are.

https://www.rabbitmq.com/docs/http-api-reference
"""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mqtool.errors import AccessRefused, Unavailable

_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Management:
    """Where the API is, and how to get in. Printing one never shows the password."""

    url: str
    user: str
    password: str
    patience: float = _PATIENCE

    def __repr__(self) -> str:
        return f"Management({self.url!r}, {self.user!r})"

    def get(self, path: str) -> Any:
        """Get and decode one resource.

        Args:
            path: below /api/, its parts quoted.

        Raises:
            Unavailable: nothing answers there, or it is no management API.
            AccessRefused: the user may not use it.
        """
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(f"{self.url}/api/{path}", headers={"Authorization": f"Basic {login}"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self.patience) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise AccessRefused(
                    f"the management API at {self.url} does not let user {self.user!r} in",
                    "it asks for the tag 'management': rabbitmqctl set_user_tags USER management",
                ) from error
            raise Unavailable(f"the management API at {self.url} answers {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"no management API answers at {self.url}: {reason}") from error


@dataclass(frozen=True, slots=True)
class QueueListing:
    """A queue as the API lists it.

    Attributes:
        arguments: what it was declared with, and what policies add. (Counts it tells too, but seconds late.)
    """

    name: str
    arguments: dict[str, Any]


def listens_on(management: Management, port: int) -> bool:
    """Whether the broker behind the API takes AMQP connections on a port. Raises as Management.get does."""
    listeners = management.get("overview").get("listeners") or []
    return any(listener.get("port") == port for listener in listeners)


def queues(management: Management, vhost: str) -> Sequence[QueueListing]:
    """All queues of a vhost. Raises as Management.get does."""
    return [
        QueueListing(
            entry["name"],
            {**(entry.get("effective_policy_definition") or {}), **(entry.get("arguments") or {})},
        )
        for entry in management.get(f"queues/{quote(vhost, safe='')}")
    ]


def bound_to(management: Management, vhost: str, exchange: str) -> set[str]:
    """The queues that are bound to an exchange. Raises as Management.get does."""
    path = f"exchanges/{quote(vhost, safe='')}/{quote(exchange, safe='')}/bindings/source"
    return {entry["destination"] for entry in management.get(path) if entry.get("destination_type") == "queue"}


def consumer_timeout(management: Management, vhost: str, queue: str) -> float | None:
    """Seconds for which a delivery of a queue may be unacknowledged, where the queue or a policy says so; else None.

    What the broker's configuration says, no API tells. Raises as Management.get does.
    https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
    """
    entry = management.get(f"queues/{quote(vhost, safe='')}/{quote(queue, safe='')}")
    policy, arguments = entry.get("effective_policy_definition") or {}, entry.get("arguments") or {}
    milliseconds = arguments.get("x-consumer-timeout", policy.get("consumer-timeout"))
    return None if milliseconds is None else milliseconds / 1000
