"""Plays: the commands of each tutorial typed into several terminals, narrated and checked. One file each.

play ── commands ──> Stage ──> Terminal ── subprocess ──> mqtool … ──> broker
                       └── what is typed, printed, said and measured ──> Audience (shown by mqtool/cli)
"""

from importlib import import_module

from mqtool.stage.stage import Play
from mqtool.tutorials.pages import NAMES as NAMES

#: All plays, in their order; those that are not among NAMES have no page to read.
ALL = ("why-queues", *NAMES, "incident")


def load(name: str) -> Play:
    """The play with that name, one of ALL."""
    play: Play = import_module(f"mqtool.plays.{name.replace('-', '_')}").PLAY
    return play
