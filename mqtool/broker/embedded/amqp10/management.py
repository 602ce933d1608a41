"""The management node: HTTP requests in AMQP 1.0 messages that declare, delete and list queues, exchanges and bindings.

https://www.rabbitmq.com/docs/amqp#management. Status codes and error texts are those of RabbitMQ 4.3. A missing
permission ends the session, and so does a request that RabbitMQ does not know.
"""

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl
from weakref import WeakSet

from mqtool.broker.embedded.amqp10.errors10 import binary, pair
from mqtool.broker.embedded.model import topology_operations as topology
from mqtool.broker.embedded.model.amqp_errors import NOT_FOUND, PRECONDITION_FAILED, AmqpException
from mqtool.broker.embedded.model.broker import NODE
from mqtool.broker.embedded.model.declarations import check_exchange_type
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerDestination, ExchangeDeclaration
from mqtool.broker.embedded.model.names import name_error
from mqtool.broker.embedded.model.protocol_conversion import map_from_091, quoted, table_to_091, unquoted
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.amqp10_message import VALUE, Amqp10Message, BareProperties, sections, value_section
from mqtool.codecs.amqp10_values import Any10, Array, Map, ULong
from mqtool.codecs.field_tables import Table, UInt32, type_name

_SEGMENT = re.compile(
    r"src=([0-9A-Za-z\-._~%]+);dst([eq])=([0-9A-Za-z\-._~%]+);key=([0-9A-Za-z\-._~%]*);args=([0-9A-Za-z\-_]*)"
)
_KINDS = {"e": "exchange", "q": "queue"}


class ManagementClient(Protocol):
    """The connection that sends requests. It owns the exclusive queues that it declares."""

    vhost: VirtualHost
    rights: Rights
    exclusive_queues: WeakSet[BrokerQueue]


class ManagementRefused(Exception):
    """The request failed; the client gets a status code and an error text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UnknownRequest(Exception):
    """The request does not match any operation."""


class ManagementRequest(NamedTuple):
    """A request. `path` has the address's segments, still percent-encoded; `body` is None if the request has none."""

    client: ManagementClient
    path: list[str]
    query: dict[str, str]
    body: Any10

    @property
    def name(self) -> str:
        """The decoded second segment of the path: the name of a queue or an exchange."""
        return unquoted(self.path[1])

    @property
    def vhost(self) -> VirtualHost:
        return self.client.vhost


ManagementAnswer = tuple[int, Any10]
AnswerInSteps = Generator[None, None, ManagementAnswer]


def handle(client: ManagementClient, payload: bytes) -> Generator[None, None, bytes]:
    """Handle an encoded request in short steps; return the encoded response.

    Raises:
        ValueError: the request is not an AMQP 1.0 message.
        UnknownRequest: the request is unknown to RabbitMQ, which ends the session with amqp:internal-error.
        ChannelException: 403, because a permission is missing. This ends the session as well.
    """
    message = Amqp10Message.decode(payload)
    properties = message.properties
    if properties.reply_to != "$me" or not isinstance(properties.to, str) or not isinstance(properties.subject, str):
        raise _unknown("a request needs a method, a target, and reply-to '$me'")
    body = next((each.value for each in sections(message.body) if each.descriptor == VALUE), None)
    try:
        status, answer = yield from _answer(client, properties.subject, properties.to, body)
    except ManagementRefused as refused:
        status, answer = refused.status, str(refused)
    return Amqp10Message(
        properties=BareProperties(subject=str(status), correlation_id=properties.message_id),
        application_properties={"http:response": "1.1"},
        body=value_section(answer),
    ).encode()


def _unknown(what: str) -> UnknownRequest:
    return UnknownRequest(f"the management node does not know this request: {what}")


