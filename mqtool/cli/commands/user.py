"""mqtool user."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.chosen_broker import read_password
from mqtool.cli.command_line import command, group
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.options.broker_options import IfExists
from mqtool.cli.pipe.existence import missing
from mqtool.errors import MqtoolError, NotFound, UsageError
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.spelling import mistyped

app = group("user", "Add and delete users; change passwords and tags.", heading="Manage")


UserName = Annotated[str, typer.Argument(metavar="USER", help="Name of the user", autocompletion=names_of("users"))]


Tags = Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="New tags (default: show the user's tags)")]


IfNotExists = Annotated[bool, typer.Option("--if-not-exists", help="Succeed, and change nothing, if it already exists")]


LoginPassword = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read your own login password from FILE", rich_help_panel="Broker")
]


#: For commands that set a password, where --login-password-file is for logging in.
_NEW_PASSWORD = Annotated[
    Path | None, typer.Option("--password-file", help="Read the user's password from FILE; - for stdin", metavar="FILE")
]

#: A user without this tag cannot change users, not even to get the tag back.
_ADMINISTRATOR = "administrator"
#: The tags that have a meaning on RabbitMQ.
_KNOWN_TAGS = (_ADMINISTRATOR, "monitoring", "policymaker", "management", "impersonator")

#: What to say about a password among the arguments, and the hint.
_NO_PASSWORD = ("a password does not belong on the command line", "--password-file FILE, or - to read it from stdin")


def _login(broker: ManagedBroker, password_file: Path | None) -> Management:
    """Return the management API, logging in with `password_file`; --password-file contains the new password."""
    return access_to(replace(broker, options=replace(broker.options, password_file=password_file))).management()


def found_view(api: Management, *names: str) -> Json | None:
    with suppress(NotFound):
        return dict(api.get(path(*names)))
    return None


def user_view(api: Management, name: str) -> Json:
    if (found := found_view(api, "users", name)) is None:
        raise NotFound(f"user {name!r} does not exist", "'mqtool list users' shows them")
    return found


def is_there(api: Management, kind: str, name: str, *, if_not_exists: bool, hint: str) -> bool:
    """Return whether a user or vhost exists. If it does, raise MqtoolError, unless `if_not_exists` is set."""
    if found_view(api, f"{kind}s", name) is None:
        return False
    if not if_not_exists:
        raise MqtoolError(f"{kind} {name!r} already exists", hint)
    output.status(f"{kind} {name!r} exists")
    return True


def delete_named(access: Access, kind: str, name: str, what: str, yes: Yes = False, *, if_exists: bool) -> None:
    api = access.management()
    if found_view(api, f"{kind}s", name) is not None:
        ask(f"delete {what}", access, yes=yes)
        api.delete(path(f"{kind}s", name))
        output.status(f"deleted {kind} {name!r}")
    else:
        missing(f"{kind} {name!r}", f"'mqtool list {kind}s' shows them", is_fine=if_exists)


def _tags(tags: Any) -> str:
    """Format tags as a comma-separated list, which every version of RabbitMQ accepts.

    RabbitMQ ignores spaces around tags, too.
    """
    names = (tags if isinstance(tags, str) else ",".join(tags)).split(",")
    return ",".join(name.strip(" ") for name in names if name.strip(" "))


def _wanted_tags(tags: list[str] | None) -> str:
    """Format new tags. Say if one is probably a misspelling: RabbitMQ accepts any text."""
    wanted = _tags(tags or [])
    for tag in wanted.split(","):
        if meant := mistyped(tag, _KNOWN_TAGS):
            output.warning(f"the tag {tag!r} has no effect; did you mean {meant!r}?")
    return wanted


@command(
    app,
    "mqtool user add ann",
    "mqtool user add ann --tag monitoring --password-file - --if-not-exists < secret",
    effect=Effect.CHANGES,
    instead={"password_file": _NEW_PASSWORD},
    extra=_NO_PASSWORD,
)
def add(
    name: UserName,
    broker: ManagedBroker,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="Tag: administrator, monitoring, policymaker or management", metavar="TAG"),
    ] = None,
    if_not_exists: IfNotExists = False,
    login_password_file: LoginPassword = None,
) -> None:
    """Add a user; 'mqtool permission set' then grants permissions."""
    api = _login(broker, login_password_file)
    hint = "change it with 'mqtool user password' or 'mqtool user tags'"
    if is_there(api, "user", name, if_not_exists=if_not_exists, hint=hint):
        return
    api.put(
        path("users", name), {"password": _ask_password(name, broker.options.password_file), "tags": _wanted_tags(tag)}
    )
    output.status(f"added user {name!r}")


@command(
    app,
    "mqtool user password ann",
    "mqtool user password ann --password-file new-secret",
    effect=Effect.CHANGES,
    instead={"password_file": _NEW_PASSWORD},
    extra=_NO_PASSWORD,
)
def password(name: UserName, broker: ManagedBroker, login_password_file: LoginPassword = None) -> None:
    """Change a user's password."""
    api = _login(broker, login_password_file)
    tags = _tags(user_view(api, name)["tags"])
    api.put(path("users", name), {"password": _ask_password(name, broker.options.password_file), "tags": tags})
    output.status(f"changed the password of user {name!r}")


