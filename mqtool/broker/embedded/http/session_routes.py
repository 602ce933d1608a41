"""AMQP 1.0 connections in the management API: their sessions and links, with links listed as consumers."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from mqtool.broker.embedded.http.route_table import READ, AnyConnection, Json, RouteCall, anyone, missing, route
from mqtool.broker.embedded.model.queue import BrokerQueue, consumer_timeout
from mqtool.codecs.amqp10_values import Any10

if TYPE_CHECKING:
    # For type checkers only: most brokers have no AMQP 1.0 clients.
    from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10
    from mqtool.broker.embedded.amqp10.amqp10_session import Amqp10Session

_PROTOCOL = "AMQP 1-0"
#: The names of settle modes.
_MODES: dict[int | None, str] = {0: "unsettled", 1: "settled", 2: "mixed"}


def sessions_of(connection: AnyConnection) -> list["Amqp10Session"]:
    """Return the sessions of an AMQP 1.0 connection; an empty list for other protocols."""
    return list(cast("Connection10", connection).sessions.values()) if connection.protocol == _PROTOCOL else []


def details_of(connection: AnyConnection) -> Json:
    """Return the fields that a connection's view has only for AMQP 1.0. Sessions count as channels."""
    if connection.protocol != _PROTOCOL:
        return {}
    return {"channels": len(sessions_of(connection)), "container_id": cast("Connection10", connection).container}


def link_consumers(connection: AnyConnection) -> list[Callable[[], Json]]:
    """Return functions that return the views of an AMQP 1.0 connection's consumers.

    As in RabbitMQ, their channel details are empty.
    """
    timeout = connection.broker.consumer_timeout
    return [partial(_consumer_view, link, queue, timeout) for link, queue in links_of(connection)]


def links_of(connection: AnyConnection) -> list[tuple[Any, BrokerQueue]]:
    """Return the links that consume from queues, each with its queue. Links for direct replies are left out."""
    outgoing = [link for session in sessions_of(connection) for link in session.outgoing.values()]
    links = [(link, getattr(link, "queue", None)) for link in outgoing]
    return [(link, queue) for link, queue in links if queue is not None and not queue.deleted]


def _consumer_view(link: Any, queue: BrokerQueue, timeout: float) -> Json:
    is_active = queue.consumers.is_active(link)
    return {
        "consumer_tag": link.tag,
        "queue": {"name": queue.name, "vhost": queue.vhost},
        "channel_details": {},
        "ack_required": not link.no_ack,
        "exclusive": link.exclusive,
        "prefetch_count": 0,
        "active": is_active,
        "activity_status": "single_active" if queue.consumers.active is link else "up" if is_active else "waiting",
        "arguments": {name: value for name, value in link.arguments.items() if not isinstance(value, bytes)},
        "consumer_timeout": round((consumer_timeout(queue, link.arguments, timeout) or 0) * 1000),
    }


@route(READ, "connections/CONNECTION/sessions", anyone)
def sessions(call: RouteCall, name: str) -> list[Json]:
    """Return the sessions of an AMQP 1.0 connection with their links."""
    found = [each for each in call.connections() if each.name == name] or missing()
    return [_session_view(each) for each in sessions_of(found[0])]


def _session_view(session: "Amqp10Session") -> Json:
    management = session.management
    return {
        "channel_number": session.number,
        "handle_max": session.handle_max,
        **session.windows,
        "outgoing_unsettled_deliveries": len(session.unsettled),
        "incoming_links": [
            *(_incoming_view(session, handle, "settled", each) for handle, each in management.requests.items()),
            *(
                _incoming_view(session, link.handle, _MODES.get(link.mode, "mixed"), link)
                for link in session.incoming.values()
            ),
        ],
        "outgoing_links": [
            _outgoing_view(handle, each) for handle, each in [*management.responses.items(), *session.outgoing.items()]
        ],
    }


def _incoming_view(session: "Amqp10Session", handle: int, mode: str, link: Any) -> Json:
    return {
        "handle": handle,
        "link_name": link.name,
        "snd_settle_mode": mode,
        "target_address": None if link.target is None else link.target.address,
        "max_message_size": session.vhost.profile.largest_message,
        "delivery_count": link.delivery_count,
        "credit": link.credit,
        "unconfirmed_messages": link.unsettled,
    }


def _outgoing_view(handle: int, link: Any) -> Json:
    return {
        "handle": handle,
        "link_name": link.name,
        "source_address": link.address,
        "queue_name": link.queue_name,
        "send_settled": link.no_ack,
        "max_message_size": link.largest or "unlimited",
        "filter": [
            {"name": name, "descriptor": each.descriptor, "value": _json(each.value)}
            for name, each in link.filters.items()
        ],
        "delivery_count": link.flow.delivery_count,
        "credit": link.flow.credit,
    }


def _json(value: Any10) -> Any:
    """Convert a filter's value to JSON."""
    if isinstance(value, dict):
        return [{"key": str(name), "value": _json(each)} for name, each in value.items()]
    if isinstance(value, list):
        return [_json(each) for each in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, UUID) else value
