"""mqtool drill."""

from collections.abc import Callable
from typing import Annotated

import typer

from mqtool.broker.choice import BrokerKind
from mqtool.cli import stopping
from mqtool.cli.chosen_broker import leave_other_brokers
from mqtool.cli.command_line import command, group
from mqtool.cli.commands.tutorial import page_broker
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.play_lines import PlayLines, TypingPace
from mqtool.cli.display.play_page import PlayPage
from mqtool.cli.invocation import current
from mqtool.cli.options.page_options import PageOptions
from mqtool.drills import drills
from mqtool.drills.scene import DrillScene, Verdict
from mqtool.errors import SomeFailed, UsageError
from mqtool.spelling import counted
from mqtool.stage.terminal import Guard

app = group("drill", "Break something on purpose, and count the lost messages.", heading="Learn")


def _add(
    name: str,
    perform: Callable[[DrillScene, int], Verdict],
    messages: int,
    about: str,
    *,
    restarts_it: bool = False,
    on_cluster: bool = False,
) -> None:
    @command(
        app,
        f"mqtool drill {name}",
        effect=Effect.OWN,
        name=name,
        about=about,
        without=["url" if on_cluster else "image"],
    )
    def drill(
        kind: Annotated[BrokerKind, typer.Option(help="Kind of broker to start")] = BrokerKind.AUTO,
        url: Annotated[
            str | None,
            typer.Option(
                "--url", "-u", help="Use this broker; the drill's queues are deleted at the end", metavar="URL"
            ),
        ] = None,
        image: Annotated[
            str | None, typer.Option("--image", help="RabbitMQ base image (Docker)", metavar="IMAGE")
        ] = None,
        count: Annotated[
            int, typer.Option("--count", "-c", "-n", min=20, help="Messages to send", metavar="N")
        ] = messages,
        quiet: Annotated[bool, typer.Option("--quiet", help="Print only the verdict")] = False,
        *,
        page: PageOptions,
    ) -> None:
        if url is not None and restarts_it:
            raise UsageError(f"{name} only restarts a broker that it has started", "omit --url")
        current().quiet = quiet
        leave_other_brokers(url)
        stopping.let_children_be_interrupted()
        guard = Guard()

        def shown_by(audience: PlayLines | PlayPage, scene: DrillScene) -> Verdict:
            with audience.watching(f"drill {name}", about):
                with scene:
                    verdict = perform(scene, count)
                audience.say(verdict.sums())
                if verdict.twice:
                    audience.note(f"handled twice: {counted(verdict.twice)}")
                if verdict.foreign:
                    audience.note(f"from other publishers, and not counted: {counted(verdict.foreign)}")
                (audience.note if verdict.lost else audience.right)(verdict.balance())
                audience.blank()
            output.show(f"{name}: {verdict}")
            return verdict

        if page.ui:
            # Only the embedded broker can show single messages.
            quick = BrokerKind.EMBEDDED if kind is BrokerKind.AUTO and image is None and not on_cluster else kind
            in_page = PlayPage([], broker=page_broker(url), port=page.port, open_page=page.open_page)
            scene = DrillScene(quick, url, in_page, guard, cluster=on_cluster, image=image)
            with in_page as shown:
                verdict = shown_by(shown, scene)
                shown.stay(verdict.rows())
        else:
            lines = PlayLines(TypingPace(auto=True, watched=False), aside=True, quiet=quiet)
            scene = DrillScene(kind, url, lines, guard, cluster=on_cluster, image=image)
            verdict = shown_by(lines, scene)
        if verdict.is_inconclusive:
            raise SomeFailed(
                f"{verdict.lost:,} of {verdict.sent:,} messages are missing, perhaps behind other publishers' messages",
                "use a broker on which nobody else publishes to the drill's queue",
            )
        if verdict.lost:
            raise SomeFailed(f"{verdict.lost:,} of {verdict.sent:,} messages are lost")


_add(
    "kill-worker",
    drills.kill_worker,
    drills.WORKER_MESSAGES,
    "Kill a worker while it runs programs; another one takes over.",
)


_add(
    "restart-broker",
    drills.restart_broker,
    drills.STREAM_MESSAGES,
    "Restart the broker while messages flow.",
    restarts_it=True,
)


_add(
    "kill-node",
    drills.kill_node,
    drills.NODE_MESSAGES,
    "Kill a cluster node while messages flow, and restart it.",
    on_cluster=True,
)


_add(
    "drop-connection",
    drills.drop_connection,
    drills.STREAM_MESSAGES,
    "Cut the clients' connections three times while messages flow.",
)


_add("poison", drills.poison, drills.WORKER_MESSAGES, "Send two bad messages among others; both become dead letters.")


_add("duplicate", drills.duplicate, drills.WORKER_MESSAGES, "Publish some messages twice; each one is handled once.")
