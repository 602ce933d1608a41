"""The event exchange, amq.rabbitmq.event in `/`: a message for each queue, connection or user that comes or goes.

RabbitMQ has it with its plugin rabbitmq_event_exchange: https://www.rabbitmq.com/docs/event-exchange
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.erlang_terms import printed_fields
from mqtool.codecs.field_tables import Value, encode_table

if TYPE_CHECKING:
    from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange
    from mqtool.broker.embedded.model.queue import BrokerQueue

#: The virtual host and the name of the exchange.
EVENT_VHOST, EVENT_EXCHANGE = "/", "amq.rabbitmq.event"


#: Publishes an event: its routing key and, as keyword arguments, its headers. A table is sent as Erlang's text.
Announce = Callable[..., None]


def event(key: str, fields: Mapping[str, Value], milliseconds: int) -> BrokerMessage:
    """Return the message for an event at this time, in milliseconds since 1970."""
    named = {**fields, "timestamp_in_ms": milliseconds}
    headers = {name: [*printed_fields(value)] if isinstance(value, dict) else value for name, value in named.items()}
    properties = MessageProperties.of(
        {
            "headers": encode_table(dict(sorted(headers.items()))),
            "delivery_mode": b"\2",
            "timestamp": (milliseconds // 1000).to_bytes(8),
        }
    )
    return BrokerMessage(encode_address(EVENT_EXCHANGE, key), ContentHeader.of(properties, 0), b"")


def of_queue(queue: "BrokerQueue") -> dict[str, Value]:
    return {
        "name": queue.name,
        "vhost": queue.vhost,
        "type": f"rabbit_{queue.kind}_queue",
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "exclusive": queue.owner is not None,
        "arguments": queue.arguments,
    }


def of_exchange(exchange: "BrokerExchange") -> dict[str, Value]:
    return {
        "name": exchange.name,
        "type": exchange.kind,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": exchange.arguments,
        "policy": exchange.policy.policy or "",
    }


def of_binding(binding: "BrokerBinding") -> dict[str, Value]:
    return {
        "source_name": binding.source.name,
        "source_kind": "exchange",
        "destination_name": binding.destination.name,
        "destination_kind": binding.destination.destination_type,
        "routing_key": binding.routing_key,
        "arguments": binding.arguments,
    }
