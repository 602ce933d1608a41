"""A stream, and the line that it flows through breaks: the broker restarts, a node dies, or connections are cut.

    send ──> [drill] ──> receive
         ^           ^
         └── broken ─┘

The publisher keeps what is not confirmed, and publishes it again, under the same message id; the receiver gets again
what it had not acknowledged, marked redelivered. So a message may come twice, which its id tells; none is lost.
"""

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from mqtool.drills.scene import PATIENCE, Scene, Verdict, confirmed_by, lines_of, message, received
from mqtool.stage.proxy import Proxy

#: How many messages flow, unless somebody says otherwise.
MESSAGES = 10_000
#: With a node that is killed it is more: it takes seconds of full speed to see how long it pauses.
NODE_MESSAGES = 40_000


def restart_broker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Stop the broker in mid-stream, and start it again."""

    def restart() -> None:
        scene.say("stopping the broker …")
        scene.restart_broker()

    return _flow(scene, scene.url, count, {1: restart})


def kill_node(scene: Scene, count: int = NODE_MESSAGES) -> Verdict:
    """kill -9 the node of a cluster that leads the queue, and to which both sides are connected; start it again later.

    The others choose a leader among them; both sides go on with the next node that they know of.
    """

    def kill() -> None:
        scene.say("killing node 1 (kill -9) …")
        scene.kill_node(0)

    def revive() -> None:
        scene.say("starting node 1 again …")
        scene.revive_nodes()

    return _flow(scene, scene.url, count, {1: kill, 3: revive})


def drop_connection(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Cut the connections of both sides, three times."""
    with Proxy(scene.port) as proxy:

        def cut() -> None:
            scene.say(f"cutting {proxy.cut()} connections …")

        return _flow(scene, scene.through(proxy.port), count, dict.fromkeys((1, 2, 3), cut))


def _flow(scene: Scene, url: str, count: int, breaks: dict[int, Callable[[], None]]) -> Verdict:
    """Send and receive, and break something after some quarters of the way."""
    got = scene.directory / "got"
    receiver, sender = scene.terminals("receiver", "sender", url=url)
    receiver.start(f"mqtool receive --json -q {scene.queue} > got")
    sender.feed(scene.sending)
    for quarter in range(4):
        first, last = count * quarter // 4, count * (quarter + 1) // 4
        if quarter in breaks:
            # Some are on their way, some are unconfirmed, some unacknowledged.
            scene.wait_until(lambda first=first: len(lines_of(got)) > first // 2, "the stream to flow")  # type: ignore[misc]
            breaks[quarter]()
        sender.write("\n".join(message(number) for number in range(first, last)))
    sender.finish(PATIENCE)
    scene.wait_until_still(lambda: len(set(_ids(got))) == count, lambda: len(lines_of(got)))
    receiver.interrupt()
    deliveries = received(got)
    done = len(set(_ids(got)))
    return Verdict(
        sent=count,
        confirmed=confirmed_by(sender),
        done=done,
        redelivered=sum(delivery["redelivered"] for delivery in deliveries),
        suppressed=len(deliveries) - done,
        pause=_longest_pause(deliveries),
    )


def _longest_pause(deliveries: list[dict[str, Any]]) -> float:
    """Seconds between one delivery and the next, at most."""
    times = [datetime.fromisoformat(delivery["timestamp"]) for delivery in deliveries]
    return max((later - earlier).total_seconds() for earlier, later in pairwise(times))


def _ids(got: Path) -> list[str]:
    return [delivery["properties"]["message_id"] for delivery in received(got)]
