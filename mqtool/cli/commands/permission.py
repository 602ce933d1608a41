"""mqtool permission."""

from typing import Annotated, Any

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.user import UserName, found_view, user_view
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ManagedBroker, UnneededYes
from mqtool.cli.options.broker_options import IfExists
from mqtool.errors import NotFound, UsageError
from mqtool.management import path
from mqtool.management.api_client import Json
from mqtool.management.policy_patterns import check_pattern

app = group("permission", "Set and clear permissions of users.", heading="Manage")


def _pattern(what: str) -> Any:
    return typer.Option(metavar="PATTERN", help=f"Names to {what} (regular expression)")


@command(
    app,
    "mqtool permission set ann --configure '^ann-' --write '.*' --read '.*'",
    "mqtool permission set ann --read '^log' --vhost staging",
    effect=Effect.CHANGES,
    name="set",
)
def set_permission(
    name: UserName,
    broker: ManagedBroker,
    configure: Annotated[str | None, _pattern("declare and delete")] = None,
    write: Annotated[str | None, _pattern("publish to and bind to")] = None,
    read: Annotated[str | None, _pattern("consume from and bind from")] = None,
) -> None:
    """Set a user's permissions; those not given stay as they are.

    A pattern matches anywhere in a name: 'jobs' also matches jobs-old; '^jobs$' matches only jobs.
    """
    if configure is None and write is None and read is None:
        raise UsageError(
            f"no permission given for user {name!r}",
            "use --configure, --write or --read; '.*' allows everything, '' nothing",
        )
    said = {"configure": configure, "write": write, "read": read}
    for pattern in filter(None, said.values()):
        check_pattern(pattern)
    access = access_to(broker)
    api, vhost = access.management(), access.vhost
    user_view(api, name)
    before = found_view(api, "permissions", vhost, name) or {}
    rights = {what: before.get(what, "") if pattern is None else pattern for what, pattern in said.items()}
    api.put(path("permissions", vhost, name), rights)
    output.status(f"permissions of user {name!r} in vhost {vhost!r}: {_said(rights)}")


@command(
    app, "mqtool permission clear ann", "mqtool permission clear ann --if-exists", effect=Effect.CHANGES, name="clear"
)
def clear_permission(
    name: UserName, broker: ManagedBroker, yes: UnneededYes = False, if_exists: IfExists = False
) -> None:
    """Remove a user's permissions in a virtual host."""
    access = access_to(broker)
    api, vhost = access.management(), access.vhost
    before = found_view(api, "permissions", vhost, name)
    if before is None:
        if not if_exists:
            raise NotFound(f"user {name!r} has no permissions in vhost {vhost!r}")
        output.status(f"user {name!r} has no permissions in vhost {vhost!r}")
        return
    ask(f"remove the permissions of user {name!r} in vhost {vhost!r}", access, yes=yes, is_safe=True)
    api.delete(path("permissions", vhost, name))
    output.status(f"removed the permissions of user {name!r} in vhost {vhost!r}: {_said(before)}")


def _said(rights: Json) -> str:
    return ", ".join(f"{what} {rights[what]!r}" for what in ("configure", "write", "read"))
