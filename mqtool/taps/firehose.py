"""RabbitMQ's firehose: copies of all that is published and delivered in a virtual host, on while somebody taps it.

    publish.EXCHANGE, deliver.QUEUE ── routing keys of amq.rabbitmq.trace; what the message was is in the copy's headers

https://www.rabbitmq.com/docs/firehose
"""

from collections.abc import Mapping
from typing import Any

from mqtool.management import Management, path
from mqtool.message import Delivery
from mqtool.topology import Binding

EXCHANGE = "amq.rabbitmq.trace"
_PUBLISHED, _DELIVERED = "publish.", "deliver."


def of_exchange(exchange: str) -> Binding:
    """All that is published to an exchange; "" is the default exchange, and "#" stands for all."""
    return Binding(EXCHANGE, "", _PUBLISHED + exchange)


def of_queue(queue: str) -> Binding:
    """All that is delivered from a queue."""
    return Binding(EXCHANGE, "", _DELIVERED + queue)


def is_on(api: Management, vhost: str) -> bool:
    """Whether it is on. Raises as Management.get does."""
    return bool(api.get(path("vhosts", vhost), columns="tracing").get("tracing"))


def switch(api: Management, vhost: str, *, on: bool) -> None:
    """Switch it on or off; a broker that restarts forgets it.

    Raises:
        AccessRefused: the user is no administrator.
    """
    api.put(path("vhosts", vhost), {"tracing": on})


def original(copy: Delivery) -> Delivery:
    """The message that a copy is of."""
    told, queue = copy.headers, ""
    if copy.routing_key.startswith(_DELIVERED):
        queue = copy.routing_key.removeprefix(_DELIVERED)
    keys = told.get("routing_keys") or [""]
    return Delivery(
        copy.body,
        str(told.get("exchange_name", "")),
        str(keys[0]),
        queue,
        bool(told.get("redelivered")),
        _properties(told.get("properties") or {}),
        copy.delivery_tag,
        copy.epoch,
    )


def _properties(told: Mapping[str, Any]) -> dict[str, Any]:
    properties = dict(told)
    if isinstance(time := properties.get("timestamp"), int):
        properties["timestamp"] = time % (1 << 32)  # which comes as a signed number of 32 bits
    return properties
