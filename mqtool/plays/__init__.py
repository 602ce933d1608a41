"""Plays: the commands of each tutorial typed into several terminals, narrated and checked.

play ── commands ──> Stage ──> Terminal ── subprocess ──> mqtool … ──> broker
                       └── commands, output, explanations and charts ──> Audience (implemented in mqtool/cli)
"""

from dataclasses import replace

from mqtool.plays import incident, stream_plays, tutorial_plays, why_queues
from mqtool.stage.stage import Play
from mqtool.tutorials.dialects import OVER_AMQP10
from mqtool.tutorials.pages import AMQP10
from mqtool.tutorials.pages import NAMES as NAMES

#: All plays, in the recommended order. A play whose name is not in NAMES has no page for `tutorial show`.
PLAYS: dict[str, Play] = {
    "why-queues": why_queues.WHY_QUEUES,
    "hello-world": tutorial_plays.HELLO_WORLD,
    "work-queues": tutorial_plays.WORK_QUEUES,
    "publish-subscribe": tutorial_plays.PUBLISH_SUBSCRIBE,
    "routing": tutorial_plays.ROUTING,
    "topics": tutorial_plays.TOPICS,
    "headers": tutorial_plays.HEADERS,
    "rpc": tutorial_plays.RPC,
    "publisher-confirms": tutorial_plays.PUBLISHER_CONFIRMS,
    "delayed-messages": tutorial_plays.DELAYED_MESSAGES,
    "stream-hello-world": stream_plays.STREAM_HELLO_WORLD,
    "stream-offset-tracking": stream_plays.STREAM_OFFSET_TRACKING,
}
#: The same plays over AMQP 1.0.
PLAYS |= {
    f"{AMQP10}{name}": replace(PLAYS[name], title=f"{PLAYS[name].title}, over AMQP 1.0", protocol="amqp1.0")
    for name in OVER_AMQP10
}
PLAYS["incident"] = incident.INCIDENT
