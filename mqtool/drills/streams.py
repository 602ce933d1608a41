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
from mqtool.inspection.listing import counted
from mqtool.stage.proxy import Proxy
from mqtool.stage.waiting import LineCount, wait_until

#: How many messages flow by default.
MESSAGES = 10_000
#: More, as it takes seconds at full speed to see how long the pause is.
NODE_MESSAGES = 40_000
#: What to watch in each.
_AGAIN = (
    "The sender publishes again what was not confirmed, and the receiver gets again what it had not acknowledged: some "
    "may come twice, none may be missing."
)


def restart_broker(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Stop the broker in mid-stream, and start it again."""

    def restart() -> None:
        scene.say("Now the broker stops, and starts again with what it has kept.")
        scene.restart_broker()

    scene.say(
        f"{count:,} messages flow to a receiver, and the broker restarts meanwhile. Watch both sides lose the "
        f"connection and reconnect. {_AGAIN}"
    )
    return _flow(scene, scene.url, count, {1: restart})


def kill_node(scene: Scene, count: int = NODE_MESSAGES) -> Verdict:
    """kill -9 the node that leads the queue and that both sides are connected to; start it again later.

    The other nodes elect a leader, and both sides reconnect to another node.
    """

    def kill() -> None:
        scene.say("Now node 1 is killed (kill -9).")
        scene.kill_node()

    def revive() -> None:
        scene.say("Node 1 starts again.")
        scene.revive_nodes()

    scene.say(
        f"{count:,} messages flow to a receiver. Node 1 leads their queue, and both sides are connected to it. It is "
        "killed meanwhile. Watch both sides go on with another node, and how long the pause is until that leads the "
        f"queue. {_AGAIN}"
    )
    return _flow(scene, scene.url, count, {1: kill, 3: revive})


def drop_connection(scene: Scene, count: int = MESSAGES) -> Verdict:
    """Cut the connections of both sides, three times."""
    scene.say(
        f"{count:,} messages flow to a receiver. Three times, the connections of both sides are cut. Watch them "
        f"reconnect. {_AGAIN}"
    )
    with Proxy(scene.port) as proxy:

        def cut() -> None:
            scene.say(f"Now a proxy cuts {counted(proxy.cut(), 'connection')}.")

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
