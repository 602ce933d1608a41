"""Operations on queues and exchanges that all protocols share. The callers check permissions."""

from mqtool.broker.embedded.model.amqp_errors import locked_queue, no_such_exchange, no_such_queue
from mqtool.broker.embedded.model.declarations import (
    check_equivalent_exchange,
    check_equivalent_queue,
    check_exchange,
    check_queue,
)
from mqtool.broker.embedded.model.exchange import BrokerExchange, ExchangeDeclaration
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.virtual_host import VirtualHost


def declare_queue(vhost: VirtualHost, declared: QueueDeclaration) -> tuple[BrokerQueue, bool]:
    """Create a queue, or check that the existing queue has the declared settings.

    Returns:
        The queue, and True if it is new.

    Raises:
        AmqpException: 405, the queue is exclusive to another connection, or only one of queue and declaration is
            exclusive; 406, the declaration is not valid or differs from the queue, or the virtual host has reached its
            queue limit; 506, the queue cannot be stored; 541, it uses a deprecated feature that this version refuses.
    """
    declared = with_default_type(vhost, declared)
    queue = vhost.queues.get(declared.name)
    if queue is not None:
        if queue.owner is not declared.owner:
            raise locked_queue(declared.name, vhost.name)
        check_equivalent_queue(queue, declared)
        return queue, False
    vhost.check_queue_limit(declared.name)
    check_queue(declared, vhost.name, vhost.profile)
    return vhost.add_queue(declared), True


def with_default_type(vhost: VirtualHost, declared: QueueDeclaration) -> QueueDeclaration:
    """Give a queue that is declared without a type the virtual host's default type, if that allows its properties."""
    kind = vhost.labels.default_queue_type
    is_any_type = declared.durable and not declared.auto_delete and declared.owner is None
    if not kind or "x-queue-type" in declared.arguments or not (is_any_type or kind == "classic"):
        return declared
    return declared._replace(arguments={**declared.arguments, "x-queue-type": kind})


def declare_exchange(vhost: VirtualHost, declared: ExchangeDeclaration) -> None:
    """Create an exchange, or check that the existing exchange has the declared settings.

    Raises:
        AmqpException: 406, the declaration is not valid or differs from the exchange; 503, the type is unknown (in
            RabbitMQ 3.10); 506, the exchange cannot be stored.
    """
    exchange = vhost.exchanges.get(declared.name)
    if exchange is None:
        check_exchange(declared, vhost.name, vhost.profile)
        vhost.add_exchange(BrokerExchange(*declared))
    else:
        check_equivalent_exchange(exchange, declared, vhost.name)


def queue_of(vhost: VirtualHost, name: str, client: object) -> BrokerQueue:
    """Look up a queue. Raises 404 if it does not exist, 405 if it is exclusive to a connection other than `client`."""
    queue = vhost.queues.get(name)
    if queue is None:
        raise no_such_queue(name, vhost.name)
    check_owner(queue, client)
    return queue


def check_owner(queue: BrokerQueue, client: object) -> None:
    """Raise 405 if a queue is exclusive to a connection other than `client`."""
    if queue.owner is not None and queue.owner is not client:
        raise locked_queue(queue.name, queue.vhost)


def exchange_of(vhost: VirtualHost, name: str) -> BrokerExchange:
    """Look up an exchange. Raises 404 if it does not exist."""
    exchange = vhost.exchanges.get(name)
    if exchange is None:
        raise no_such_exchange(name, vhost.name)
    return exchange
