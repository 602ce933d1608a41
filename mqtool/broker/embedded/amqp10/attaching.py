"""Attaching links: checks of attach frames, and the sources and targets that they name."""

import secrets
from typing import Any

from mqtool.broker.embedded.amqp10.addresses import (
    PublishTarget,
    is_version_2,
    parse_source,
    parse_target,
    queue_address,
)
from mqtool.broker.embedded.amqp10.errors10 import (
    INVALID_FIELD,
    LOCKED,
    MISSING,
    UNSUPPORTED,
    LinkError,
    binary,
    condition_of,
    term,
)
from mqtool.broker.embedded.amqp10.filters import parse_filters
from mqtool.broker.embedded.amqp10.incoming_link import IncomingLink, check_internal
from mqtool.broker.embedded.amqp10.outgoing_link import OutgoingLink, ReplyLink
from mqtool.broker.embedded.amqp10.session_state import SessionState
from mqtool.broker.embedded.model.amqp_errors import AmqpException, access_refused
from mqtool.broker.embedded.model.declarations import check_consumer
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.codecs.amqp10_frames import (
    FIRST,
    RECEIVER,
    SECOND,
    SENDER,
    SETTLED,
    UNSETTLED,
    Attach,
    Coordinator,
    DeleteOnClose,
    Released,
    Source,
    Target,
    symbols,
)
from mqtool.codecs.amqp10_values import Any10, Array, Map, Symbol
from mqtool.codecs.field_tables import Int32, Table, UInt32

_LINK_DETACH = Symbol("link-detach")
_VOLATILE, _TEMPORARY = Symbol("rabbitmq:volatile-queue"), Symbol("temporary-queue")
_NODE_PROPERTIES = {Symbol("lifetime-policy"): DeleteOnClose(), Symbol("supported-dist-modes"): Array([Symbol("move")])}
#: The filter expressions that RabbitMQ offers to readers of streams.
_FILTERS = Array([Symbol("AMQP_FILTEX_PROP_V1_0"), Symbol("AMQP_FILTEX_SQL_V1_0")])
_OUTCOMES = Array(Symbol(f"amqp:{name}:list") for name in ("accepted", "rejected", "released", "modified"))


def check_attach(attach: Attach) -> None:
    """Raise LinkError if an attach frame asks for something that RabbitMQ does not support."""
    if isinstance(attach.target, Coordinator):
        raise LinkError(UNSUPPORTED, "Transactions not supported")
    if attach.unsettled or attach.incomplete_unsettled:
        raise LinkError(UNSUPPORTED, "Link recovery not supported")
    if attach.rcv_settle_mode == SECOND and attach.snd_settle_mode != SETTLED:
        raise LinkError(UNSUPPORTED, "rcv-settle-mode second not supported")


def attach_incoming(session: SessionState, attach: Attach) -> tuple[IncomingLink, Attach]:
    """Return a link on which the client publishes, and the answer to its attach frame. Raises LinkError."""
    target = attach.target if isinstance(attach.target, Target) else Target()
    if target.dynamic:
        raise LinkError(UNSUPPORTED, "Dynamic target not supported")
    node = _target(session, target.address)
    _outcomes(attach.source)
    answer = Attach(
        attach.name,
        attach.handle,
        RECEIVER,
        attach.snd_settle_mode,
        FIRST,
        attach.source,
        target,
        max_message_size=session.vhost.profile.largest_message,
    )
    return IncomingLink(session, attach, node), answer


def _target(session: SessionState, address: Any10) -> PublishTarget | None:
    """Parse a target's address, and check that the user may publish to it. Returns None for the anonymous terminus."""
    if address is None:
        return None
    _check_version(address)
    try:
        node = parse_target(address)
    except ValueError as error:
        raise _refused("bad_address_string", binary(address)) from error
    vhost = session.vhost
    if not (node.queue is None or node.queue in vhost.queues or session.connection.broker.reply_consumer(node.queue)):
        raise LinkError(MISSING, f"no queue '{node.queue}' in vhost '{vhost.name}'")
    session.connection.rights.check("write", "exchange", node.exchange)
    exchange = vhost.exchanges.get(node.exchange)
    if exchange is None:
        raise LinkError(MISSING, f"no exchange '{node.exchange}' in vhost '{vhost.name}'")
    check_internal(exchange, vhost.name)
    return node


def _check_version(address: Any10) -> None:
    """Raise LinkError if an address is not a version 2 address."""
    if not isinstance(address, str):
        raise _refused("bad_address", term(address))
    if not is_version_2(address):
        raise _refused("amqp_address_v1_not_permitted", term(address))


def _refused(reason: str, value: str) -> LinkError:
    return LinkError(INVALID_FIELD, f"Attach refused: {{{reason},{value}}}")


def _outcomes(source: Any) -> Array:
    """Return the outcomes that a client asks for. Raises LinkError if the broker does not support one of them."""
    wanted = source.outcomes if isinstance(source, Source) else None
    if wanted is None:
        return _OUTCOMES
    unsupported = [each for each in wanted if each not in _OUTCOMES] if isinstance(wanted, Array) else [wanted]
    if unsupported:
        names = ",".join(map(term, unsupported))
        raise LinkError(UNSUPPORTED, f"Outcomes not supported: [{names}]")
    return Array(wanted)


