"""Plays: the commands of each tutorial typed into several terminals, narrated and checked. One file each.

play ── commands ──> Stage ──> Terminal ── subprocess ──> mqtool … ──> broker
                       └── what is typed, printed, said and measured ──> Audience (shown by mqtool/cli)
"""

from importlib import import_module

from mqtool.stage.stage import Play
from mqtool.tutorials.pages import NAMES as NAMES

#: Plays without a page to read; they come first.
MORE = ("why-queues",)


def load(name: str) -> Play:
    """The play with that name, one of NAMES or MORE."""
    play: Play = import_module(f"mqtool.plays.{name.replace('-', '_')}").PLAY
    return play
