"""mqtool policy."""

import json
from typing import Annotated, Any, Literal

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.queue_losses import cost_of, warn_of
from mqtool.cli.message_counts import counting
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.options.broker_options import IfExists
from mqtool.cli.pipe.existence import missing
from mqtool.cli.values import parsed
from mqtool.errors import NotFound
from mqtool.management import path
from mqtool.management.policy_patterns import check_pattern
from mqtool.work.policy_losses import losses, losses_by_clearing

app = group("policy", "Set, list and clear policies of queues and exchanges.", heading="Manage")


#: Values for a policy's apply-to. Those that name a queue type need RabbitMQ 3.12.
ApplyTo = Literal["all", "queues", "exchanges", "classic_queues", "quorum_queues", "streams"]


def definition(text: str) -> dict[str, Any]:
    """Parse a policy's settings, which must be a non-empty JSON object."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("the settings are nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON: {error}") from error
    if found == {}:
        raise ValueError('a policy needs at least one setting, such as {"max-length": 1000}')
    if not isinstance(found, dict):
        raise ValueError(f'{text!r} is not a JSON object such as {{"max-length": 1000}}')
    return found


PolicyName = Annotated[
    str, typer.Argument(metavar="POLICY", help="Name of the policy", autocompletion=names_of("policies"))
]


Operator = Annotated[bool, typer.Option("--operator", help="Use operator policies, whose limits users cannot raise")]


@command(
    app,
    "mqtool policy set limits --pattern '^jobs' --apply-to queues --definition '{\"max-length\": 1000}'",
    "mqtool policy set ttl --operator --pattern '.*' --definition '{\"message-ttl\": 86400000}'",
    effect=Effect.CHANGES,
    name="set",
)
def set_policy(
    name: PolicyName,
    pattern: Annotated[
        str, typer.Option("--pattern", help="Regular expression for names of queues and exchanges", metavar="PATTERN")
    ],
    settings: Annotated[
        Any, typer.Option("--definition", parser=parsed(definition), metavar="JSON", help="Settings, as a JSON object")
    ],
    broker: ManagedBroker,
    yes: Yes = False,
    apply_to: Annotated[
        ApplyTo | None,
        typer.Option(
            metavar="KIND",
            help="Apply to queues, exchanges, all, or one type of queue",
            show_default="all; queues with --operator",
        ),
    ] = None,
    priority: Annotated[
        int, typer.Option(help="If several policies match, the highest priority applies", metavar="N")
    ] = 0,
    operator: Operator = False,
) -> None:
    """Create or change a policy.

    Asks for confirmation if a new limit or queue expiry would make existing queues lose messages, or if streams might
    lose messages. A classic queue that rejects new messages at its limit keeps the messages already beyond it only
    until RabbitMQ restarts.
    """
    check_pattern(pattern)
    access = access_to(broker)
    to = apply_to or ("queues" if operator else "all")
    body = {"pattern": pattern, "definition": settings, "priority": priority, "apply-to": to}
    what = f"{_named(name, operator=operator)} in vhost {access.vhost!r}"
    api = access.management()
    with counting(access) as count:
        lost = losses(api, access.vhost, [{**body, "name": name}], count, operator=operator)
    warn_of(lost)
    ask(f"set {what}{cost_of(lost)}", access, yes=yes, is_safe=not lost)
    is_new = api.put(path(_kind(operator=operator), access.vhost, name), body)
    output.status(f"{'set' if is_new else 'changed'} {what}")


@command(app, "mqtool policy ls", "mqtool policy ls --operator --json", effect=Effect.READS, name="ls")
def list_policies(
    broker: ManagedBroker,
    operator: Operator = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line")] = False,
) -> None:
    """List the policies of a virtual host."""
    access = access_to(broker)
    rows = access.management().items(path(_kind(operator=operator), access.vhost))
    columns = ("name", "pattern", "apply-to", "priority", "definition")
    if not layout.show_rows(sorted(rows, key=lambda row: -row["priority"]), columns, as_json=as_json):
        output.status(f"no {'operator ' if operator else ''}policies in vhost {access.vhost!r}")


@command(
    app, "mqtool policy clear limits", "mqtool policy clear limits --if-exists", effect=Effect.CHANGES, name="clear"
)
def clear_policy(
    name: PolicyName, broker: ManagedBroker, yes: Yes = False, operator: Operator = False, if_exists: IfExists = False
) -> None:
    """Remove a policy, and its settings from queues and exchanges.

    Asks for confirmation if existing queues would lose messages because other limits, such as another policy's, would
    then apply.
    """
    access = access_to(broker)
    what = f"{_named(name, operator=operator)} in vhost {access.vhost!r}"
    api = access.management()
    with counting(access) as count:
        lost = losses_by_clearing(api, access.vhost, name, count, operator=operator)
    warn_of(lost)
    ask(f"remove {what}{cost_of(lost)}", access, yes=yes, is_safe=not lost)
    try:
        api.delete(path(_kind(operator=operator), access.vhost, name))
    except NotFound:
        missing(what, "'mqtool policy ls' shows them", is_fine=if_exists)
    else:
        output.status(f"removed {what}")


def _kind(*, operator: bool) -> str:
    return "operator-policies" if operator else "policies"


def _named(name: str, *, operator: bool) -> str:
    return f"{'operator ' if operator else ''}policy {name!r}"
