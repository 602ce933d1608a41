"""mqtool policy set, ls, clear. https://www.rabbitmq.com/docs/policies"""

import json
from typing import Annotated, Any, Literal

from typer import Argument, Option

from mqtool.cli.display import output, tables
from mqtool.cli.options import Commands, ManagedBroker, Yes, ask
from mqtool.cli.options.asking import IfExists, missing
from mqtool.errors import NotFound
from mqtool.management import path

app = Commands()
policy_app = app.group("policy", "Set, list and clear policies of queues and exchanges.")

#: What a policy can apply to; kinds of queues from RabbitMQ 3.12 on.
ApplyTo = Literal["all", "queues", "exchanges", "classic_queues", "quorum_queues", "streams"]


def definition(text: str) -> dict[str, Any]:
    """What a policy sets: a JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f'{text!r} is not a JSON object such as {{"max-length": 1000}}')
    return found


PolicyName = Annotated[str, Argument(metavar="NAME")]
Operator = Annotated[bool, Option("--operator", help="Operator policies: limits on queues that users cannot raise")]


@policy_app.command(
    "mqtool policy set limits --pattern '^jobs' --apply-to queues --definition '{\"max-length\": 1000}'",
    "mqtool policy set ttl --operator --pattern '.*' --definition '{\"message-ttl\": 86400000}'",
    name="set",
)
def set_policy(
    name: PolicyName,
    pattern: Annotated[str, Option(help="Regular expression: names it applies to")],
    settings: Annotated[
        Any, Option("--definition", parser=definition, metavar="JSON", help="What it sets, as a JSON object")
    ],
    broker: ManagedBroker,
    yes: Yes,
    apply_to: Annotated[
        ApplyTo | None, Option(help="What it applies to", show_default="all; queues with --operator")
    ] = None,
    priority: Annotated[int, Option(help="Of several that match, the greatest priority applies")] = 0,
    operator: Operator = False,
) -> None:
    """Set a policy, or change it."""
    access = broker.access()
    to = apply_to or ("queues" if operator else "all")
    body = {"pattern": pattern, "definition": settings, "priority": priority, "apply-to": to}
    what = f"{_named(name, operator=operator)} in vhost {access.vhost!r}"
    ask(f"set {what}", yes, protected=access.protected, is_safe=True)
    is_new = access.management().put(path(_kind(operator=operator), access.vhost, name), body)
    output.status(f"{'set' if is_new else 'changed'} {what}")


@policy_app.command("mqtool policy ls", "mqtool policy ls --operator --json", name="ls")
def list_policies(
    broker: ManagedBroker,
    operator: Operator = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object per line")] = False,
) -> None:
    """List the policies of a virtual host."""
    access = broker.access()
    rows = access.management().items(path(_kind(operator=operator), access.vhost))
    columns = ("name", "pattern", "apply-to", "priority", "definition")
    if not tables.show(sorted(rows, key=lambda row: -row["priority"]), columns, as_json=as_json):
        output.status(f"no {'operator ' if operator else ''}policies in vhost {access.vhost!r}")


@policy_app.command("mqtool policy clear limits", "mqtool policy clear limits --if-exists", name="clear")
def clear_policy(
    name: PolicyName, broker: ManagedBroker, yes: Yes, operator: Operator = False, if_exists: IfExists = False
) -> None:
    """Remove a policy; what it applied to stays, without its settings."""
    access = broker.access()
    what = f"{_named(name, operator=operator)} in vhost {access.vhost!r}"
    ask(f"remove {what}", yes, protected=access.protected, is_safe=True)
    try:
        access.management().delete(path(_kind(operator=operator), access.vhost, name))
    except NotFound:
        missing(what, "'mqtool policy ls' shows them", is_fine=if_exists)
    else:
        output.status(f"removed {what}")


def _kind(*, operator: bool) -> str:
    return "operator-policies" if operator else "policies"


def _named(name: str, *, operator: bool) -> str:
    return f"{'operator ' if operator else ''}policy {name!r}"
