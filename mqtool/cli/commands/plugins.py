"""mqtool plugin enable, disable."""

from typing import Annotated, Literal

from typer import Argument, Option

from mqtool.broker import plugins, state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import DEFAULT_NAME, Started
from mqtool.cli.display import output
from mqtool.cli.options import Commands, Yes, ask
from mqtool.errors import Unavailable

app = Commands()
plugin_app = app.group("plugin", "Enable and disable plugins of your broker.")

Plugins = Annotated[list[str], Argument(metavar="PLUGIN...")]
Name = Annotated[str, Option(help="Name of the broker")]


@plugin_app.command("mqtool plugin enable rabbitmq_shovel")
def enable(plugin: Plugins, name: Name = DEFAULT_NAME) -> None:
    """Enable plugins and those they need, now and at every start."""
    _change(_started(name), "enable", plugin)


@plugin_app.command("mqtool plugin disable rabbitmq_shovel --yes")
def disable(plugin: Plugins, yes: Yes, name: Name = DEFAULT_NAME) -> None:
    """Disable plugins and those that need them."""
    started = _started(name)
    ask(f"disable {', '.join(plugin)}", yes, protected=None)
    _change(started, "disable", plugin)


def _change(started: Started, what: Literal["enable", "disable"], names: list[str]) -> None:
    plugins.change(started, what, names)
    is_shown = plugins.wait_until_shown(started, what, names)
    output.status(f"{what}d {', '.join(names)}{'' if is_shown else '; the management API does not show it yet'}")


def _started(name: str) -> Started:
    started = state.load(name)
    if started is None:
        raise Unavailable(
            f"mqtool has not started a broker named {name!r}, and only changes plugins of its own brokers",
            "run on the broker's machine: rabbitmq-plugins enable PLUGIN",
        )
    if not starter_of(started).is_running(started):
        raise Unavailable(f"the broker named {name!r} is not running", "start it again with 'mqtool broker up'")
    return started
