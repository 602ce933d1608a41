"""mqtool plugin."""

from typing import Annotated, Literal

import typer

from mqtool.broker import rabbitmq_plugins, state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import DEFAULT_NAME, Started
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.broker_up import Name, up_again
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import Yes
from mqtool.errors import Unavailable

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


@command(app, "mqtool plugin enable rabbitmq_shovel", effect=Effect.OWN)
def enable(plugin: Plugins, name: Name = DEFAULT_NAME) -> None:
    """Enable plugins and their dependencies, now and at every start."""
    _change(_started(name), "enable", plugin)


@command(app, "mqtool plugin disable rabbitmq_shovel --yes", effect=Effect.OWN)
def disable(plugin: Plugins, yes: Yes = False, name: Name = DEFAULT_NAME) -> None:
    """Disable plugins and the plugins that depend on them."""
    started = _started(name)
    ask(f"disable {', '.join(plugin)}", yes=yes)
    _change(started, "disable", plugin)


def _change(started: Started, what: Literal["enable", "disable"], names: list[str]) -> None:
    rabbitmq_plugins.change(started, what, names)
    is_shown = rabbitmq_plugins.wait_until_shown(started, what, names)
    output.status(f"{what}d {', '.join(names)}{'' if is_shown else '; the management API does not show it yet'}")


def _started(name: str) -> Started:
    started = state.load(name)
    if started is None:
        raise Unavailable(
            f"no broker named {name!r} was started here, and mqtool only changes plugins of brokers that it started",
            "run on the broker's machine: rabbitmq-plugins enable PLUGIN",
        )
    if not starter_of(started).is_running(started):
        raise Unavailable(f"the broker named {name!r} is not running", f"start it again: {up_again(started)}")
    return started