@command(
    app,
    "mqtool user tags ann",
    "mqtool user tags ann monitoring management",
    "mqtool user tags ann --none",
    effect=Effect.CHANGES,
)
def tags(
    name: UserName,
    broker: ManagedBroker,
    tags: Tags = None,
    none: Annotated[bool, typer.Option("--none", help="Remove all tags")] = False,
    yes: Yes = False,
) -> None:
    """Show or set a user's tags for the management API."""
    if tags and none:
        raise UsageError("--none cannot be combined with tags", "use only one of them")
    access = access_to(broker)
    api = access.management()
    view = user_view(api, name)
    if not tags and not none:
        output.show(_having(name, _tags(view["tags"])))
        return
    new = _wanted_tags(tags)
    is_own = name == api.user and _ADMINISTRATOR in _tags(view["tags"]).split(",")
    locks_out = is_own and _ADMINISTRATOR not in new.split(",")
    what = f"remove your own tag {_ADMINISTRATOR!r}" if locks_out else f"change the tags of user {name!r}"
    ask(what, access, yes=yes, is_safe=not locks_out)
    kept = {key: value for key, value in view.items() if key in ("password_hash", "hashing_algorithm")}
    api.put(path("users", name), {**kept, "tags": new})
    output.status(_having(name, new))


def _having(name: str, tags: str) -> str:
    """Say which tags, separated by commas, a user has."""
    what = f"the tag{'s' * (',' in tags)} {tags.replace(',', ', ')}" if tags else "no tags"
    return f"user {name!r} has {what}"


@command(app, "mqtool user delete ann", "mqtool user delete ann --if-exists --yes", effect=Effect.CHANGES)
def delete(
    name: UserName,
    broker: ManagedBroker,
    yes: Yes = False,
    if_exists: IfExists = False,
    myself: Annotated[bool, typer.Option("--myself", help="Allow deleting the user that you are logged in as")] = False,
) -> None:
    """Delete a user and its permissions."""
    access = access_to(broker)
    if name == access.address.user and not myself:
        raise UsageError(f"you are logged in as user {name!r}, and would lose access", "--myself deletes it")
    delete_named(access, "user", name, f"user {name!r}", yes, if_exists=if_exists)


def _ask_password(of: str, path: Path | None) -> str:
    """Get a new password: from a file, or typed twice on the terminal.

    Args:
        of: the user, for the prompt.
        path: the file; `-` is stdin.

    Raises:
        UsageError: there is neither a file nor a terminal, or the password is empty.
    """
    if path is not None:
        password = read_password(path)
    elif output.is_terminal(0):
        prompt = output.visible(f"Password of {of}")
        password = typer.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise UsageError(
            f"no password for {of}, and no terminal to ask for it", "--password-file FILE, or - to read it from stdin"
        )
    if not password:
        raise UsageError("the password is empty", "use at least one character")
    return str(password)
