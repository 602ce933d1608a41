"""mqtool drill."""

from collections.abc import Callable
from typing import Annotated

import typer

from mqtool.broker.choice import Kind
from mqtool.cli import contexts, stopping
from mqtool.cli.display import output
from mqtool.cli.display.pace import Pace
from mqtool.cli.display.play_lines import Lines
from mqtool.drills import streams, workers
from mqtool.drills.scene import Scene, Verdict
from mqtool.errors import SomeFailed, UsageError

app = typer.Typer()
drill = typer.Typer(no_args_is_help=True, help="Break something on purpose, and count what is lost.")
app.add_typer(drill, name="drill")


KindOption = Annotated[Kind, typer.Option(help="Kind of broker to start")]
UrlOption = Annotated[str | None, typer.Option("--url", "-u", help="Use this broker, with a queue of the drill's own")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the verdict only")]
Messages = Annotated[int, typer.Option("--count", "-c", "-n", min=20, help="Messages to send")]


def _run(
    name: str,
    about: str,
    drill: Callable[[Scene, int], Verdict],
    kind: Kind,
    url: str | None,
    count: int,
    *,
    quiet: bool,
    cluster: bool = False,
    image: str | None = None,
) -> None:
    contexts.not_for(f"drill {name}")
    stopping.let_children_be_interrupted()
    output.configure(be_quiet=quiet, be_verbose=False, no_color=False, with_debug=False)
    audience = Lines(Pace(auto=True, watched=False), aside=True, quiet=quiet)
    with audience.watching(f"drill {name}", about):
        with Scene(kind, url, audience, cluster=cluster, image=image) as scene:
            verdict = drill(scene, count)
        audience.say(verdict.sums())
        if verdict.twice:
            audience.note(f"{verdict.twice:,} took effect twice")
        (audience.note if verdict.lost else audience.right)(verdict.balance())
        audience.blank()
    output.show(f"{name}: {verdict}")
    if verdict.lost:
        raise SomeFailed(f"{verdict.lost:,} of {verdict.sent:,} messages are lost")


def _add(name: str, drill_of: Callable[[Scene, int], Verdict], messages: int, about: str) -> None:
    """Add the command of a drill that runs on any broker."""

    @drill.command(name, epilog=f"mqtool drill {name}", help=about)
    def command(
        kind: KindOption = Kind.AUTO, url: UrlOption = None, count: Messages = messages, quiet: Quiet = False
    ) -> None:
        _run(name, about, drill_of, kind, url, count, quiet=quiet)


_add("kill-worker", workers.kill_worker, workers.MESSAGES, "Kill a worker while it runs programs; another takes over.")


_RESTART = "Restart the broker in mid-stream; both sides reconnect."
_KILL = "Kill a node of a cluster in mid-stream, and start it again."


@drill.command(epilog="mqtool drill restart-broker", help=_RESTART)
def restart_broker(
    kind: KindOption = Kind.AUTO, url: UrlOption = None, count: Messages = streams.MESSAGES, quiet: Quiet = False
) -> None:
    if url is not None:
        raise UsageError("restart-broker only restarts a broker of its own", "omit --url")
    _run("restart-broker", _RESTART, streams.restart_broker, kind, None, count, quiet=quiet)


@drill.command(epilog="mqtool drill kill-node", help=_KILL)
def kill_node(
    kind: KindOption = Kind.AUTO,
    image: Annotated[str | None, typer.Option(help="RabbitMQ image to build on (Docker)")] = None,
    count: Messages = streams.NODE_MESSAGES,
    quiet: Quiet = False,
) -> None:
    _run("kill-node", _KILL, streams.kill_node, kind, None, count, quiet=quiet, cluster=True, image=image)


_add(
    "drop-connection",
    streams.drop_connection,
    streams.MESSAGES,
    "Cut both sides' connections three times in mid-stream.",
)
_add("poison", workers.poison, workers.MESSAGES, "Send messages that always fail; they end as dead letters.")
_add("duplicate", workers.duplicate, workers.MESSAGES, "Publish messages twice; each is handled once.")