def attach_outgoing(session: SessionState, attach: Attach) -> tuple[OutgoingLink | ReplyLink, Attach]:
    """Return a link on which the client receives, and the answer to its attach frame. Raises LinkError."""
    source = attach.source
    if not isinstance(source, Source):
        raise LinkError(INVALID_FIELD, "Attach refused: source_required")
    if source.dynamic:
        return _attach_dynamic(session, attach, source)
    outcomes, profile = _outcomes(source), session.vhost.profile
    queue = _queue(session, source.address)
    is_settled = attach.snd_settle_mode == SETTLED
    filters = parse_filters(source.filter, profile)
    arguments = filters.arguments | _arguments(attach.properties or {})
    where = f"queue '{queue.name}' in vhost '{queue.vhost}'"
    try:
        check_consumer(queue, arguments, prefetch=1, no_ack=False)
        if queue.in_exclusive_use():
            raise access_refused(f"{where} in exclusive use")
    except AmqpException as error:
        raise LinkError(*condition_of(error)) from error
    answer = Attach(
        attach.name,
        attach.handle,
        SENDER,
        SETTLED if is_settled else UNSETTLED,
        attach.rcv_settle_mode,
        source._replace(
            distribution_mode=("copy" if queue.kind == "stream" else "move") if profile.detaches_links else None,
            default_outcome=Released(),
            outcomes=outcomes,
            capabilities=None,
            filter=filters.effective,
        ),
        initial_delivery_count=0,
        max_message_size=attach.max_message_size,
        offered_capabilities=_FILTERS if queue.kind == "stream" and profile.filters_messages else None,
    )
    link = OutgoingLink(session, attach, queue, settled=is_settled, arguments=arguments)
    link.filter_with(filters)
    return link, answer


def _attach_dynamic(session: SessionState, attach: Attach, source: Source) -> tuple[OutgoingLink | ReplyLink, Attach]:
    """Return a link for direct replies, or one from a new exclusive queue that is deleted when the link is detached."""
    wanted, is_settled = symbols(source.capabilities), attach.snd_settle_mode == SETTLED
    link: OutgoingLink | ReplyLink
    outcomes: Array | None
    if source.address is not None or not session.vhost.profile.detaches_links:
        raise LinkError(UNSUPPORTED, "Dynamic source not supported")
    if _VOLATILE in wanted and is_settled and source.expiry_policy == _LINK_DETACH and not source.timeout:
        link = ReplyLink(session, attach)
        session.connection.rights.check("read", "queue", link.tag)
        address, outcomes = queue_address(link.tag), None
    elif _TEMPORARY in wanted:
        queue = _temporary_queue(session, attach.name)
        link = OutgoingLink(session, attach, queue, settled=is_settled, arguments={})
        link.dynamic = True
        address, outcomes = queue_address(queue.name), _outcomes(source)
    else:
        raise LinkError(UNSUPPORTED, "Dynamic source not supported")
    actual = Source(
        address,
        None,
        _LINK_DETACH,
        0,
        dynamic=True,
        dynamic_node_properties=_NODE_PROPERTIES,
        distribution_mode="move",
        default_outcome=None if outcomes is None else Released(),
        outcomes=outcomes,
    )
    mode = SETTLED if is_settled else UNSETTLED
    answer = Attach(attach.name, attach.handle, SENDER, mode, attach.rcv_settle_mode, actual)
    limit = attach.max_message_size
    return link, answer._replace(initial_delivery_count=0, max_message_size=limit)


def _temporary_queue(session: SessionState, link: str) -> BrokerQueue:
    """Create an exclusive queue for a link. Its name contains the container id and link name, unless they are long."""
    connection, token = session.connection, secrets.token_urlsafe(16)
    owner = f"{connection.container}-{link}"
    name = f"amq.dyn-{owner}-{token}" if len(owner.encode(errors="surrogateescape")) < 150 else f"amq.dyn.gen-{token}"
    connection.rights.check("configure", "queue", name)
    connection.rights.check("read", "queue", name)
    try:
        session.vhost.check_queue_limit(name)
        queue = session.vhost.add_queue(QueueDeclaration(name, {}, owner=connection))
    except AmqpException as error:
        raise LinkError(*condition_of(error)) from error
    connection.exclusive_queues.add(queue)
    return queue


def _queue(session: SessionState, address: Any10) -> BrokerQueue:
    """Return the queue that a source's address names; check that it exists and that the user may consume from it."""
    if not isinstance(address, str):
        raise _refused("bad_address", "undefined" if address is None else term(address))
    _check_version(address)
    try:
        name = parse_source(address)
    except ValueError as error:
        reason = "bad_address" if address.startswith("/queues/") else "amqp_address_v1_not_permitted"
        raise _refused(reason, term(address)) from error
    queue = session.vhost.queues.get(name)
    if queue is None:
        raise LinkError(MISSING, f"no queue '{name}' in vhost '{session.vhost.name}'")
    session.connection.rights.check("read", "queue", name)
    if queue.owner is not None and queue.owner is not session.connection:
        where = f"queue '{name}' in vhost '{session.vhost.name}'"
        raise LinkError(LOCKED, f"cannot obtain exclusive access to locked {where}")
    return queue


def _arguments(properties: Map) -> Table:
    """Return the consumer arguments in a link's properties."""
    priority = properties.get(Symbol("rabbitmq:priority"))
    timeout = properties.get(Symbol("rabbitmq:consumer-timeout"))
    return {
        **({"x-priority": priority} if isinstance(priority, Int32) else {}),
        **({"x-consumer-timeout": int(timeout)} if isinstance(timeout, UInt32) else {}),
    }