def _answer(client: ManagementClient, method: str, target: str, body: Any10) -> AnswerInSteps:
    path, _, query = target.partition("?")
    if (escape := re.search("%(?![0-9A-Fa-f]{2}).{0,2}", target)) is not None:
        text = f"failed to normalize URI '{target}': invalid_percent_encoding {binary(escape[0])}"
        raise ManagementRefused(400, text)
    first, *segments = path.split("/")
    if first or not segments:
        raise _unknown(f"{method} {target}")
    shape = "/".join((segments[0], *("*" for _ in segments[1:2]), *segments[2:]))
    handler = _HANDLERS.get((method, shape))
    if handler is None and (method, segments) == ("PUT", ["auth", "tokens"]) and isinstance(body, bytes):
        return 204, None  # Passwords do not expire, so there is nothing to renew.
    expected = dict if method in ("PUT", "POST") else type(None)
    if handler is None or not isinstance(body, expected):
        raise _unknown(f"{method} {target}")
    try:
        values = dict(parse_qsl(query, keep_blank_values=True, errors="strict"))
        answer = handler(ManagementRequest(client, segments, values, body))
        return answer if isinstance(answer, tuple) else (yield from answer)
    except UnicodeDecodeError as error:
        raise ManagementRefused(400, f"failed to normalize URI '{target}': invalid_utf8") from error


def _get_queue(request: ManagementRequest) -> ManagementAnswer:
    name, rights = request.name, request.client.rights
    if request.vhost.profile.passive_configures:
        rights.check_any("queue", name)
    queue = request.vhost.queues.get(name)
    if queue is None:
        raise ManagementRefused(404, f"queue '{name}' in vhost '{request.vhost.name}' not found")
    return 200, _described(queue)


def _described(queue: BrokerQueue) -> Map:
    return {
        "leader": NODE,
        "message_count": ULong(len(queue)),
        "consumer_count": UInt32(len(queue.consumers)),
        "name": queue.name,
        "vhost": queue.vhost,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "exclusive": queue.owner is not None,
        "type": queue.kind,
        "arguments": map_from_091(queue.arguments),
        "replicas": Array([NODE]),
    }


def _settings(body: Map, kind: str, defaults: dict[str, Any10]) -> dict[str, Any10]:
    """Return the fields of a declaration, with defaults; raise Refused if a field is unknown or has the wrong type."""
    found = dict(defaults)
    for name, value in body.items():
        is_known = type(name) is str and name in defaults
        if is_known and name == "arguments" and isinstance(value, dict):
            found[name] = _arguments(value)
        elif (
            is_known
            and name != "arguments"
            and type(value) is (type(defaults[name]) if defaults[name] is not None else str)
        ):
            found[name] = value
        else:
            raise ManagementRefused(400, f"bad {kind} {pair((name, value))}")
    return found


def _arguments(body: Map) -> Table:
    for item in body.items():
        if not isinstance(item[0], str):
            raise ManagementRefused(400, f"unsupported argument {pair(item)}")
    return table_to_091(body.items())


def _put_queue(request: ManagementRequest) -> ManagementAnswer:
    settings = _settings(
        request.body, "queue property", {"durable": True, "exclusive": False, "auto_delete": False, "arguments": {}}
    )
    name, arguments, client = request.name, settings["arguments"], request.client
    if not name:
        raise ManagementRefused(400, "declare queue with empty name not allowed")
    _check_line_ends(name)
    _check_name("queue name", name)
    _check_reserved("queue", name, request.vhost)
    client.rights.check("configure", "queue", name)
    exists = name in request.vhost.queues
    if not exists:
        _check_leads_to(arguments, "x-dead-letter-exchange")
    client.rights.check_queue_declaration(name, arguments, exists=exists)
    owner = client if settings["exclusive"] else None
    declared = QueueDeclaration(name, arguments, settings["durable"], settings["auto_delete"], owner)
    with _refusals({PRECONDITION_FAILED: 403}):
        if not exists:
            request.vhost.check_queue_limit(name)
    with _refusals({PRECONDITION_FAILED: 409}):
        queue, is_new = topology.declare_queue(request.vhost, declared)
    if is_new and owner is not None:
        client.exclusive_queues.add(queue)
    queue.touch()
    return 201 if is_new else 200, _described(queue)


@contextmanager
def _refusals(statuses: Mapping[int, int]) -> Iterator[None]:
    """Convert an AmqpException to Refused, with 400 for codes that are not in `statuses`."""
    try:
        yield
    except AmqpException as error:
        # RabbitMQ returns 400 for a property that the queue type does not support, and 409 for a wrong argument.
        is_property = error.what.startswith("invalid property")
        raise ManagementRefused(400 if is_property else statuses.get(error.code, 400), error.what) from error


