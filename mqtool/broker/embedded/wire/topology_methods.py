"""Handlers for the methods that declare, bind, unbind, purge and delete queues and exchanges."""

from collections.abc import Generator, Iterator

from pamqp.commands import Exchange as ExchangeClass
from pamqp.commands import Queue as QueueClass

from mqtool.broker.embedded.model.amqp_errors import (
    NOT_IMPLEMENTED,
    ConnectionException,
    access_refused,
    precondition_failed,
)
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO
from mqtool.broker.embedded.model.declarations import check_exchange_type
from mqtool.broker.embedded.model.exchange import ExchangeDeclaration
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.topology_operations import declare_exchange, declare_queue
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.embedded.wire.amqp_frames import table


def without_line_ends(name: str) -> str:
    """Remove line breaks from a name, as RabbitMQ does."""
    return name.replace("\r", "").replace("\n", "")


def queue_declare(channel: BrokerChannel, method: QueueClass.Declare) -> None:
    """Create a queue, or check that the existing queue has the declared settings."""
    if _is_reply_queue(channel, method.queue):
        _declared(channel, method, method.queue, 0, 1)
        return
    name = without_line_ends(method.queue)
    if method.passive and channel.vhost.profile.passive_configures:
        channel.session.rights.check_any("queue", name)
    queue = channel.queue(name) if method.passive else _declare_queue(channel, method, name)
    queue.touch()
    channel.last_queue = queue.name
    _declared(channel, method, queue.name, len(queue), len(queue.consumers))


def _declared(channel: BrokerChannel, method: QueueClass.Declare, name: str, messages: int, consumers: int) -> None:
    if not method.nowait:
        channel.send(QueueClass.DeclareOk, queue=name, message_count=messages, consumer_count=consumers)


def _is_reply_queue(channel: BrokerChannel, name: str) -> bool:
    return name == DIRECT_REPLY_TO or channel.session.broker.reply_consumer(name) is not None


def _declare_queue(channel: BrokerChannel, method: QueueClass.Declare, name: str) -> BrokerQueue:
    vhost, arguments = channel.vhost, table(method.arguments)
    if name.startswith("amq."):
        raise access_refused(f"queue name '{name}' contains reserved prefix 'amq.*'")
    server_named = not name
    name = name or vhost.new_queue_name()
    channel.session.rights.check_queue_declaration(name, arguments, exists=name in vhost.queues)
    # Exclusive queues are deleted with their connection, even if they are durable.
    owner = channel.session if method.exclusive else None
    declared = QueueDeclaration(name, arguments, method.durable, method.auto_delete, owner, server_named)
    queue, is_new = declare_queue(vhost, declared)
    if is_new and owner is not None:
        channel.session.exclusive_queues.add(queue)
    return queue


def _queue_binding(channel: BrokerChannel, method: QueueClass.Bind | QueueClass.Unbind) -> tuple[str, str, str]:
    """Return the names of the exchange and the queue, and the routing key. Check that the user may bind them."""
    queue, exchange = channel.queue_name(without_line_ends(method.queue)), without_line_ends(method.exchange)
    # If neither queue nor key is given, the key is the most recently declared queue's name.
    key = method.routing_key if method.queue or method.routing_key else queue
    _not_default(exchange)
    channel.session.rights.check_binding("queue", queue, exchange, key)
    return exchange, queue, key


def queue_bind(channel: BrokerChannel, method: QueueClass.Bind) -> None:
    exchange_name, name, key = _queue_binding(channel, method)
    exchange = channel.exchange(exchange_name)
    queue = channel.queue(name)
    channel.vhost.bind(exchange, queue, key, table(method.arguments))
    if not method.nowait:
        channel.send(QueueClass.BindOk)


def queue_unbind(channel: BrokerChannel, method: QueueClass.Unbind) -> None:
    """Unbind a queue from an exchange, if it is bound."""
    exchange_name, name, key = _queue_binding(channel, method)
    exchange, queue = channel.vhost.exchanges.get(exchange_name), channel.vhost.queues.get(name)
    if exchange is not None and queue is not None:
        channel.check_owner(queue)
        channel.vhost.unbind(exchange, queue, key, table(method.arguments))
    channel.send(QueueClass.UnbindOk)


def _put_back(channel: BrokerChannel, name: str) -> Iterator[None]:
    """Put requeued messages back into a queue, if they are many, before they are dropped."""
    queue = channel.vhost.queues.get(name or channel.last_queue or "")
    while queue is not None and queue.work_some():
        yield


def queue_purge(channel: BrokerChannel, method: QueueClass.Purge) -> Iterator[None]:
    """Drop a queue's ready messages."""
    yield from _put_back(channel, method.queue)
    name = channel.queue_name(method.queue)
    channel.session.rights.check("read", "queue", name)
    queue = channel.queue(name)
    count = queue.purge()
    while queue.work_some():  # the reply means that a broker that is stopped now brings none of them back
        yield
    if not method.nowait:
        channel.send(QueueClass.PurgeOk, message_count=count)


