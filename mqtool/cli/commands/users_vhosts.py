"""mqtool user add, delete, password, tags; vhost add, delete; permission set, clear."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from mqtool.cli.access import Access
from mqtool.cli.command_line import Argument, Option
from mqtool.cli.display import output
from mqtool.cli.options import Commands, ManagedBroker, Yes, ask, ask_password
from mqtool.cli.options.broker_options import IfExists, missing
from mqtool.errors import MqtoolError, NotFound, UsageError
from mqtool.management import Management, path
from mqtool.management.api_client import Json

app = Commands()
user_app = app.group("user", "Add and delete users; change passwords and tags.")
vhost_app = app.group("vhost", "Add and delete virtual hosts.")
permission_app = app.group("permission", "Set and clear permissions of users.")

UserName = Annotated[str, Argument(metavar="USER")]
Tags = Annotated[
    list[str] | None, Argument(metavar="[TAG]...", help="New tags (default: none, which removes all tags)")
]
IfNotExists = Annotated[bool, Option("--if-not-exists", help="Succeed if it exists, and leave it as it is")]
LoginPassword = Annotated[Path | None, Option(help="Read the password to log in with from FILE", panel="Broker")]
#: For commands that set a password, where --login-password-file is for logging in.
_NEW_PASSWORD = Annotated[Path | None, Option("--password-file", help="Read the user's password from FILE; - is stdin")]


def _login(broker: ManagedBroker, password_file: Path | None) -> Management:
    """Return the management API, logging in with `password_file`; --password-file contains the new password."""
    return broker.changed(options=broker.options.changed(password_file=password_file)).access().management()


def _found(api: Management, *names: str) -> Json | None:
    with suppress(NotFound):
        return dict(api.get(path(*names)))
    return None


def _user(api: Management, name: str) -> Json:
    if (found := _found(api, "users", name)) is None:
        raise NotFound(f"user {name!r} does not exist", "'mqtool list users' shows them")
    return found


def _is_there(api: Management, kind: str, name: str, *, if_not_exists: bool, hint: str) -> bool:
    """Return whether a user or vhost exists. If it does, raise MqtoolError, unless `if_not_exists` is set."""
    if _found(api, f"{kind}s", name) is None:
        return False
    if not if_not_exists:
        raise MqtoolError(f"{kind} {name!r} already exists", hint)
    output.status(f"{kind} {name!r} exists")
    return True


def _delete(access: Access, kind: str, name: str, what: str, yes: Yes = False, *, if_exists: bool) -> None:
    api = access.management()
    if _found(api, f"{kind}s", name) is not None:
        ask(f"delete {what}", access, yes=yes)
        api.delete(path(f"{kind}s", name))
        output.status(f"deleted {kind} {name!r}")
    else:
        missing(f"{kind} {name!r}", f"'mqtool list {kind}s' shows them", is_fine=if_exists)


def _tags(tags: Any) -> str:
    """Format tags as a comma-separated list, which every version of RabbitMQ accepts."""
    return tags if isinstance(tags, str) else ",".join(tags)


@user_app.command(
    "mqtool user add ann",
    "mqtool user add ann --tag monitoring --password-file - --if-not-exists < secret",
    instead={"password_file": _NEW_PASSWORD},
)
def add(
    name: UserName,
    broker: ManagedBroker,
    tag: Annotated[list[str] | None, Option(help="administrator, monitoring, policymaker or management")] = None,
    if_not_exists: IfNotExists = False,
    login_password_file: LoginPassword = None,
) -> None:
    """Add a user; 'mqtool permission set' then grants permissions."""
    api = _login(broker, login_password_file)
    hint = "change it with 'mqtool user password' or 'mqtool user tags'"
    if _is_there(api, "user", name, if_not_exists=if_not_exists, hint=hint):
        return
    api.put(
        path("users", name), {"password": ask_password(name, broker.options.password_file), "tags": _tags(tag or [])}
    )
    output.status(f"added user {name!r}")


@user_app.command(
    "mqtool user password ann",
    "mqtool user password ann --password-file new-secret",
    instead={"password_file": _NEW_PASSWORD},
)
def password(name: UserName, broker: ManagedBroker, login_password_file: LoginPassword = None) -> None:
    """Change a user's password."""
    api = _login(broker, login_password_file)
    tags = _tags(_user(api, name)["tags"])
    api.put(path("users", name), {"password": ask_password(name, broker.options.password_file), "tags": tags})
    output.status(f"changed the password of user {name!r}")


