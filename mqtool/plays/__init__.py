"""Plays: each tutorial's commands typed into several terminals, narrated, and checked. One file each.

play ── commands ──> Stage ──> Terminal ── subprocess ──> mqtool … ──> broker
                       └── what is typed, printed, said and measured ──> Audience (mqtool/cli shows it)
"""

from importlib import import_module

from mqtool.stage.stage import Play

#: In the order in which to learn them.
NAMES = (
    "hello-world",
    "work-queues",
    "publish-subscribe",
    "routing",
    "topics",
    "headers",
    "rpc",
    "publisher-confirms",
    "delayed-messages",
)
#: What has no page to read, and comes before all: why to learn it.
MORE = ("why-queues",)


def more() -> list[tuple[str, Play]]:
    """The plays of MORE."""
    return [(name, load(name)) for name in MORE]


def load(name: str) -> Play:
    """The play of that name, one of NAMES or MORE."""
    play: Play = import_module(f"mqtool.plays.{name.replace('-', '_')}").PLAY
    return play
