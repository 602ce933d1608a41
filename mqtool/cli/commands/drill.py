"""mqtool drill."""

from collections.abc import Callable
from typing import Annotated

from typer import Option

from mqtool.broker.choice import Kind
from mqtool.cli import contexts, stopping
from mqtool.cli.display import output
from mqtool.cli.display.pace import Pace
from mqtool.cli.display.play_lines import Lines
from mqtool.cli.groups import Commands
from mqtool.drills import streams, workers
from mqtool.drills.scene import Scene, Verdict
from mqtool.errors import SomeFailed, UsageError

app = Commands()
drill = app.group("drill", "Break something on purpose, and count what is lost.")


def _add(
    name: str,
    perform: Callable[[Scene, int], Verdict],
    messages: int,
    about: str,
    *,
    restarts_it: bool = False,
    on_cluster: bool = False,
) -> None:
    """Add the command of a drill."""

    @drill.command(f"mqtool drill {name}", name=name, about=about, **{"url" if on_cluster else "image": None})
    def command(
        kind: Annotated[Kind, Option(help="Kind of broker to start")] = Kind.AUTO,
        url: Annotated[str | None, Option("-u", help="Use this broker, with a queue of the drill's own")] = None,
        image: Annotated[str | None, Option(help="RabbitMQ image to build on (Docker)")] = None,
        count: Annotated[int, Option("-c", "-n", min=20, help="Messages to send")] = messages,
        quiet: Annotated[bool, Option(help="Print the verdict only")] = False,
    ) -> None:
        if url is not None and restarts_it:
            raise UsageError(f"{name} only restarts a broker of its own", "omit --url")
        contexts.not_for(f"drill {name}")
        stopping.let_children_be_interrupted()
        output.configure(be_quiet=quiet)
        audience = Lines(Pace(auto=True, watched=False), aside=True, quiet=quiet)
        with audience.watching(f"drill {name}", about):
            with Scene(kind, url, audience, cluster=on_cluster, image=image) as scene:
                verdict = perform(scene, count)
            audience.say(verdict.sums())
            if verdict.twice:
                audience.note(f"{verdict.twice:,} took effect twice")
            (audience.note if verdict.lost else audience.right)(verdict.balance())
            audience.blank()
        output.show(f"{name}: {verdict}")
        if verdict.lost:
            raise SomeFailed(f"{verdict.lost:,} of {verdict.sent:,} messages are lost")


_add("kill-worker", workers.kill_worker, workers.MESSAGES, "Kill a worker while it runs programs; another takes over.")
_add(
    "restart-broker",
    streams.restart_broker,
    streams.MESSAGES,
    "Restart the broker in mid-stream; both sides reconnect.",
    restarts_it=True,
)
_add(
    "kill-node",
    streams.kill_node,
    streams.NODE_MESSAGES,
    "Kill a node of a cluster in mid-stream, and start it again.",
    on_cluster=True,
)
_add(
    "drop-connection",
    streams.drop_connection,
    streams.MESSAGES,
    "Cut both sides' connections three times in mid-stream.",
)
_add("poison", workers.poison, workers.MESSAGES, "Send messages that always fail; they end as dead letters.")
_add("duplicate", workers.duplicate, workers.MESSAGES, "Publish messages twice; each is handled once.")
