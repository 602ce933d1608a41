"""mqtool broker fault."""

from typing import Annotated, Any

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.options import ManagedBroker, UnneededYes
from mqtool.errors import NotFound, UsageError
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.spelling import counted, pasteable

part = typer.Typer()

_FAULTS = [
    *("cut-connections", "refuse-connections", "go-silent", "slow-down", "block-publishers", "close-connections"),
    *("close-channels", "restart", "nack-publishes", "return-unroutable", "delay-confirms", "lose-acks"),
    *("cancel-consumers", "ls", "clear"),
]


@command(
    part,
    "mqtool broker fault cut-connections name='orders-*'",
    "mqtool broker fault go-silent seconds=30s",
    "mqtool broker fault ls",
    "mqtool broker fault clear",
    effect=Effect.CHANGES,
)
def fault(
    name: Annotated[
        str, typer.Argument(metavar="FAULT", help="Fault to inject, or ls, or clear", autocompletion=lambda: _FAULTS)
    ],
    broker: ManagedBroker,
    yes: UnneededYes = False,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Setting as NAME=VALUE; for clear, the id of a fault", metavar="ARGUMENT..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With ls: print one JSON object per line")] = False,
) -> None:
    """Inject a fault into an embedded broker.

    Connections: cut-connections [name= reset=], refuse-connections [seconds=], go-silent [seconds=],
    slow-down [seconds=], block-publishers [reason= seconds=], close-connections [code= text= name=],
    close-channels [code= text= name=], restart [seconds= keep_transient=].

    Messages: nack-publishes queue= [count=], return-unroutable [count=], delay-confirms [seconds=],
    lose-acks [count= queue=], cancel-consumers queue=.

    'ls' lists the active faults. A fault ends when its time or count has run out, or when you clear it.
    """
    access = access_to(broker)
    api = access.management()
    words = arguments or []
    if name != "ls":
        ask(f"run 'fault {name}'", access, yes=yes, is_safe=True)
    active = _active(api)
    if name == "ls":
        rows = [{**each, "arguments": _told(each["arguments"])} if not as_json else each for each in active]
        if not layout.show_rows(rows, ("id", "fault", "arguments"), as_json=as_json):
            output.status("no active faults")
    elif name == "clear":
        for each in words or [""]:
            api.delete(path("mqtool", "faults", each) if each else "mqtool/faults")
        output.status(f"ended {counted(len(words or active), 'fault')}")
    else:
        begun = api.post("mqtool/faults", {**_arguments(words), "fault": name.replace("-", "_")})
        if begun["id"] is not None:
            output.status(f"{name} is active; to end it: {pasteable('broker fault clear', str(begun['id']))}")
        else:
            output.status(f"{name}: {begun['met']} affected")


def _active(api: Management) -> list[Json]:
    try:
        return list(api.items("mqtool/faults"))
    except NotFound as error:
        raise UsageError(
            "only the embedded broker supports faults", "start one with 'mqtool broker up --kind embedded'"
        ) from error


def _arguments(words: list[str]) -> dict[str, str]:
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not an argument of a fault", "use NAME=VALUE, such as queue=jobs")
        given[name.replace("-", "_")] = value
    return given


def _told(arguments: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
