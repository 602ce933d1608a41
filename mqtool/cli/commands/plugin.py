"""mqtool plugin."""

import shlex
from typing import Annotated, Literal

import typer

from mqtool.address import parse_addresses
from mqtool.broker import rabbitmq_plugins, state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import DEFAULT_NAME, Started
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, chosen, set_up_printing
from mqtool.cli.chosen_broker import running_at
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.broker_up import Name, up_again
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import BrokerOptions, Yes
from mqtool.errors import Unavailable, UsageError

app = group("plugin", "Enable and disable plugins of your broker.", heading="Manage")


#: RabbitMQ plugins that users often enable, for shell completion.
_PLUGINS = [
    *("rabbitmq_auth_backend_ldap", "rabbitmq_consistent_hash_exchange", "rabbitmq_delayed_message_exchange"),
    *("rabbitmq_federation", "rabbitmq_federation_management", "rabbitmq_management", "rabbitmq_mqtt"),
    *("rabbitmq_prometheus", "rabbitmq_sharding", "rabbitmq_shovel", "rabbitmq_shovel_management", "rabbitmq_stomp"),
    *("rabbitmq_stream", "rabbitmq_stream_management", "rabbitmq_tracing", "rabbitmq_web_mqtt", "rabbitmq_web_stomp"),
]


Plugins = Annotated[
    list[str], typer.Argument(metavar="PLUGIN...", help="Names of the plugins", autocompletion=lambda: _PLUGINS)
]


@command(app, "mqtool plugin enable rabbitmq_shovel", effect=Effect.CHANGES)
def enable(plugin: Plugins, broker: BrokerOptions, name: Name = DEFAULT_NAME) -> None:
    """Enable plugins and their dependencies, now and at every start.

    The broker must be one that mqtool started.
    """
    started, _ = _started(broker, name, "enable", plugin)
    _change(started, "enable", plugin)


@command(app, "mqtool plugin disable rabbitmq_shovel --yes", effect=Effect.CHANGES)
def disable(plugin: Plugins, broker: BrokerOptions, yes: Yes = False, name: Name = DEFAULT_NAME) -> None:
    """Disable plugins and the plugins that depend on them.

    The broker must be one that mqtool started.
    """
    started, access = _started(broker, name, "disable", plugin)
    ask(f"disable {', '.join(plugin)} on {_described(started)}", access, yes=yes)
    _change(started, "disable", plugin)


def _change(started: Started, what: Literal["enable", "disable"], names: list[str]) -> None:
    rabbitmq_plugins.change(started, what, names)
    is_shown = rabbitmq_plugins.wait_until_shown(started, what, names)
    late = "" if is_shown else "; the management API does not show it yet"
    output.status(f"{what}d {', '.join(names)} on {_described(started)}{late}")


def _described(started: Started) -> str:
    return f"broker {started.name!r} at {', '.join(map(str, parse_addresses(started.url)))}"


def _started(broker: BrokerOptions, name: str, what: str, plugins: list[str]) -> tuple[Started, Access | None]:
    """Find the broker that --name or the broker options name, or else the default one, if `broker up` started it.

    Returns:
        The broker, and how the options reach it: None for a broker that only --name names.
    """
    access = None
    if "name" in broker.call.typed:
        set_up_printing(broker)
        if by := broker.call.typed & {"url", "context"}:
            raise UsageError(f"--name cannot be combined with --{min(by)}", "use only one of them")
    elif chosen(broker).is_named:
        access = access_to(broker.asking())
    started = state.load(name) if access is None else running_at(access.address)
    if started is None:
        where = f"no broker named {name!r} was started here" if access is None else f"{access.title} is not"
        by_hand = shlex.join(["rabbitmq-plugins", what, *plugins])
        raise Unavailable(
            f"mqtool only changes plugins of brokers that it started, and {where}",
            f"run on the broker's machine: {by_hand}",
        )
    if not starter_of(started).is_running(started):
        raise Unavailable(f"the broker named {name!r} is not running", f"start it again: {up_again(started)}")
    return started, access
