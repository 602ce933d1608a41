"""The methods of the exchange class (section 1.6 of the 0-9-1 reference, with RabbitMQ's bind and unbind)."""

from pamqp.commands import Exchange as ExchangeClass

from mqtool.broker.embedded.model.arguments import check_equivalent_exchange, check_exchange, check_exchange_type
from mqtool.broker.embedded.model.errors import access_refused, precondition_failed
from mqtool.broker.embedded.model.exchange import Exchange, ExchangeDeclaration
from mqtool.broker.embedded.wire.channel import Channel
from mqtool.broker.embedded.wire.methods import table
from mqtool.broker.embedded.wire.queue_class import without_line_ends


def _not_default(name: str) -> None:
    if not name:
        raise access_refused("operation not permitted on the default exchange")


def declare(channel: Channel, method: ExchangeClass.Declare) -> None:
    """Make an exchange, or check that it exists."""
    name = without_line_ends(method.exchange)
    if method.passive:
        _not_default(name)
        if channel.vhost.profile.passive_configures:
            channel.session.rights.check("configure", "exchange", name)
        channel.exchange(name)
    else:
        _declare(channel, method, name)
    if not method.nowait:
        channel.send(ExchangeClass.DeclareOk)


def _declare(channel: Channel, method: ExchangeClass.Declare, name: str) -> None:
    vhost, kind, arguments = channel.vhost, method.exchange_type, table(method.arguments)
    check_exchange_type(kind, vhost.profile)
    _not_default(name)
    channel.session.rights.check("configure", "exchange", name)
    exchange = vhost.exchanges.get(name)
    declared = ExchangeDeclaration(name, kind, method.durable, method.auto_delete, method.internal, arguments)
    if exchange is None:
        if name.startswith("amq."):
            raise access_refused(f"exchange name '{name}' contains reserved prefix 'amq.*'")
        check_exchange(declared, vhost.name, vhost.profile)
        alternate = arguments.get("alternate-exchange")
        if isinstance(alternate, str):
            channel.session.rights.check("read", "exchange", name)
            channel.session.rights.check("write", "exchange", alternate)
        vhost.add_exchange(Exchange(*declared))
    else:
        check_equivalent_exchange(exchange, declared, vhost.name)


def delete(channel: Channel, method: ExchangeClass.Delete) -> None:
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
        channel.vhost.delete_exchange(exchange)
    if not method.nowait:
        channel.send(ExchangeClass.DeleteOk)


def _check_binding(channel: Channel, destination: str, source: str, key: str) -> None:
    _not_default(destination)
    _not_default(source)
    channel.session.rights.check("write", "exchange", destination)
    channel.session.rights.check("read", "exchange", source)
    channel.session.rights.check_topic("read", channel.vhost.exchanges.get(source), key)


def bind(channel: Channel, method: ExchangeClass.Bind) -> None:
    """Bind an exchange to another one."""
    destination_name, source_name = without_line_ends(method.destination), without_line_ends(method.source)
    _check_binding(channel, destination_name, source_name, method.routing_key)
    source, destination = channel.exchange(source_name), channel.exchange(destination_name)
    channel.vhost.bind(source, destination, method.routing_key, table(method.arguments))
    if not method.nowait:
        channel.send(ExchangeClass.BindOk)


def unbind(channel: Channel, method: ExchangeClass.Unbind) -> None:
    """Unbind an exchange from another one, if it is bound."""
    destination_name, source_name = without_line_ends(method.destination), without_line_ends(method.source)
    _check_binding(channel, destination_name, source_name, method.routing_key)
    source = channel.vhost.exchanges.get(source_name)
    destination = channel.vhost.exchanges.get(destination_name)
    if source is not None and destination is not None:
        channel.vhost.unbind(source, destination, method.routing_key, table(method.arguments))
    if not method.nowait:
        channel.send(ExchangeClass.UnbindOk)
