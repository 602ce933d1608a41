"""mqtool connection."""

from contextlib import suppress
from typing import Annotated

import typer

from mqtool import management
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.user import found_view
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.errors import NotFound, UsageError
from mqtool.management import Management, path
from mqtool.spelling import counted

app = group("connection", "Close connections of clients.", heading="Manage")


@command(
    app,
    "mqtool connection close '127.0.0.1:49152 -> 127.0.0.1:5672'",
    "mqtool connection close --of-user ann --yes",
    "mqtool connection close --queue jobs",
    effect=Effect.CHANGES,
)
def close(
    broker: ManagedBroker,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name, as 'list connections' shows it")] = None,
    of_user: Annotated[
        str | None, typer.Option(metavar="USER", help="Close all of a user's", autocompletion=names_of("users"))
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue", "-q", metavar="QUEUE", help="Close those that consume from it", autocompletion=names_of("queues")
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Close connections: by name, of a user, or of a queue's consumers.

    Most clients connect again. Only an administrator may close the connections of other users.
    """
    if [name, of_user, queue].count(None) != 2:
        raise UsageError("name a connection, a user or a queue", "a NAME, --of-user USER, or --queue QUEUE")
    access = access_to(broker)
    api = access.management()
    if name is not None:
        if found_view(api, "connections", name) is None:
            raise NotFound(f"connection {name!r} does not exist", "'mqtool list connections' shows them")
        found, of = [name], ""
    elif of_user is not None:
        columns = ("name", "user")
        found = [each["name"] for each in management.connections(api, None, columns) if each["user"] == of_user]
        of = f" of user {of_user!r}"
    else:
        found = sorted(_consuming(api, access.vhost, str(queue)))
        of = f" that {'consumes' if len(found) == 1 else 'consume'} from queue {queue!r}"
    what = f"connection {name!r}" if name is not None else f"{counted(len(found), 'connection')}{of}"
    if not found:
        output.status(f"no connections{of}")
        return
    ask(f"close {what}", access, yes=yes)
    for each in found:
        with suppress(NotFound):  # it has closed by itself
            api.delete(path("connections", each))
    output.status(f"closed {what}")


def _consuming(api: Management, vhost: str, queue: str) -> set[str]:
    """Return the names of the connections that consume from a queue."""
    api.get(path("queues", vhost, queue), columns="name")  # fails if there is no such queue
    columns = ("queue.name", "channel_details.connection_name")
    return {
        each["channel_details"]["connection_name"]
        for each in management.consumers(api, vhost, columns)
        if each["queue"]["name"] == queue and "connection_name" in (each.get("channel_details") or {})
    }
