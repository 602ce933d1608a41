"""The routes /api/queues, /api/exchanges and /api/bindings."""

import asyncio
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import quote, quote_plus, unquote_plus

from mqtool.broker.embedded.http.http_server import HttpAnswer, bad_request, boolean, in_slices, required, text
from mqtool.broker.embedded.http.message_routes import channel_details, consumers, field_table, plain
from mqtool.broker.embedded.http.route_table import (
    READ,
    Json,
    Listed,
    Rates,
    RouteCall,
    administrator,
    anyone,
    exchange_name,
    member,
    missing,
    put,
    refused,
    route,
    since,
    visitor,
)
from mqtool.broker.embedded.model.amqp_errors import locked_queue
from mqtool.broker.embedded.model.broker import NODE
from mqtool.broker.embedded.model.declarations import (
    check_equivalent_exchange,
    check_equivalent_queue,
    check_exchange,
    check_exchange_type,
    check_queue,
)
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange, ExchangeDeclaration
from mqtool.broker.embedded.model.names import MAX_NAME, is_too_long
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.stream_queue import StreamQueue
from mqtool.broker.embedded.model.topology_operations import with_default_type
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.amqp_connection import BrokerConnection
from mqtool.broker.embedded.wire.topology_methods import without_line_ends
from mqtool.codecs.field_tables import Table


def _checked_name(kind: str, name: str) -> str:
    """Return a name or a routing key unchanged; raise HttpError 400 if it is too long."""
    if is_too_long(name):
        raise bad_request(f"{kind} is longer than {MAX_NAME} bytes")
    return name


@route(READ, "queues", anyone)
@route(READ, "queues/detailed", since("4.0"))
@route(READ, "queues/VHOST", visitor)
def queues(call: RouteCall, vhost: str | None = None) -> Listed:
    found = [queue for each in call.vhosts(vhost) for queue in each.queues.values()]
    return Listed(found, lambda queue: _wanted_view(call, queue) | _name_of_policy(queue))


@route(READ, "queues/VHOST/QUEUE", visitor)
async def queue(call: RouteCall, vhost: str, name: str) -> Json:
    view = _wanted_view(call, call.queue(vhost, name))
    if without_statistics(call):
        return view
    details = [each for each in await in_slices(consumers(call, vhost)) if each["queue"]["name"] == name]
    return {**view, "consumer_details": details}


def queue_definition(queue: BrokerQueue) -> Json:
    """Return a queue in the format of /api/definitions."""
    return {
        "name": queue.name,
        "vhost": queue.vhost,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "arguments": plain(queue.arguments),
        **({"type": queue.kind} if queue.profile.api >= "4.2" else {}),
    }


def without_statistics(call: RouteCall) -> bool:
    """True if the client wants only what does not change all the time."""
    return call.request.query.get("disable_stats") == "true"


def _wanted_view(call: RouteCall, queue: BrokerQueue) -> Json:
    """Return a queue in the format of /api/queues, unless the query has `disable_stats` or `enable_queue_totals`."""
    if not without_statistics(call):
        return queue_view(queue, call.api.rates)
    if call.request.query.get("enable_queue_totals") == "true":
        return {**_settings(queue), **(_counts(queue) if queue.kind != "stream" else {})}
    return {**_settings(queue), **(_policies(queue) if queue.profile.api >= "4.2" else {})}


def _settings(queue: BrokerQueue) -> Json:
    view: Json = {
        **queue_definition(queue),
        "type": queue.kind,
        "exclusive": queue.owner is not None,
        "state": "running",
        "node": NODE,
    }
    if queue.kind == "quorum" or (queue.kind == "stream" and queue.profile.api >= "4.0"):
        view |= {"leader": NODE, "members": [NODE], "online": [NODE]}
    if queue.profile.api >= "4.2":
        view |= {"internal": False, "internal_owner": False}
        if queue.kind == "quorum":
            view |= _delivery_limit(queue)
    return view


def _policies(queue: BrokerQueue) -> Json:
    return {
        "policy": queue.policy.policy,
        "operator_policy": queue.policy.operator_policy,
        "effective_policy_definition": plain(queue.policy.definition),
    }


def _name_of_policy(queue: BrokerQueue) -> Json:
    """In a list, a queue has it even without statistics, on every version."""
    return {"policy": queue.policy.policy} if queue.policy.policy else {}