def queue_delete(channel: BrokerChannel, method: QueueClass.Delete) -> Iterator[None]:
    """Delete a queue, if it exists."""
    yield from _put_back(channel, method.queue)
    count = 0
    with channel.deliveries.cancels_last():
        if not _is_reply_queue(channel, method.queue):
            name = channel.queue_name(without_line_ends(method.queue))
            channel.session.rights.check("configure", "queue", name)
            count = yield from _delete_queue(channel, name, if_unused=method.if_unused, if_empty=method.if_empty)
        if not method.nowait:
            channel.send(QueueClass.DeleteOk, message_count=count)


def _delete_queue(channel: BrokerChannel, name: str, *, if_unused: bool, if_empty: bool) -> Generator[None, None, int]:
    queue = channel.vhost.queues.get(name)
    if queue is None:
        return 0
    channel.check_owner(queue)
    if queue.kind == "quorum" and (if_unused or if_empty):
        flag = "if-unused" if if_unused else "if-empty"
        raise ConnectionException(
            NOT_IMPLEMENTED,
            f"cannot delete queue '{name}' in vhost '{queue.vhost}'. queue.delete operations with {flag} flag set are "
            "not supported by quorum queues",
        )
    if queue.kind != "stream":
        if if_empty and len(queue):
            raise precondition_failed(f"queue '{name}' in vhost '{queue.vhost}' not empty")
        if if_unused and len(queue.consumers):
            raise precondition_failed(f"queue '{name}' in vhost '{queue.vhost}' in use")
    return (yield from channel.vhost.deletions.steps(queue))


def _not_default(name: str) -> None:
    if not name:
        raise access_refused("operation not permitted on the default exchange")


def exchange_declare(channel: BrokerChannel, method: ExchangeClass.Declare) -> None:
    """Create an exchange, or check that the existing exchange has the declared settings."""
    name = without_line_ends(method.exchange)
    if method.passive:
        _not_default(name)
        if channel.vhost.profile.passive_configures:
            channel.session.rights.check_any("exchange", name)
        channel.exchange(name)
    else:
        _declare_exchange(channel, method, name)
    if not method.nowait:
        channel.send(ExchangeClass.DeclareOk)


def _declare_exchange(channel: BrokerChannel, method: ExchangeClass.Declare, name: str) -> None:
    vhost, kind, arguments = channel.vhost, method.exchange_type, table(method.arguments)
    check_exchange_type(kind, vhost.profile)
    _not_default(name)
    exists = name in vhost.exchanges
    channel.session.rights.check_exchange_declaration(name, arguments, exists=exists)
    if not exists and name.startswith("amq."):
        raise access_refused(f"exchange name '{name}' contains reserved prefix 'amq.*'")
    declare_exchange(
        vhost, ExchangeDeclaration(name, kind, method.durable, method.auto_delete, method.internal, arguments)
    )


def exchange_delete(channel: BrokerChannel, method: ExchangeClass.Delete) -> Iterator[None]:
    """Delete an exchange, if it exists."""
    name = without_line_ends(method.exchange)
    _not_default(name)
    channel.session.rights.check("configure", "exchange", name)
    exchange = channel.vhost.exchanges.get(name)
    if exchange is not None:
        if exchange.predeclared:
            raise access_refused(f"deletion of system exchange '{name}' in vhost '{channel.vhost.name}' not allowed")
        if method.if_unused and exchange.in_use:
            raise precondition_failed(f"exchange '{name}' in vhost '{channel.vhost.name}' in use")
        yield from channel.vhost.deletions.steps(exchange)
    if not method.nowait:
        channel.send(ExchangeClass.DeleteOk)


def _check_exchange_binding(channel: BrokerChannel, destination: str, source: str, key: str) -> None:
    _not_default(destination)
    _not_default(source)
    channel.session.rights.check_binding("exchange", destination, source, key)


def exchange_bind(channel: BrokerChannel, method: ExchangeClass.Bind) -> None:
    destination_name, source_name = without_line_ends(method.destination), without_line_ends(method.source)
    _check_exchange_binding(channel, destination_name, source_name, method.routing_key)
    source, destination = channel.exchange(source_name), channel.exchange(destination_name)
    channel.vhost.bind(source, destination, method.routing_key, table(method.arguments))
    if not method.nowait:
        channel.send(ExchangeClass.BindOk)


def exchange_unbind(channel: BrokerChannel, method: ExchangeClass.Unbind) -> None:
    """Unbind an exchange from another, if it is bound."""
    destination_name, source_name = without_line_ends(method.destination), without_line_ends(method.source)
    _check_exchange_binding(channel, destination_name, source_name, method.routing_key)
    source = channel.vhost.exchanges.get(source_name)
    destination = channel.vhost.exchanges.get(destination_name)
    if source is not None and destination is not None:
        channel.vhost.unbind(source, destination, method.routing_key, table(method.arguments))
    if not method.nowait:
        channel.send(ExchangeClass.UnbindOk)
