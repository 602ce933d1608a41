"""Plays: the commands of each tutorial typed into several terminals, narrated and checked. One file each.

play ── commands ──> Stage ──> Terminal ── subprocess ──> mqtool … ──> broker
                       └── what is typed, printed, said and measured ──> Audience (shown by mqtool/cli)
"""

from importlib import import_module

from mqtool.stage.stage import Play

#: In the order to learn them.
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
#: Plays without a page to read; they come first.
MORE = ("why-queues",)


def more() -> list[tuple[str, Play]]:
    """The plays of MORE."""
    return [(name, load(name)) for name in MORE]


def load(name: str) -> Play:
    """The play with that name, one of NAMES or MORE."""
    play: Play = import_module(f"mqtool.plays.{name.replace('-', '_')}").PLAY
    return play