def _delivery_limit(queue: BrokerQueue) -> Json:
    limit = queue.options.delivery_limit
    return {"delivery_limit": "unlimited" if limit is None else limit}


def _counts(queue: BrokerQueue) -> Json:
    ready, unacked = len(queue), queue.unacked
    return {
        "messages": ready + unacked + queue.delayed + len(queue.dead_letters),
        **({"messages_delayed": queue.delayed} if queue.kind == "quorum" and queue.profile.delayed_retry else {}),
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
    }


def queue_view(queue: BrokerQueue, rates: Rates) -> Json:
    """Return a queue in the format of /api/queues."""
    consumers = list(queue.consumers)
    view: Json = {
        **_settings(queue),
        **_policies(queue),
        **({"owner_pid_details": {"name": queue.owner.name}} if isinstance(queue.owner, BrokerConnection) else {}),
        "consumers": len(consumers),
        "consumer_capacity": 1.0 if consumers else 0,
        "consumer_utilisation": 1.0 if consumers else 0,
        "single_active_consumer_tag": queue.consumers.active.tag if queue.consumers.active else None,
        **_counts(queue),
        "message_bytes": queue.backlog.body_bytes + queue.delayed_bytes + queue.unacked_bytes + queue.dead_letter_bytes,
        "message_bytes_ready": queue.backlog.body_bytes + queue.delayed_bytes,
        "message_bytes_unacknowledged": queue.unacked_bytes,
        "message_stats": rates.of(queue.traffic),
    }
    if queue.kind == "classic":
        view["exclusive_consumer_tag"] = next((consumer.tag for consumer in consumers if consumer.exclusive), None)
    if queue.kind == "quorum":
        view["messages_dlx"] = len(queue.dead_letters)
        view["message_bytes_dlx"] = queue.dead_letter_bytes
        if queue.profile.api >= "4.0":
            view |= _delivery_limit(queue)
        if queue.profile.delayed_retry:
            retry = queue.options.retry
            view["delayed_retry"] = (
                f"{retry.which} (min: {retry.least}ms, max: {retry.most}ms)" if retry else "disabled"
            )
    if isinstance(queue, StreamQueue):
        unknown = ("consumer_capacity", "consumer_utilisation", "single_active_consumer_tag")
        view = {name: value for name, value in view.items() if not name.startswith(("message_bytes", *unknown))}
        readers = len(consumers) + queue.log.subscriptions
        view |= {"leader": NODE, "members": [NODE], "online": [NODE], "readers": {NODE: readers}}
        view |= {"consumers": readers, "segments": queue.log.segments}
    return view


@route("PUT", "queues/VHOST/QUEUE", member)
def put_queue(call: RouteCall, vhost: str, name: str) -> HttpAnswer:
    found, body = call.vhost(vhost), call.body
    if (node := body.get("node", NODE)) != NODE:
        is_newer = call.broker.profile.api >= "4.2"
        raise bad_request(f"Node {node} {'is not a cluster member' if is_newer else 'could not be contacted'}")
    declared = queue_declaration(without_line_ends(name), body)
    exists = declared.name in found.queues
    call.rights(vhost).check_queue_declaration(declared.name, declared.arguments, exists=exists)
    return put(existed=declare_queue(found, declared))


def queue_declaration(name: str, body: Json) -> QueueDeclaration:
    arguments = field_table(body.get("arguments", {}))
    return QueueDeclaration(
        _checked_name("queue name", name), arguments, boolean(body, "durable"), boolean(body, "auto_delete")
    )


def declare_queue(vhost: VirtualHost, declared: QueueDeclaration) -> bool:
    """Declare a queue. Returns True if it existed.

    Raises:
        HttpError: 401 if the name is reserved.
        AmqpException: the declaration is not valid, or the name is taken by a queue with other settings.
    """
    declared = with_default_type(vhost, declared)
    queue = vhost.queues.get(declared.name)
    if queue is not None:
        if queue.owner is not None:
            raise locked_queue(queue.name, queue.vhost)
        check_equivalent_queue(queue, declared)
        return True
    if declared.name.startswith("amq."):
        raise refused("Access refused.")
    vhost.check_queue_limit(declared.name)
    check_queue(declared, vhost.name, vhost.profile)
    vhost.add_queue(declared)
    return False


