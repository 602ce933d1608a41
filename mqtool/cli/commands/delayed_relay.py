"""mqtool delayed relay, delayed migrate."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mqtool import management
from mqtool.amqp import Backoff, Channel
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import ManagedBroker
from mqtool.delays.delay_plugin import PluginMissing
from mqtool.errors import AccessRefused, DeclaredDifferently, NotConfirmed, NotFound, Unavailable, UsageError
from mqtool.management import Management
from mqtool.management.api_client import Json, exchange_path
from mqtool.management.policy_patterns import policy_matches
from mqtool.spelling import as_text, counted, pasteable
from mqtool.topology import DELAYED, Exchange, Queue
from mqtool.work.delay_relay import Relay, RelayNames

part = typer.Typer()

#: Seconds to wait for a connection to the management API, and for its response. Only warnings depend on it.
_PATIENCE = 0.3, 1.0
#: Seconds between two checks of how many messages the plugin holds.
_LOOK = 0.5
#: The argument of an exchange, and the setting of a policy.
_ALTERNATE = "alternate-exchange"


@command(
    part,
    "mqtool delayed relay tasks",
    "mqtool delayed relay tasks --type topic",
    "mqtool delayed relay later --to events",
    effect=Effect.CHANGES,
)
def relay(
    broker: ManagedBroker,
    exchange: Annotated[
        str,
        typer.Argument(
            help="Exchange that clients publish to with the header x-delay",
            metavar="EXCHANGE",
            autocompletion=names_of("exchanges"),
        ),
    ],
    kind: Annotated[
        Literal["direct", "fanout", "topic", "headers"] | None,
        typer.Option("--type", help="Type of EXCHANGE.relayed", show_default="direct"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="EXCHANGE",
            help="Exchange for due messages, instead of EXCHANGE.relayed",
            autocompletion=names_of("exchanges"),
        ),
    ] = None,
    by_timestamps: Annotated[
        bool, typer.Option("--by-timestamps", help="Count delays from the time in the header timestamp_in_ms")
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Create FILE once the relay is consuming", metavar="FILE")
    ] = None,
) -> None:
    """Delay any client's messages, like the delayed message plugin.

    Clients publish to EXCHANGE with the header x-delay, in milliseconds. Bind your queues to EXCHANGE.relayed; --type
    sets the type of this exchange. Messages without a delay are relayed immediately.

    The relay acknowledges a message once the broker has confirmed it in a wait queue. If the relay or the broker is
    killed, no message is lost, but some may arrive twice. Several relays can serve the same exchange. While no relay is
    running, messages wait in EXCHANGE.relay. Messages whose headers are too large for AMQP 0-9-1 are dead-lettered to
    EXCHANGE.relay.dlq.

    A delay starts when the relay receives the message. With --by-timestamps, it starts at the time in the message's
    header timestamp_in_ms, which RabbitMQ 3.12 and later can be configured to set.
    """
    if kind is not None and to is not None:
        raise UsageError("--type and --to cannot be combined", "the exchange that --to names has its own type")
    _check_names(exchange, to)
    access = access_to(broker)
    names = RelayNames.of(exchange, kind or "direct", to)
    once, counts = access._replace(backoff=None), Counter[str]()
    delays: Iterator[float] = iter(())
    new_relay = partial(Relay, names=names, user=access.user, warn=output.warning, counts=counts, dead=set())
    relayed = -1
    try:
        while True:
            try:
                with once.channels() as (source, target):
                    names.declare(target, keep_type=kind is None)
                    relaying = new_relay(source, target, by_timestamps=by_timestamps)
                    if relayed < 0:
                        _begin(access, names, ready_file)
                    else:
                        output.notice(f"connected again to {access.address}")
                    if counts.total() > relayed:
                        relayed, delays = counts.total(), (access.backoff or Backoff(attempts=0)).delays()
                    relaying.run()
                return
            except (Unavailable, NotConfirmed) as error:
                delay = next(delays, None)
                if stopping.requested() is None and delay is None:
                    raise
                if stopping.requested() is None:
                    output.notice(f"{error}; trying again")
                if _is_stopped_within(delay or 0):
                    return
    finally:
        if relayed >= 0:
            output.status(", ".join(f"{counts[what]:,} {what}" for what in ("delayed", "at once", "unroutable")))


def _check_names(*names: str | None) -> None:
    if "" in names:
        raise UsageError("the default exchange '' cannot delay messages", "name another exchange")


def _begin(access: Access, names: RelayNames, ready_file: Path | None) -> None:
    _warn_of_bindings(access, names)
    output.status(f" [*] Relaying {names.entrance.name} to {names.out.name}. To exit press CTRL+C")
    output.create_ready_file(ready_file)


def _is_stopped_within(seconds: float) -> bool:
    """Wait for this many seconds. If a signal asks the command to stop, return True at once; otherwise False."""
    stopped = threading.Event()
    with stopping.calling(stopped.set):
        return stopping.requested() is not None or stopped.wait(seconds)


def _warn_of_bindings(access: Access, names: RelayNames) -> None:
    """Warn about queues bound to the exchange that clients publish to, because they get messages before the delay.

    Also warn if the exchange for due messages routes them to the relay.
    """
    relays = {("exchange", names.entrance.name), ("queue", names.intake.name)}
    try:
        api = access.management(_PATIENCE)
        bound = {each["destination"] for each in management.bindings_from(api, access.vhost, names.entrance.name)}
        due = {
            (each["destination_type"], each["destination"])
            for each in management.bindings_from(api, access.vhost, names.out.name, ("destination", "destination_type"))
        }
    except (Unavailable, AccessRefused):  # the API is only needed for the warning
        return
    for name in sorted(bound - {names.intake.name}):
        output.warning(
            f"{name!r} is bound to {names.entrance.name!r}, and gets its messages without delay: bind it to "
            f"{names.out.name!r} instead"
        )
    for _, name in sorted(due & relays):
        output.warning(
            f"{name!r} is bound to {names.out.name!r}, so due messages return to the relay again and again: remove "
            "this binding"
        )


class _Migration:
    """Gives a relay the bindings and the alternate exchange of a plugin's exchange, and counts its waiting messages.

    No client can get messages out of the plugin before they are due. They therefore stay there, and the old exchange
    keeps its bindings, so that the plugin can route each message when it is due.
    """

    def __init__(self, channel: Channel, api: Management, vhost: str, old: str) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost
        self._old = old
        self._waiting = 0

    def begin(self, new: str) -> tuple[RelayNames, int]:
        """Declare the relay's exchanges and queue, and copy the old exchange's bindings and alternate exchange.

        Returns:
            The relay's names, and the number of bindings.

        Raises:
            NotFound: the old exchange does not exist.
            DeclaredDifferently: the old exchange is not of the plugin's type, or the new one exists with other
                settings; or only a policy gives the old one an alternate exchange.
            PluginMissing: the broker no longer has the plugin.
            AccessRefused: a policy applies to the old exchange, and the user may not see what it sets.
        """
        view = self._view()
        arguments = view.get("arguments") or {}
        names = RelayNames.of(new, str(arguments.get("x-delayed-type", "direct")))
        if _ALTERNATE in arguments:
            names = names._replace(out=names.out._replace(arguments={_ALTERNATE: arguments[_ALTERNATE]}))
        elif policy := view.get("policy"):
            self._check_policy(policy, names.out.name)
        try:
            names.declare(self._channel, keep_type=False)
        except DeclaredDifferently as error:
            raise DeclaredDifferently(str(error), "name another exchange with --to") from error
        count = 0
        for each in self._api.items(exchange_path(self._vhost, self._old, "bindings", "source")):
            to = Queue(each["destination"]) if each["destination_type"] == "queue" else Exchange(each["destination"])
            self._channel.bind(to, names.out, each["routing_key"], each["arguments"], remember=False)
            count += 1
        return names, count

    def waiting(self) -> int:
        """Return the number of messages waiting in the old exchange.

        Raises:
            NotFound: the exchange was deleted, and messages with it.
            DeclaredDifferently, PluginMissing: see begin().
        """
        try:
            self._view()
        except NotFound as error:
            if self._waiting:
                lost = f"up to {counted(self._waiting)} that it held are lost"
                raise NotFound(f"exchange {self._old!r} was deleted, and {lost}") from error
        return self._waiting

    def _view(self) -> Json:
        """Look at the old exchange, and remember how many messages wait in it."""
        view = self._api.get(exchange_path(self._vhost, self._old))
        if view["type"] != DELAYED:
            raise DeclaredDifferently(
                f"exchange {self._old!r} is of type {view['type']}", f"only exchanges of type {DELAYED} can be migrated"
            )
        if "messages_delayed" not in view:
            raise PluginMissing(self._channel.connection.broker)
        self._waiting = int(view["messages_delayed"] or 0)
        return view

    def _check_policy(self, name: str, out: str) -> None:
        """Raise DeclaredDifferently if the old exchange's policy sets an alternate exchange that `out` would not get.

        It is not made an argument, because a policy could not change it any more. Raises AccessRefused if the user
        lacks the tag 'policymaker'.
        """
        policies = [*management.policies(self._api, self._vhost)]
        for_exchanges = [each for each in policies if each.get("apply-to", "all") in ("all", "exchanges")]
        new = max(
            (each for each in for_exchanges if policy_matches(each, out)),
            key=lambda each: each.get("priority") or 0,
            default={},
        )
        old = next((each for each in for_exchanges if each["name"] == name), {})
        alternate, other = ((each.get("definition") or {}).get(_ALTERNATE) for each in (old, new))
        if alternate not in (None, other):
            definition = json.dumps({**(new.get("definition") or {}), _ALTERNATE: alternate})
            words = (definition, f"--pattern=^{re.escape(out)}$", f"--priority={(new.get('priority') or 0) + 1}")
            raise DeclaredDifferently(
                f"policy {name!r} gives {self._old!r} the alternate exchange {alternate!r}, but no policy gives it to "
                f"{out!r}: messages without a queue would be lost",
                pasteable("policy set --apply-to=exchanges --definition=", *words, f"alternate.{out}"),
            )


@command(part, "mqtool delayed migrate tasks --to tasks.later", effect=Effect.CHANGES)
def migrate(
    broker: ManagedBroker,
    exchange: Annotated[
        str,
        typer.Argument(
            help="Exchange of type x-delayed-message", metavar="EXCHANGE", autocompletion=names_of("exchanges")
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="EXCHANGE",
            help="Exchange of the relay; clients publish to it from now on",
            autocompletion=names_of("exchanges"),
        ),
    ],
) -> None:
    """Replace the delayed message plugin with a relay; nothing is lost.

    Declares the exchanges of 'mqtool delayed relay' and copies the old exchange's bindings and alternate exchange;
    publishers can then switch over one by one. The command waits until the old exchange holds no more messages.
    Messages cannot be taken out of the plugin before they are due, so keep it enabled until then.
    """
    _check_names(exchange, to)
    access = access_to(broker, reconnects=False)
    api = access.management()
    with access.channel() as channel:
        migration = _Migration(channel, api, access.vhost, exchange)
        names, bindings = migration.begin(to)
        count = most = migration.waiting()
        alternate = as_text(names.out.arguments.get(_ALTERNATE))
        also = f" and the alternate exchange {alternate}" if alternate else ""
        output.status(f"copied {counted(bindings, 'binding')}{also} from {exchange} to {names.out.name}")
        output.status(f"run {pasteable('delayed relay', to)}, and have clients publish to {to}")
        output.status(f"{counted(count)} in {exchange}, which the plugin delivers when they are due")
        progress = Progress("delivered", fraction=lambda: progress.count / max(1, most))
        try:
            while (count := migration.waiting()) and not _is_stopped_within(_LOOK):
                most = max(most, count)
                progress.show(most - count)
        finally:
            progress.stop()
    if count:
        output.status(f"{counted(count)} left in {exchange}; to wait for them, run this command again")
        stopping.exit_if_requested()
    output.status(
        f"nothing is left in {exchange}; once nobody publishes to it: {pasteable('exchange delete', exchange)}"
    )
