"""mqtool exchange."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mqtool.amqp import administration
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, typed_choice
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.queue import IfNotExists, declare_as, existing, named, one_by_one
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import BrokerOptions, ExchangeOptions
from mqtool.cli.options.broker_options import IfExists, UnneededYes, Yes
from mqtool.cli.values import argument_option, header_option
from mqtool.errors import BadData, MqtoolError, UnknownExchangeType, UsageError
from mqtool.spelling import name_broker, nearest, pasteable
from mqtool.topology import DELAYED, Binding, Exchange, Queue

app = group("exchange", "Declare, bind, unbind and delete exchanges.", heading="Manage")


#: The exchange types that every broker supports.
_TYPES = ("direct", "fanout", "topic", "headers")
#: Seconds to wait for a connection to the management API, and for its answer, which says what `unbind` has changed.
_PATIENCE = (1.0, 5.0)


ExchangeName = Annotated[
    str, typer.Argument(metavar="EXCHANGE", help="Name of the exchange", autocompletion=names_of("exchanges"))
]


@command(
    app,
    "mqtool exchange declare logs fanout",
    "mqtool exchange declare audit topic --if-not-exists",
    effect=Effect.CHANGES,
    name="declare",
    instead={"exchange": ExchangeName},
)
def declare_exchange(
    options: ExchangeOptions,
    broker: BrokerOptions,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="direct, fanout, topic, headers, or a plugin's type")],
    auto_delete: Annotated[
        bool, typer.Option("--auto-delete", help="Delete the exchange once its last binding is gone")
    ] = False,
    internal: Annotated[bool, typer.Option("--internal", help="Accept messages from other exchanges only")] = False,
    if_not_exists: IfNotExists = False,
) -> None:
    """Declare an exchange; by default a durable one."""
    wanted = options.of(Exchange("", kind, durable=True, auto_delete=auto_delete, internal=internal))
    if kind not in _TYPES and not kind.startswith("x-"):
        is_swapped = wanted.name in _TYPES
        name_broker(typed_choice(broker))
        meant = pasteable("exchange declare", kind, wanted.name) if is_swapped else nearest(kind, _TYPES)
        if meant:
            raise UsageError(f"unknown exchange type {kind!r}", f"did you mean {meant!r}?")
    try:
        declare_as(broker, wanted, if_not_exists=if_not_exists)
    except UnknownExchangeType as error:
        if kind != DELAYED:
            raise
        raise UnknownExchangeType(
            f"{error}: the delayed message plugin is missing",
            f"the plugin ends with RabbitMQ 4.2; without it: {pasteable('delayed relay', wanted.name)}",
        ) from error


@command(
    app,
    "mqtool exchange delete logs",
    "mqtool exchange delete logs --if-exists --yes",
    effect=Effect.CHANGES,
    name="delete",
)
def delete_exchange(
    exchange: Annotated[
        list[str],
        typer.Argument(metavar="EXCHANGE...", help="Names of the exchanges", autocompletion=names_of("exchanges")),
    ],
    broker: BrokerOptions,
    yes: Yes = False,
    if_exists: IfExists = False,
    if_unused: Annotated[
        bool, typer.Option("--if-unused", help="Delete an exchange only if nothing is bound to it")
    ] = False,
) -> None:
    """Delete exchanges and their bindings."""
    access = access_to(broker)
    with access.channel() as channel, one_by_one(exchange, "deleted") as deleted:
        for name in existing(channel, map(Exchange, exchange), access, if_exists=if_exists):
            ask(f"delete exchange {name!r} with its bindings", access, yes=yes, is_safe=if_unused)
            try:
                administration.delete_exchange(channel, name, if_unused=if_unused)
            except BadData as error:
                raise MqtoolError(f"exchange {name!r} was not deleted: {error}") from error
            deleted.append(name)
            output.status(f"deleted exchange {name!r}")


@dataclass(kw_only=True, eq=False, repr=False)
class Bindings:
    """Options that describe bindings, one for each routing key."""

    exchange: ExchangeName
    destination: Annotated[
        str,
        typer.Argument(
            metavar="QUEUE", help="Queue; with --to-exchange, an exchange", autocompletion=names_of("queues")
        ),
    ]
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Binding keys (default: one binding with an empty key)"),
    ] = None
    to_exchange: Annotated[bool, typer.Option("--to-exchange", help="Treat QUEUE as the name of an exchange")] = False
    arguments: Annotated[list[Any] | None, argument_option("Binding argument; KEY:=JSON for a non-string value")] = None
    headers: Annotated[list[Any] | None, header_option("Header to match; KEY:=JSON for a non-string value")] = None
    match: Annotated[
        str | None,
        typer.Option("--match", help="How headers match: all, any, all-with-x or any-with-x", metavar="MATCH"),
    ] = None

    @property
    def to(self) -> str:
        """The destination in words, such as "queue 'jobs'"."""
        return named((Exchange if self.to_exchange else Queue)(self.destination))

    def by(self, key: str) -> Binding:
        """Return the binding with this routing key."""
        match = {} if self.match is None else {"x-match": self.match}
        arguments = {**match, **dict(self.headers or []), **dict(self.arguments or [])}
        return Binding(self.exchange, self.destination, key, arguments, self.to_exchange)


@command(
    app,
    "mqtool exchange bind topic_logs audit 'kern.*' '*.critical'",
    "mqtool exchange bind headers_logs pdfs -H format=pdf --match any",
    effect=Effect.CHANGES,
)
def bind(bindings: Bindings, broker: BrokerOptions) -> None:
    """Bind a queue to an exchange."""
    with access_to(broker).channel() as channel:
        for key in bindings.keys or [""]:
            stopping.exit_if_requested()
            administration.bind(channel, bindings.by(key))
            how = _by(key) or ("" if bindings.headers or bindings.arguments else " with an empty key")
            output.status(f"bound {bindings.to} to exchange {bindings.exchange!r}{how}")


@command(app, "mqtool exchange unbind topic_logs audit 'kern.*'", effect=Effect.CHANGES)
def unbind(bindings: Bindings, broker: BrokerOptions, yes: UnneededYes = False) -> None:
    """Remove the bindings with these keys and arguments, if they exist."""
    access = access_to(broker)
    bound = _bound(access, bindings.by(""))
    with access.channel() as channel:
        for key in bindings.keys or [""]:
            stopping.exit_if_requested()
            removed = bindings.by(key)
            ask(f"unbind {bindings.to} from exchange {bindings.exchange!r}{_by(key)}", access, yes=yes, is_safe=True)
            administration.unbind(channel, removed)
            if removed.arguments:  # only the broker knows which bindings have the same: to it, 1 and 1.0 differ
                after = _bound(access, removed)
            else:
                after = bound and {**bound, key: [each for each in bound.get(key, []) if each.arguments]}
            output.status(f"{bindings.to} {_change(removed, bound, after)}")
            bound = after


def _bound(access: Access, binding: Binding) -> dict[str, list[Binding]] | None:
    """Return the bindings with this source and destination by routing key; None if the management API does not tell.

    AMQP reports the same whether a binding existed or not.
    """
    from mqtool.inspection.definitions import bindings_between

    found: dict[str, list[Binding]] = {}
    try:
        for each in bindings_between(access.management(_PATIENCE), access.vhost, binding):
            found.setdefault(each.routing_key, []).append(each)
    except MqtoolError:
        return None
    return found


def _change(removed: Binding, before: dict[str, list[Binding]] | None, after: dict[str, list[Binding]] | None) -> str:
    """Say how unbinding has changed the bindings with one key, given all bindings by key before and after."""
    key = removed.routing_key
    to = f"to exchange {removed.source!r}{_by(key)}"
    if before is None or after is None:
        return f"is now not bound {to}{' and' if key else ' with'} {'these' if removed.arguments else 'no'} arguments"
    had, has = len(before.get(key, [])), len(after.get(key, []))
    if not had:
        return f"was not bound {to}"
    if not has:
        return f"is no longer bound {to}"
    if has < had:
        return f"is no longer bound with these arguments, but with others, {to}"
    return f"is still bound with other arguments {to}"


def _by(key: str) -> str:
    return f" with key {key!r}" if key else ""