async def _to_empty(call: RouteCall, vhost: str, name: str, right: str) -> BrokerQueue:
    """Return a queue whose messages the user may drop. If many are being requeued, put them back first."""
    rights = call.rights(vhost)
    rights.check(right, "queue", name)
    queue = call.shared_queue(vhost, name)
    while queue.work_some():
        await asyncio.sleep(0)
        rights.check(right, "queue", name)  # an administrator may have withdrawn it meanwhile
    return queue


@route("DELETE", "queues/VHOST/QUEUE", member)
async def delete_queue(call: RouteCall, vhost: str, name: str) -> None:
    """Delete a queue. With `if-empty` or `if-unused` in the query, refuse if it has ready messages or consumers."""
    queue, query = await _to_empty(call, vhost, name, "configure"), call.request.query
    for flag in ("if-unused", "if-empty"):
        if query.get(flag) == "true" and queue.kind == "quorum":
            what = f"queue.delete operations with {flag} flag set are not supported by quorum queues"
            raise bad_request(f"cannot delete queue '{name}' in vhost '{vhost}'. {what}")
    if query.get("if-empty") == "true" and len(queue) and queue.kind != "stream":
        raise bad_request(f"queue '{name}' in vhost '{vhost}' not empty")
    if query.get("if-unused") == "true" and len(queue.consumers) and queue.kind != "stream":
        raise bad_request(f"queue '{name}' in vhost '{vhost}' in use")
    await in_slices(call.vhost(vhost).deletions.steps(queue))


@route("DELETE", "queues/VHOST/QUEUE/contents", member)
async def purge(call: RouteCall, vhost: str, name: str) -> None:
    queue = await _to_empty(call, vhost, name, "read")
    queue.purge()
    while queue.work_some():
        await asyncio.sleep(0)


@route("POST", "queues/VHOST/QUEUE/actions", administrator)
def queue_action(call: RouteCall, vhost: str, name: str) -> None:
    """Do nothing: these actions are for mirrored queues, which the embedded broker does not have."""
    call.queue(vhost, name)
    [action] = required(call.body, "action")
    if action not in ("sync", "cancel_sync") or call.broker.profile.api >= "4.0":
        raise bad_request(["unknown", action])


@route(READ, "exchanges", anyone)
@route(READ, "exchanges/VHOST", visitor)
def exchanges(call: RouteCall, vhost: str | None = None) -> Iterator[Json]:
    found = [(each, exchange) for each in call.vhosts(vhost) for exchange in each.exchanges.values()]
    return (exchange_view(each, exchange, call.api.rates) for each, exchange in found)


@route(READ, "exchanges/VHOST/EXCHANGE", visitor)
def exchange(call: RouteCall, vhost: str, name: str) -> Json:
    """Return an exchange, including the channels that have published to it."""
    found = call.exchange(vhost, name)
    incoming = [
        {"channel_details": channel_details(connection, channel), "stats": {"publish": channel.published[found.name]}}
        for connection in call.connections(vhost)
        for channel in connection.channels.values()
        if found.name in channel.published
    ]
    return {**exchange_view(call.vhost(vhost), found, call.api.rates), "incoming": incoming, "outgoing": []}


def exchange_definition(vhost: VirtualHost, exchange: BrokerExchange) -> Json:
    """Return an exchange in the format of /api/definitions."""
    return {
        "name": exchange.name,
        "vhost": vhost.name,
        "type": exchange.kind,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        **({} if vhost.profile.api == "4.3" else {"internal": exchange.internal}),
        "arguments": plain(exchange.arguments),
    }


def exchange_view(vhost: VirtualHost, exchange: BrokerExchange, rates: Rates) -> Json:
    """Return an exchange in the format of /api/exchanges."""
    return {
        **exchange_definition(vhost, exchange),
        "internal": exchange.internal,
        **({"policy": exchange.policy.policy} if exchange.policy.policy else {}),
        "user_who_performed_action": "rmq-internal" if exchange.predeclared else "",
        "message_stats": rates.of(exchange),
        **({"messages_delayed": vhost.held(exchange)} if exchange.delayed else {}),
    }