def _check_line_ends(name: str) -> None:
    if "\r" in name or "\n" in name:
        raise ManagementRefused(400, f"Bad name '{name}': line feed and carriage return characters not allowed")


def _check_name(kind: str, name: str) -> None:
    if (wrong := name_error(kind, name)) is not None:
        raise ManagementRefused(400, wrong)


def _check_reserved(kind: str, name: str, vhost: VirtualHost) -> None:
    if name.startswith("amq."):
        raise ManagementRefused(403, f"{kind} '{name}' in vhost '{vhost.name}' starts with reserved prefix 'amq.'")


def _check_not_default(name: str) -> None:
    if not name:
        raise ManagementRefused(403, "operation not permitted on the default exchange")


def _check_leads_to(arguments: Table, name: str) -> None:
    if name in arguments and not isinstance(arguments[name], str):
        raise ManagementRefused(400, f"invalid type '{type_name(arguments[name])}' for arg '{name}'")


def _delete_queue(request: ManagementRequest) -> AnswerInSteps:
    name, vhost, client = request.name, request.vhost, request.client
    _check_line_ends(name)
    client.rights.check("configure", "queue", name)
    queue = vhost.queues.get(name)
    if queue is None:
        return 200, {"message_count": ULong(0)}
    with _refusals({}):
        topology.check_owner(queue, client)
    count = yield from vhost.deletions.steps(queue)
    return 200, {"message_count": ULong(count)}


def _purge_queue(request: ManagementRequest) -> AnswerInSteps:
    name, client = request.name, request.client
    client.rights.check("read", "queue", name)
    with _refusals({NOT_FOUND: 404}):
        queue = topology.queue_of(request.vhost, name, client)
    if queue.kind == "stream":
        raise ManagementRefused(400, f"purge not supported by queue '{name}' in vhost '{queue.vhost}'")
    while queue.work_some():
        yield
        client.rights.check("read", "queue", name)  # an administrator may have withdrawn it meanwhile
    count = queue.purge()
    while queue.work_some():
        yield
    return 200, {"message_count": ULong(count)}


def _put_exchange(request: ManagementRequest) -> ManagementAnswer:
    settings = _settings(
        request.body,
        "exchange property",
        {"durable": True, "auto_delete": False, "type": "direct", "internal": False, "arguments": {}},
    )
    name, vhost, rights = request.name, request.vhost, request.client.rights
    with _refusals({}):
        check_exchange_type(settings["type"], vhost.profile)
    _check_not_default(name)
    rights.check("configure", "exchange", name)
    exists = name in vhost.exchanges
    if not exists:
        _check_line_ends(name)
        _check_name("exchange name", name)
        _check_reserved("exchange", name, vhost)
        _check_leads_to(settings["arguments"], "alternate-exchange")
    rights.check_exchange_declaration(name, settings["arguments"], exists=exists)
    fields = (settings[each] for each in ("type", "durable", "auto_delete", "internal", "arguments"))
    with _refusals({PRECONDITION_FAILED: 409}):
        topology.declare_exchange(vhost, ExchangeDeclaration(name, *fields))
    return 204, None


def _delete_exchange(request: ManagementRequest) -> AnswerInSteps:
    name, vhost = request.name, request.vhost
    _check_line_ends(name)
    _check_not_default(name)
    _check_reserved("exchange", name, vhost)
    request.client.rights.check("configure", "exchange", name)
    if (exchange := vhost.exchanges.get(name)) is not None:
        yield from vhost.deletions.steps(exchange)
    return 204, None


def _check_binding(request: ManagementRequest, kind: str, destination: str, source: str, key: str) -> None:
    for name in (source, destination) if kind == "exchange" else (source,):
        _check_not_default(name)
    for name in (source, destination):
        _check_line_ends(name)
    request.client.rights.check_binding(kind, destination, source, key)


def _destination(request: ManagementRequest, kind: str, name: str) -> BrokerDestination:
    if kind == "exchange":
        return topology.exchange_of(request.vhost, name)
    return topology.queue_of(request.vhost, name, request.client)


