"""mqtool vhost."""

from typing import Annotated

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.user import IfNotExists, delete_named, is_there
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.options.broker_options import IfExists
from mqtool.errors import UsageError
from mqtool.management import path

app = group("vhost", "Add and delete virtual hosts.", heading="Manage")


VhostName = Annotated[
    str, typer.Argument(metavar="VHOST", help="Name of the virtual host", autocompletion=names_of("vhosts"))
]


@command(app, "mqtool vhost add staging", "mqtool vhost add staging --if-not-exists", effect=Effect.CHANGES, name="add")
def add_vhost(
    name: VhostName,
    broker: ManagedBroker,
    description: Annotated[
        str | None, typer.Option("--description", help="Description of the virtual host", metavar="DESCRIPTION")
    ] = None,
    if_not_exists: IfNotExists = False,
) -> None:
    """Add a virtual host, with all permissions for yourself."""
    api = access_to(broker).management()
    if is_there(api, "vhost", name, if_not_exists=if_not_exists, hint="--if-not-exists leaves it as it is"):
        return
    api.put(path("vhosts", name), {} if description is None else {"description": description})
    output.status(f"added vhost {name!r}")


@command(
    app,
    "mqtool vhost delete staging",
    "mqtool vhost delete staging --if-exists --yes",
    effect=Effect.CHANGES,
    name="delete",
)
def delete_vhost(
    name: VhostName,
    broker: ManagedBroker,
    yes: Yes = False,
    if_exists: IfExists = False,
    default_vhost: Annotated[
        bool, typer.Option("--default-vhost", help="Allow deleting the default virtual host, /")
    ] = False,
) -> None:
    """Delete a virtual host and everything in it."""
    if name == "/" and not default_vhost:
        raise UsageError("'/' is the default virtual host, which most clients use", "--default-vhost deletes it")
    what = f"vhost {name!r} and everything in it"
    delete_named(access_to(broker), "vhost", name, what, yes, if_exists=if_exists)
