"""mqtool fault."""

from typing import Annotated, Any

from typer import Argument, Option

from mqtool.cli.display import output, tables
from mqtool.cli.options import Commands, ManagedBroker
from mqtool.errors import NotFound, UsageError
from mqtool.inspection.listing import counted
from mqtool.management import Management, path

app = Commands()


@app.command(
    "mqtool fault cut-connections name='orders-*'",
    "mqtool fault go-silent seconds=30s",
    "mqtool fault ls",
    "mqtool fault clear",
)
def fault(
    name: Annotated[str, Argument(metavar="FAULT", help="The fault; or ls, or clear")],
    broker: ManagedBroker,
    arguments: Annotated[list[str] | None, Argument(help="NAME=VALUE; of clear, an id")] = None,
    as_json: Annotated[bool, Option("--json", help="With ls: print one JSON object per line")] = False,
) -> None:
    """Make something go wrong with an embedded broker.

    Connections: cut-connections [name= reset=], refuse-connections [seconds=], go-silent [seconds=],
    slow-down [seconds=], block-publishers [reason= seconds=], close-connections [code= text= name=],
    close-channels [code= text= name=], restart [seconds= keep_transient=].

    Messages: nack-publishes queue= [count=], return-unroutable [count=], delay-confirms [seconds=],
    lose-acks [count= queue=], cancel-consumers queue=.

    'ls' lists the faults in force. They end with their time or count, or with 'clear'.
    """
    api = broker.access().management()
    words = arguments or []
    in_force = _in_force(api)
    if name == "ls":
        rows = [{**each, "arguments": _told(each["arguments"])} if not as_json else each for each in in_force]
        if not tables.show(rows, ("id", "fault", "arguments"), as_json=as_json):
            output.status("no faults are in force")
    elif name == "clear":
        for each in words or [""]:
            api.delete(path("mqtool", "faults", each) if each else "mqtool/faults")
        output.status(f"ended {counted(len(words or in_force), 'fault')}")
    else:
        begun = api.post("mqtool/faults", {**_arguments(words), "fault": name.replace("-", "_")})
        if begun["id"] is not None:
            output.status(f"{name} is in force: 'mqtool fault clear {begun['id']}' ends it")
        else:
            output.status(f"{name}: met {begun['met']}")


def _in_force(api: Management) -> Any:
    try:
        return api.get("mqtool/faults")
    except NotFound as error:
        raise UsageError(
            "only the embedded broker has faults on demand", "start one with 'mqtool broker up --kind embedded'"
        ) from error


def _arguments(words: list[str]) -> dict[str, str]:
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not an argument of a fault", "an argument looks like queue=jobs")
        given[name.replace("-", "_")] = value
    return given


def _told(arguments: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
