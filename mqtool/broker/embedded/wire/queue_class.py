"""The methods of the queue class (section 1.7 of the 0-9-1 reference)."""

from pamqp.commands import Queue as QueueClass

from mqtool.broker.embedded.model.arguments import check_equivalent_queue, check_queue
from mqtool.broker.embedded.model.errors import (
    NOT_IMPLEMENTED,
    ConnectionException,
    access_refused,
    locked_queue,
    precondition_failed,
)
from mqtool.broker.embedded.model.limits import check_queues
from mqtool.broker.embedded.model.queue import Queue, QueueDeclaration
from mqtool.broker.embedded.wire.channel import Channel
from mqtool.broker.embedded.wire.methods import table
from mqtool.broker.embedded.wire.publishing import DIRECT_REPLY_TO


def without_line_ends(name: str) -> str:
    """Return a name as RabbitMQ takes it: line ends are dropped."""
    return name.replace("\r", "").replace("\n", "")


def declare(channel: Channel, method: QueueClass.Declare) -> None:
    """Make a queue, or check that it exists."""
    if _is_reply_queue(channel, method.queue):
        _declared(channel, method, method.queue, 0, 1)
        return
    name = without_line_ends(method.queue)
    if method.passive and channel.vhost.profile.passive_configures:
        channel.session.rights.check("configure", "queue", name)
    queue = channel.queue(name) if method.passive else _declare(channel, method, name)
    queue.touch()
    channel.last_queue = queue.name
    _declared(channel, method, queue.name, len(queue), len(queue.consumers))


def _declared(channel: Channel, method: QueueClass.Declare, name: str, messages: int, consumers: int) -> None:
    if not method.nowait:
        channel.send(QueueClass.DeclareOk, queue=name, message_count=messages, consumer_count=consumers)


def _is_reply_queue(channel: Channel, name: str) -> bool:
    if not name.startswith(DIRECT_REPLY_TO):
        return False
    return name == DIRECT_REPLY_TO or name.removeprefix(DIRECT_REPLY_TO + ".") in channel.session.broker.reply_consumers


def _declare(channel: Channel, method: QueueClass.Declare, name: str) -> Queue:
    vhost, arguments = channel.vhost, table(method.arguments)
    if name.startswith("amq."):
        raise access_refused(f"queue name '{name}' contains reserved prefix 'amq.*'")
    server_named = not name
    name = name or vhost.new_queue_name()
    channel.session.rights.check("configure", "queue", name)
    queue = vhost.queues.get(name)
    # An exclusive queue goes with its connection; RabbitMQ's classic ones need not be durable for that.
    owner = channel.session if method.exclusive else None
    declared = QueueDeclaration(name, arguments, method.durable, method.auto_delete, owner, server_named)
    if queue is not None:
        if queue.owner is not owner:
            raise locked_queue(name, vhost.name)
        check_equivalent_queue(queue, declared)
        return queue
    check_queues(vhost, name)
    check_queue(declared, vhost.name, vhost.profile)
    exchange = arguments.get("x-dead-letter-exchange")
    if isinstance(exchange, str):
        channel.session.rights.check("read", "queue", name)
        channel.session.rights.check("write", "exchange", exchange)
    queue = vhost.add_queue(declared)
    if owner is not None:
        channel.session.exclusive_queues.add(queue)
    return queue


def bind(channel: Channel, method: QueueClass.Bind) -> None:
    """Bind a queue to an exchange."""
    name = channel.queue_name(without_line_ends(method.queue))
    exchange_name = without_line_ends(method.exchange)
    key = _routing_key(channel, method.queue, method.routing_key)
    _check_binding(channel, name, exchange_name, key)
    exchange = channel.exchange(exchange_name)
    queue = channel.queue(name)
    channel.vhost.bind(exchange, queue, key, table(method.arguments))
    if not method.nowait:
        channel.send(QueueClass.BindOk)


def unbind(channel: Channel, method: QueueClass.Unbind) -> None:
    """Unbind a queue from an exchange, if it is bound."""
    name = channel.queue_name(without_line_ends(method.queue))
    exchange_name = without_line_ends(method.exchange)
    key = _routing_key(channel, method.queue, method.routing_key)
    _check_binding(channel, name, exchange_name, key)
    exchange, queue = channel.vhost.exchanges.get(exchange_name), channel.vhost.queues.get(name)
    if exchange is not None and queue is not None:
        channel.check_owner(queue)
        channel.vhost.unbind(exchange, queue, key, table(method.arguments))
    channel.send(QueueClass.UnbindOk)


def _routing_key(channel: Channel, queue: str, key: str) -> str:
    """With neither queue nor key named, the key is the name of the queue declared last (section 1.7.2.3)."""
    return key if queue or key else channel.queue_name("")


def _check_binding(channel: Channel, queue: str, exchange: str, key: str) -> None:
    if not exchange:
        raise access_refused("operation not permitted on the default exchange")
    channel.session.rights.check("write", "queue", queue)
    channel.session.rights.check("read", "exchange", exchange)
    channel.session.rights.check_topic("read", channel.vhost.exchanges.get(exchange), key)


def purge(channel: Channel, method: QueueClass.Purge) -> None:
    """Drop the ready messages."""
    name = channel.queue_name(method.queue)
    channel.session.rights.check("read", "queue", name)
    count = channel.queue(name).purge()
    if not method.nowait:
        channel.send(QueueClass.PurgeOk, message_count=count)


def delete(channel: Channel, method: QueueClass.Delete) -> None:
    """Delete a queue, if it exists."""
    count = 0
    if not _is_reply_queue(channel, method.queue):
        name = channel.queue_name(without_line_ends(method.queue))
        channel.session.rights.check("configure", "queue", name)
        count = _delete(channel, name, if_unused=method.if_unused, if_empty=method.if_empty)
    if not method.nowait:
        channel.send(QueueClass.DeleteOk, message_count=count)


def _delete(channel: Channel, name: str, *, if_unused: bool, if_empty: bool) -> int:
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
    if queue.kind == "stream":
        return channel.vhost.delete_queue(queue)
    if if_empty and len(queue):
        raise precondition_failed(f"queue '{name}' in vhost '{queue.vhost}' not empty")
    if if_unused and len(queue.consumers):
        raise precondition_failed(f"queue '{name}' in vhost '{queue.vhost}' in use")
    return channel.vhost.delete_queue(queue)