@route("PUT", "exchanges/VHOST/EXCHANGE", member)
def put_exchange(call: RouteCall, vhost: str, name: str) -> HttpAnswer:
    found, body = call.vhost(vhost), call.body
    declared = exchange_declaration(without_line_ends(exchange_name(name)), body)
    call.rights(vhost).check_exchange_declaration(
        declared.name, declared.arguments, exists=declared.name in found.exchanges
    )
    return put(existed=declare_exchange(found, declared))


def exchange_declaration(name: str, body: Json) -> ExchangeDeclaration:
    durable, auto_delete, internal = (boolean(body, each) for each in ("durable", "auto_delete", "internal"))
    name, kind = _checked_name("exchange name", name), text(body, "type", "direct")
    return ExchangeDeclaration(name, kind, durable, auto_delete, internal, field_table(body.get("arguments", {})))


def declare_exchange(vhost: VirtualHost, declared: ExchangeDeclaration) -> bool:
    """Declare an exchange. Returns True if it existed.

    Raises:
        HttpError: 401 if the name is reserved.
        AmqpException: the declaration is not valid, or the name is taken by an exchange with other settings.
    """
    check_exchange_type(declared.kind, vhost.profile)
    exchange = vhost.exchanges.get(declared.name)
    if exchange is not None:
        check_equivalent_exchange(exchange, declared, vhost.name)
        return True
    if declared.name.startswith("amq."):
        raise refused("Access refused.")
    check_exchange(declared, vhost.name, vhost.profile)
    vhost.add_exchange(BrokerExchange(*declared))
    return False


@route("DELETE", "exchanges/VHOST/EXCHANGE", member)
async def delete_exchange(call: RouteCall, vhost: str, name: str) -> None:
    """Delete an exchange. With `if-unused` in the query, refuse if it is in use."""
    call.rights(vhost).check("configure", "exchange", exchange_name(name))
    exchange = call.exchange(vhost, name)
    if exchange.predeclared:
        raise refused("Access refused.")
    if call.request.query.get("if-unused") == "true" and exchange.in_use:
        raise bad_request(f"exchange '{exchange.name}' in vhost '{vhost}' in use")
    await in_slices(call.vhost(vhost).deletions.steps(exchange))


@route(READ, "bindings", anyone)
@route(READ, "bindings/VHOST", visitor)
def bindings(call: RouteCall, vhost: str | None = None) -> Iterator[Json | None]:
    """Return bindings, including the implicit binding of each queue to the default exchange."""
    return _bindings(call, vhost)


def _bindings(
    call: RouteCall, vhost: str | None, source: str | None = None, kind: str = "", destination: str | None = None
) -> Iterator[Json | None]:
    """Return bindings: all, or only those with this source and destination; `kind` is the destination's type.

    Instead of each other binding, there is None, so that looking for a few of many does not take a single long step.
    """

    def is_wanted(binding: BrokerBinding) -> bool:
        return source in (None, binding.source.name) and (
            destination is None
            or (kind, destination) == (binding.destination.destination_type, binding.destination.name)
        )

    found = [(each, [*each.queues.values()], [*each.exchanges.values()]) for each in call.vhosts(vhost)]

    def each_binding() -> Iterator[tuple[str, BrokerBinding]]:
        for each, queues, exchanges in found:
            default = each.exchanges[""]
            for binding in (BrokerBinding(default, queue, queue.name, {}) for queue in queues):
                yield each.name, binding
            for exchange in exchanges:
                for binding in [*exchange.bindings]:
                    yield each.name, binding

    return (binding_view(name, binding) if is_wanted(binding) else None for name, binding in each_binding())


@route(READ, "queues/VHOST/QUEUE/bindings", visitor)
def bindings_of_queue(call: RouteCall, vhost: str, name: str) -> Iterator[Json | None]:
    return _bindings(call, vhost, None, "queue", name)


@route(READ, "exchanges/VHOST/EXCHANGE/bindings/source", visitor)
def bindings_from_exchange(call: RouteCall, vhost: str, name: str) -> Iterator[Json | None]:
    return _bindings(call, vhost, name)


@route(READ, "exchanges/VHOST/EXCHANGE/bindings/destination", visitor)
def bindings_to_exchange(call: RouteCall, vhost: str, name: str) -> Iterator[Json | None]:
    return _bindings(call, vhost, None, "exchange", name)