@user_app.command("mqtool user tags ann monitoring management", "mqtool user tags ann")
def tags(name: UserName, broker: ManagedBroker, tags: Tags = None) -> None:
    """Set a user's tags, which grant rights in the management API."""
    api = broker.access().management()
    kept = {name: value for name, value in _user(api, name).items() if name in ("password_hash", "hashing_algorithm")}
    api.put(path("users", name), {**kept, "tags": _tags(tags or [])})
    output.status(f"user {name!r} has {'the tags ' + ', '.join(tags) if tags else 'no tags'}")


@user_app.command("mqtool user delete ann", "mqtool user delete ann --if-exists --yes")
def delete(
    name: UserName,
    broker: ManagedBroker,
    yes: Yes = False,
    if_exists: IfExists = False,
    myself: Annotated[bool, Option(help="Delete the user that you are logged in as")] = False,
) -> None:
    """Delete a user and its permissions."""
    access = broker.access()
    if name == access.address.user and not myself:
        raise UsageError(f"you are logged in as user {name!r}, and would lose access", "--myself deletes it")
    _delete(access, "user", name, f"user {name!r}", yes, if_exists=if_exists)


VhostName = Annotated[str, Argument(metavar="VHOST")]


@vhost_app.command("mqtool vhost add staging", "mqtool vhost add staging --if-not-exists", name="add")
def add_vhost(
    name: VhostName,
    broker: ManagedBroker,
    description: Annotated[str | None, Option(help="Description of the virtual host")] = None,
    if_not_exists: IfNotExists = False,
) -> None:
    """Add a virtual host, with all permissions for yourself."""
    api = broker.access().management()
    if _is_there(api, "vhost", name, if_not_exists=if_not_exists, hint="--if-not-exists leaves it as it is"):
        return
    api.put(path("vhosts", name), {} if description is None else {"description": description})
    output.status(f"added vhost {name!r}")


@vhost_app.command("mqtool vhost delete staging", "mqtool vhost delete staging --if-exists --yes", name="delete")
def delete_vhost(
    name: VhostName,
    broker: ManagedBroker,
    yes: Yes = False,
    if_exists: IfExists = False,
    default_vhost: Annotated[bool, Option(help="Delete the default virtual host, /")] = False,
) -> None:
    """Delete a virtual host and everything in it."""
    if name == "/" and not default_vhost:
        raise UsageError("'/' is the default virtual host, which most clients use", "--default-vhost deletes it")
    what = f"vhost {name!r} and everything in it"
    _delete(broker.access(), "vhost", name, what, yes, if_exists=if_exists)


def _pattern(what: str) -> Any:
    return Option(metavar="PATTERN", help=f"Regular expression for names to {what}")


@permission_app.command(
    "mqtool permission set ann --configure '^ann-' --write '.*' --read '.*'",
    "mqtool permission set ann --read '^log' --vhost staging",
    name="set",
)
def set_permission(
    name: UserName,
    broker: ManagedBroker,
    configure: Annotated[str | None, _pattern("declare and delete")] = None,
    write: Annotated[str | None, _pattern("publish and bind to")] = None,
    read: Annotated[str | None, _pattern("consume and bind from")] = None,
) -> None:
    """Set a user's permissions; those not given stay as they are."""
    if configure is None and write is None and read is None:
        raise UsageError(
            f"no permission given for user {name!r}",
            "use --configure, --write or --read; '.*' allows everything, '' nothing",
        )
    access = broker.access()
    api, vhost = access.management(), access.vhost
    _user(api, name)
    before = _found(api, "permissions", vhost, name) or {}
    said = {"configure": configure, "write": write, "read": read}
    rights = {what: before.get(what, "") if pattern is None else pattern for what, pattern in said.items()}
    api.put(path("permissions", vhost, name), rights)
    output.status(f"permissions of user {name!r} in vhost {vhost!r}: {_said(rights)}")


@permission_app.command("mqtool permission clear ann", "mqtool permission clear ann --if-exists", name="clear")
def clear_permission(name: UserName, broker: ManagedBroker, yes: Yes = False, if_exists: IfExists = False) -> None:
    """Remove a user's permissions in a virtual host."""
    access = broker.access()
    api, vhost = access.management(), access.vhost
    before = _found(api, "permissions", vhost, name)
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
