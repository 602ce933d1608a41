"""A stream of messages, and what breaks it: the broker restarts, a node dies, or connections are cut.

    send ──> [drill] ──> receive
         ^           ^
         └── broken ─┘

The publisher publishes unconfirmed messages again with the same message ID. The receiver gets unacknowledged messages
again, marked redelivered. So a message may arrive twice, which its ID shows; none is lost.
"""

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from mqtool.drills.scene import PATIENCE, Scene, Verdict, message, number_of, received
from mqtool.stage.proxy import Proxy
from mqtool.stage.waiting import LineCount, wait_until

#: How many messages flow by default.
MESSAGES = 10_000
#: More, as it takes seconds at full speed to see how long the pause is.
NODE_MESSAGES = 40_000


def restart_broker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Stop the broker in mid-stream, and start it again."""

    def restart() -> None:
        scene.say("stopping the broker …")
        scene.restart_broker()

    return _flow(scene, scene.url, count, {1: restart})


def kill_node(scene: Scene, count: int = NODE_MESSAGES) -> Verdict:
    """kill -9 the node that leads the queue and that both sides are connected to; start it again later.

    The other nodes elect a leader, and both sides reconnect to another node.
    """

    def kill() -> None:
        scene.say("killing node 1 (kill -9) …")
        scene.kill_node()

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
    """Send and receive in quarters; `breaks` says what to break before some of them."""
    got = scene.directory / "got"
    receiver, sender = scene.terminals("receiver", "sender", url=url)
    receiver.start(f"mqtool receive --json -q {scene.queue} > got")
    sender.feed(scene.sending)
    arrived = LineCount(got)
    for quarter in range(4):
        first, last = count * quarter // 4, count * (quarter + 1) // 4
        if quarter in breaks:
            # Some messages are on their way, some are unconfirmed, some unacknowledged.
            wait_until(lambda half=first // 2: arrived() > half, "the stream to flow", PATIENCE)  # type: ignore[misc]
            breaks[quarter]()
        sender.write("\n".join(message(number) for number in range(first, last)))
    sender.finish(PATIENCE)
    scene.wait_until_still(lambda: arrived() >= count and len(set(_ids(got))) == count, arrived)
    receiver.interrupt()
    deliveries = received(got)
    done = len(set(_ids(got)))
    return Verdict(
        sent=count,
        confirmed=number_of(sender, "confirmed"),
        done=done,
        redelivered=sum(delivery["redelivered"] for delivery in deliveries),
        suppressed=len(deliveries) - done,
        pause=_longest_pause(deliveries),
    )


def _longest_pause(deliveries: list[dict[str, Any]]) -> float:
    """The longest time between two deliveries, in seconds."""
    times = [datetime.fromisoformat(delivery["timestamp"]) for delivery in deliveries]
    return max((later - earlier).total_seconds() for earlier, later in pairwise(times))


def _ids(got: Path) -> list[str]:
    return [delivery["properties"]["message_id"] for delivery in received(got)]