def _post_binding(request: ManagementRequest) -> ManagementAnswer:
    names = ("source", "destination_queue", "destination_exchange", "binding_key")
    settings = _settings(request.body, "binding field", {**dict.fromkeys(names), "arguments": None})
    source, to_queue, to_exchange, key = (settings[name] for name in names)
    kind, name = ("exchange", to_exchange) if to_queue is None else ("queue", to_queue)
    if source is None or name is None or key is None or settings["arguments"] is None:
        raise _unknown("a binding needs a source, a destination, a key and arguments")
    _check_name("binding key", key)
    _check_binding(request, kind, name, source, key)
    with _refusals({}):
        exchange, destination = topology.exchange_of(request.vhost, source), _destination(request, kind, name)
        request.vhost.bind(exchange, destination, key, settings["arguments"])
    return 204, None


def _bindings(request: ManagementRequest, kind: str, name: str, source: str, key: str) -> Iterator[BrokerBinding]:
    """Yield the bindings with this source, destination and key."""
    exchange = request.vhost.exchanges.get(source)
    for binding in () if exchange is None else list(exchange.bindings):
        destination = binding.destination
        if (destination.destination_type, destination.name, binding.routing_key) == (kind, name, key):
            yield binding


def _get_bindings(request: ManagementRequest) -> ManagementAnswer:
    query = request.query
    if "src" not in query or "key" not in query:
        raise _unknown("bindings are listed by src, dstq or dste, and key")
    letter = next((each for each in "eq" if f"dst{each}" in query), None)
    if letter is None:
        shown = ",".join(f"{binary(name)} => {binary(value)}" for name, value in sorted(query.items()))
        raise ManagementRefused(400, f"missing 'dste' or 'dstq' in query: #{{{shown}}}")
    kind, name, source, key = _KINDS[letter], query[f"dst{letter}"], query["src"], query["key"]
    if request.vhost.profile.passive_configures:
        _check_binding(request, kind, name, source, key)
    return 200, [_listed(binding) for binding in _bindings(request, kind, name, source, key)]


def _listed(binding: BrokerBinding) -> Map:
    source, kind, name = binding.source.name, binding.destination.destination_type, binding.destination.name
    key = binding.routing_key
    place = f"src={quoted(source)};dst{kind[0]}={quoted(name)};key={quoted(key)};args={_hash(binding)}"
    return {
        "source": source,
        f"destination_{kind}": name,
        "binding_key": key,
        "arguments": map_from_091(binding.arguments),
        "location": f"/bindings/{place}",
    }


def _hash(binding: BrokerBinding) -> str:
    """Return a hash of a binding's arguments, which distinguishes it from similar bindings; "" if it has none."""
    return binding.properties_key.rpartition("~")[2] if binding.arguments else ""


def _delete_binding(request: ManagementRequest) -> ManagementAnswer:
    found = _SEGMENT.fullmatch(request.path[1])
    if found is None:
        raise ManagementRefused(400, f"bad binding path segment '{request.path[1]}'")
    source, letter, name, key, arguments = found.groups()
    source, name, key, kind = unquoted(source), unquoted(name), unquoted(key), _KINDS[letter]
    _check_binding(request, kind, name, source, key)
    for binding in _bindings(request, kind, name, source, key):
        if _hash(binding) == arguments:
            with _refusals({}):
                _destination(request, kind, name)
            request.vhost.unbind(binding.source, binding.destination, key, binding.arguments)
            break
    return 204, None


_HANDLERS: dict[tuple[str, str], Callable[[ManagementRequest], ManagementAnswer | AnswerInSteps]] = {
    ("GET", "queues/*"): _get_queue,
    ("PUT", "queues/*"): _put_queue,
    ("DELETE", "queues/*"): _delete_queue,
    ("DELETE", "queues/*/messages"): _purge_queue,
    ("PUT", "exchanges/*"): _put_exchange,
    ("DELETE", "exchanges/*"): _delete_exchange,
    ("POST", "bindings"): _post_binding,
    ("GET", "bindings"): _get_bindings,
    ("DELETE", "bindings/*"): _delete_binding,
}