def binding_view(vhost: str, binding: BrokerBinding) -> Json:
    """Return a binding in the format of /api/bindings."""
    return {
        "source": binding.source.name,
        "vhost": vhost,
        "destination": binding.destination.name,
        "destination_type": binding.destination.destination_type,
        "routing_key": binding.routing_key,
        "arguments": plain(binding.arguments),
        "properties_key": binding.properties_key,
    }


@route(READ, "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION", visitor)
def bindings_between(call: RouteCall, vhost: str, source: str, kind: str, destination: str) -> Iterator[Json | None]:
    """Return the bindings between an exchange and a queue (`kind` is `q`) or another exchange (`e`)."""
    to = {"q": "queue", "e": "exchange"}.get(kind) or missing()
    return _bindings(call, vhost, exchange_name(source), to, destination)


@route(READ, "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION/KEY", visitor)
async def binding(call: RouteCall, vhost: str, source: str, kind: str, destination: str, key: str) -> Json:
    views, wanted_key = bindings_between(call, vhost, source, kind, destination), _properties_key(key)
    wanted = (view if view is not None and view["properties_key"] == wanted_key else None for view in views)
    found: list[Json] = await in_slices(wanted) or missing()
    return found[0]


def _properties_key(key: str) -> str:
    """Return the properties key that a path names: its routing key can have been encoded once or twice."""
    routing_key, *rest = key.partition("~")
    decoded = unquote_plus(routing_key, errors="surrogateescape")
    return "".join([quote_plus(decoded, safe="", errors="surrogateescape"), *rest])


@route("POST", "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION", member)
def post_binding(call: RouteCall, vhost: str, source: str, kind: str, destination: str) -> HttpAnswer:
    key, arguments = binding_declaration(call.body)
    exchange, end = _ends(call, vhost, source, kind, destination, key)
    call.vhost(vhost).bind(exchange, end, key, arguments)
    made = exchange.find(end, key, arguments)
    assert made is not None
    words = (quote(each, safe="", errors="surrogateescape") for each in (destination, made.properties_key))
    return HttpAnswer(HTTPStatus.CREATED, location="/".join(words))


def binding_declaration(body: Json) -> tuple[str, Table]:
    """Return the routing key and the arguments of the binding that a request body describes."""
    return _checked_name("routing key", text(body, "routing_key")), field_table(body.get("arguments", {}))


@route("DELETE", "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION/KEY", member)
async def delete_binding(call: RouteCall, vhost: str, source: str, kind: str, destination: str, key: str) -> None:
    exchange, end = _ends(call, vhost, source, kind, destination, None)
    candidates = [each for each in exchange.bindings if each.destination is end]
    keys = await in_slices(each.properties_key for each in candidates)
    found = dict(zip(keys, candidates, strict=True)).get(_properties_key(key)) or missing()
    call.rights(vhost).check_topic("read", exchange, found.routing_key)
    call.vhost(vhost).unbind(exchange, end, found.routing_key, found.arguments)


def _ends(
    call: RouteCall, vhost: str, source: str, kind: str, destination: str, key: str | None
) -> tuple[BrokerExchange, BrokerQueue | BrokerExchange]:
    """Return the source and the destination of a binding, after checking that the user may bind or unbind them.

    With a routing key, also checks the topic permissions.
    """
    if kind not in ("q", "e"):
        missing()
    call.vhost(vhost)
    to, name = ("queue", destination) if kind == "q" else ("exchange", exchange_name(destination))
    source = exchange_name(source)
    if not source or not name:
        raise refused("Access refused.")
    call.rights(vhost).check_binding(to, name, source, key)
    found = call.vhost(vhost)
    for what, each in ((to, name), ("exchange", source)):
        if each not in (found.queues if what == "queue" else found.exchanges):
            missing(f"no {what} '{each}' in vhost '{vhost}'")
    return found.exchanges[source], call.shared_queue(vhost, name) if kind == "q" else found.exchanges[name]


def moved(queue: BrokerQueue) -> list[int]:
    """Count a queue's ready, unacknowledged and published messages.

    In a stream, all messages count as ready, even those that cannot be read yet.
    """
    if isinstance(queue, StreamQueue):
        published = queue.log.next_offset - queue.initial_offset
        return [queue.log.next_offset - queue.log.first_offset, queue.unacked, published]
    return [len(queue), queue.unacked, queue.traffic.published]
